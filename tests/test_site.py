"The documentation: links in its sources exist, and the built site works in a browser without a network"
import functools, http.server, importlib.util, json, re, subprocess, sys, threading, time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin
import pytest
from a3t.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [*ROOT.glob('*.md'), *(ROOT/'nbs').rglob('*.md'), *(ROOT/'data'/'results').rglob('*.md')]
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')

def markdown(path):
    "The prose of a notebook or Markdown file, code left out"
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.ipynb':
        text = '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    return re.sub(r'```.*?```|`[^`\n]*`', '', text, flags=re.S)

def hooks():
    spec = importlib.util.spec_from_file_location('site_hooks', ROOT/'nbs'/'site.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def test_links_between_sources_lead_somewhere():
    broken = []
    for path in [*TEXTS, *(ROOT/'nbs').rglob('*.ipynb')]:
        for target in LINK.findall(markdown(path)):
            file = unquote(urldefrag(target)[0])
            if re.match(r'\w+:', target) or not file: continue
            if not (path.parent/file).exists(): broken.append(f'{path.relative_to(ROOT)} → {target}')
    assert not broken, '\n'.join(broken)

def test_imports_in_the_documents_exist():
    blocks = [b for path in TEXTS for b in re.findall(r'```python\n(.*?)```', path.read_text(encoding='utf-8'), re.S)]
    lines = [l for b in blocks for l in b.split('\n') if re.match(r'(from|import) ', l)]
    assert len(lines) > 5
    extras = {m for names in EXTRAS.values() for m in names.split()}
    for line in lines: # a module of an extra may be absent
        top = re.match(r'(?:from|import) (\w+)', line)[1]
        if top not in extras or importlib.util.find_spec(top): exec(line, {})

def test_every_notebook_has_its_place_in_the_navigation():
    h = hooks()
    listed = [page for folders in h.SECTIONS.values() for f in folders for page in h.pages(f)] + h.guide_pages()
    shown = {path for page in listed for path in page.values() if path.endswith('.ipynb')}
    have = {p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb')
            if '.ipynb_checkpoints' not in p.parts}
    guide = (ROOT/'nbs'/'guide'/'README.md').read_text(encoding='utf-8') # its table is a part of the navigation
    shown |= {f'guide/{page}' for page in re.findall(r'\]\(([\w-]+\.ipynb)\)', guide)}
    assert have - shown <= {'00_tour.ipynb'} and shown <= have

def test_formulas_become_mathml_and_code_stays():
    h = hooks()
    got = h.formulas('<p>with $R_f = -1$ and <code>$HOME</code>, for $5</p><pre>$x$</pre>')
    assert got.count('<math') == 1 and '<code>$HOME</code>' in got and '<pre>$x$</pre>' in got and 'for $5' in got
    tables = h.formulas('<table><td>$x$</td></table><table border="1" class="dataframe"><td>$x$</td></table>')
    assert tables.count('<math') == 1 and tables.endswith('<td>$x$</td></table>')
    assert 'display="block"' in h.formulas('<p>$$\\frac{1}{K}$$</p>')

def test_cells_for_nbdev_are_not_shown(tmp_path):
    from mkdocs_jupyter import convert
    import nbformat.v4 as v4
    hooks()
    sources = ('#| default_exp secret', '#| hide\nfrom nowhere import secret', '#| export\nshown = 1', 'shown + 1')
    nb = v4.new_notebook(cells=[v4.new_code_cell(s) for s in sources],
                         metadata=dict(kernelspec=dict(name='python3', language='python', display_name='Python 3')))
    path = tmp_path/'a.ipynb'
    path.write_text(v4.writes(nb), encoding='utf-8')
    html = convert.nb2html(str(path))
    assert html.count('shown') >= 2 and 'secret' not in html and 'default_exp' not in html

# -- the built site

class Page(HTMLParser):
    "What a page links to and shows, and the places on it"
    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        key = dict(a='href', link='href', img='src', script='src').get(tag)
        if key and attrs.get(key): self.links.append((tag, attrs[key]))

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Folder of a freshly built site"
    folder = tmp_path_factory.mktemp('site')/'site'
    p = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', folder], cwd=ROOT,
                       capture_output=True, encoding='utf-8')
    assert p.returncode == 0, p.stderr[-3000:]
    return folder

@pytest.mark.slow
def test_no_broken_link_no_missing_picture_nothing_from_elsewhere(site):
    pages = {p:Page(p) for p in site.rglob('*.html')}
    broken = []
    for path, page in pages.items():
        if path.name == '404.html': continue
        for tag, link in page.links:
            if link.startswith(('data:', 'mailto:', '#__')): continue
            if re.match(r'\w+:|//', link):
                if tag != 'a': broken.append(f'{path.relative_to(site)} loads {link}')
                continue
            file, fragment = urldefrag(link)
            target = (path.parent/unquote(file)).resolve() if file else path
            if not target.exists(): broken.append(f'{path.relative_to(site)} → {link}')
            elif fragment and target in pages and unquote(fragment) not in pages[target].ids:
                broken.append(f'{path.relative_to(site)} → {link} (no such place)')
    assert len(pages) > 60 and not broken, '\n'.join(sorted(set(broken))[:40])

@pytest.mark.slow
def test_search_finds_actre_and_signatures_are_there(site, browser):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f'http://127.0.0.1:{server.server_port}/'
        browser.goto(urljoin(address, 'index.html'))
        assert browser.js("[...document.images].every(i => i.complete && i.naturalWidth)")
        browser.js("document.querySelector('[data-md-component=search-query]').focus()")
        browser.type('ActRe')
        for _ in range(100):
            found = browser.js("[...document.querySelectorAll('.md-search-result__item a')].map(e => "
                               "e.innerText).join()")
            if found: break
            time.sleep(.1)
        assert 'ActRe' in found
        browser.goto(urljoin(address, 'api/agents.html'))
        text = browser.text()
        assert 'rollout' in text and 'list of task ids' in text
    finally: server.shutdown()

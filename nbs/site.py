"""Hooks of mkdocs: pages in reading order, one page of signatures for each module, links between notebooks, formulas
without a network"""
import importlib, inspect, json, posixpath, re
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urldefrag

from latex2mathml.converter import convert
from mkdocs.structure.files import File
from mkdocs_jupyter import nbconvert2
from mkdocs_jupyter.preprocessors import SubCell

ROOT = Path(__file__).resolve().parent.parent
# file → page
OUTSIDE = {'README.md':'index.md', 'CONTRIBUTING.md':'contributing.md', 'data/results/README.md':'evidence.md',
           'LOG.md':'log.md'}
SECTIONS = {'Method':('method', 'opening', 'training'), 'Environments':('envs',), 'Models':('models',),
            'Runs':('runs', 'stages', 'scoring', 'quality', 'exchange', 'trainers', 'view', 'web', '.'),
            'Experiments':('experiments', 'bench')}
CODE = r'<(pre|code|script|style|svg)\b.*?</\1>|<table[^>]*\bdataframe\b.*?</table>|<[^>]+>'
FORMULA = re.compile(CODE + r'|\$\$(.+?)\$\$|\$(?![\s\d])([^$\n]+?)(?<!\s)\$', re.S)

HIDDEN = re.compile(r'#\| *(hide|default_exp)\b')

class ShownCells(SubCell):
    "The cells of a notebook that readers need: not those for nbdev, and none that hides itself"
    def preprocess(self, nb, resources):
        nb, resources = super().preprocess(nb, resources)
        nb.cells = [c for c in nb.cells if not HIDDEN.match(c.source)]
        return nb, resources

nbconvert2.SubCell = ShownCells # mkdocs-jupyter can only leave out cells with a tag

def title(path):
    "First heading of a notebook"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = next((''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'), path.stem)
    return text.strip().split('\n')[0].lstrip('# ')

def pages(folder):
    "Notebooks of a folder of nbs/, with their titles; `.` is the top level"
    under = ROOT/'nbs'/folder
    found = under.glob('*.ipynb') if folder == '.' else under.rglob('*.ipynb')
    order = sorted(found, key=lambda p: (p.parent, p.stem != 'index', p.name))
    return [{title(p):p.relative_to(ROOT/'nbs').as_posix()} for p in order if not p.name.startswith('00_')
            and '.ipynb_checkpoints' not in p.parts]

def modules():
    "Names of the modules that notebooks export, without the package's"
    files = (p.relative_to(ROOT/'a3t') for p in sorted((ROOT/'a3t').rglob('*.py')) if p.name != '_modidx.py')
    names = ('.'.join(p.with_suffix('').parts).removesuffix('__init__').strip('.') for p in files)
    return [n for n in names if n and getattr(importlib.import_module(f'a3t.{n}'), '__all__', ())]

def members(obj):
    "Public methods of a class that it defines itself or that were patched in"
    if not inspect.isclass(obj): return []
    return [m for n,m in vars(obj).items() if not n.startswith('_') and inspect.isfunction(m) and m.__doc__]

def entry(obj, level):
    "Signature with docments, docstring and source of a function or class, as Markdown"
    from nbdev.showdoc import BasicMarkdownRenderer, show_doc
    made = show_doc(obj, renderer=BasicMarkdownRenderer)._repr_markdown_()
    text = re.sub(r'^#+ ', '#'*level + ' ', made.replace('---', '', 1).strip(), count=1, flags=re.M)
    try: lines = f'```python\n{inspect.getsource(obj).rstrip()}\n```'.split('\n')
    except OSError: return text + '\n' # a class that a function made
    source = '\n'.join('    ' + l for l in lines)
    return f'{text}\n\n??? note "source"\n{source}\n'

def api_page(name):
    "What a module offers, as Markdown"
    module = importlib.import_module(f'a3t.{name}')
    own = [getattr(module, n) for n in module.__all__ if hasattr(module, n)]
    own = [o for o in own if getattr(o, '__module__', '') == module.__name__
           and (inspect.isfunction(o) or inspect.isclass(o))]
    parts = [entry(o, 2) + ''.join('\n' + entry(m, 3) for m in members(o)) for o in own]
    doc = (module.__doc__ or '').strip().split('\n')[0]
    notebook = re.search(r'File to edit: \S*?nbs/(\S+\.ipynb)', Path(module.__file__).read_text(encoding='utf-8'))[1]
    return '\n\n'.join([f'# a3t.{name}', doc, f'Defined and shown working in [{notebook}](../{notebook}).', *parts])

def outside_page(source, page):
    "A Markdown file from outside nbs/, its links made relative to the page"
    def link(m):
        target, fragment = urldefrag(m[2])
        if re.match(r'\w+:', target) or not target: return m[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        new = OUTSIDE.get(path, path.removeprefix('nbs/'))
        return f"{m[1]}({new}{'#' + fragment if fragment else ''})"
    return re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', link, (ROOT/source).read_text(encoding='utf-8'))

def guide_pages():
    "Pages of the guide with their titles, from the table in its README"
    table = (ROOT/'nbs'/'guide'/'README.md').read_text(encoding='utf-8')
    listed = re.findall(r'^\| \[([^\]]+)\]\(([\w-]+\.(?:md|ipynb))\)', table, re.M)
    return [{title[0].upper() + title[1:]:f'guide/{page}'} for title,page in listed]

def on_config(config):
    guide = [*guide_pages(), {'Evidence':'evidence.md'}, {'Contributing':'contributing.md'}]
    sections = [{s:[p for f in folders for p in pages(f)]} for s,folders in SECTIONS.items()]
    api = [{'API':[{f'a3t.{m}':f'api/{m}.md'} for m in modules()]}]
    home = ([{'Home':'index.md'}, {'Tour':'00_tour.ipynb'}] if (ROOT/'nbs'/'00_tour.ipynb').exists()
            else [{'Home':'index.md'}])
    config.nav = [*home, *sections, {'Guide':[{'Notebooks':'README.md'}, *guide]}, *api]
    return config

def on_files(files, config):
    for f in list(files):
        if f.src_uri == 'README.md': # mkdocs takes it for the first page
            f.dest_uri = f.url = 'notebooks.html'
    for source, page in OUTSIDE.items(): files.append(File.generated(config, page, content=outside_page(source, page)))
    for m in modules(): files.append(File.generated(config, f'api/{m}.md', content=api_page(m)))
    return files

def formulas(html):
    "MathML for $…$ in a page, code left alone"
    def mathml(m):
        if not (m[2] or m[3]): return m[0]
        try: return convert(unescape(m[2] or m[3]), display='block' if m[2] else 'inline')
        except Exception: return m[0]
    return FORMULA.sub(mathml, html)

def on_page_content(html, page, config, files):
    return formulas(html) if page.file.src_uri.endswith(('.ipynb', '.md')) else html

def page_of(target, source):
    "Where the page of a file is, for a link from another one"
    folder = posixpath.dirname(source)
    file = posixpath.normpath(posixpath.join(folder, target))
    outside = posixpath.normpath(posixpath.join('nbs', file))
    page = 'notebooks.md' if file == 'README.md' else OUTSIDE.get(outside, re.sub(r'README\.md$', 'index.md', file))
    return posixpath.relpath(re.sub(r'\.(ipynb|md)$', '.html', page), folder or '.')

def on_post_page(output, page, config):
    "Links to notebooks and Markdown files become links to their pages"
    def link(m):
        target, fragment = urldefrag(unescape(m[1]))
        if re.match(r'\w+:|//', target) or not target.endswith(('.ipynb', '.md')): return m[0]
        new = page_of(unquote(target), page.file.src_uri)
        if target.endswith('.ipynb'): fragment = fragment.lower() # Jupyter keeps capitals in the names of places
        return f"href=\"{new}{'#' + fragment if fragment else ''}\""
    return re.sub(r'href="([^"]+)"', link, output)

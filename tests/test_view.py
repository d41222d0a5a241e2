"`a3t view`: filters and pages, links, escaping, two side by side, one file, and keys in a real browser"
import http.client, re, urllib.error, urllib.request
from dataclasses import replace
from html import unescape
from urllib.parse import quote
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from a3t.accumulate import append
from a3t.cli import main
from a3t.core import A3TError, Step, Trajectory, to_row
from a3t.envs.base import ToyHouse
from a3t.exchange.export import export_command
from a3t.view.page import Pair, link, single_page
from a3t.view.serve import PAGE, view_site
from a3t.view.store import Collection, Filter, holding, read_filter
from a3t.web import serving
from stall import EVIL

HOUSE = replace(ToyHouse.exemplar, task='house/pen')
N = 130 # trajectories of `many`, on three pages

def made(i, **kw):
    "A trajectory of its own"
    actor, source = ('sampled', 'composed') if i % 10 == 0 else ('policy', 'policy')
    step = Step(f'Reason {i}.', f'go to shelf {i}', f'You see\nnothing {i}.', actor=actor, valid=i % 7 > 0)
    return Trajectory(f'task/{i}', ('pick', 'clean')[i % 2], f'goal number {i}', 'You see a shelf.',
                      (step, step)[:1 + i % 2], won=i % 3 == 0, source=source, **kw)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run: three rounds of one task, hostile texts, and many others"
    folder = tmp_path_factory.mktemp('view')/'mine'
    other = replace(HOUSE.steps[2], reason='Else.'), replace(HOUSE.steps[2], action='look')
    lost = replace(HOUSE, won=False, reward=0., round=0, steps=(*HOUSE.steps[:2], *other))
    append(folder/'round_00'/'episodes', [lost, made(0), made(1)])
    append(folder/'round_01'/'episodes', [replace(HOUSE, round=1, seed=1), made(1, round=1)])
    append(folder/'round_01'/'trajectories', [made(i, round=1) for i in range(100)])
    append(folder/'round_01'/'trajectories', [made(i, round=1) for i in range(100, N)])
    evil = Trajectory(EVIL, EVIL, EVIL, EVIL, (Step(EVIL, EVIL, EVIL),), source=EVIL, round=2)
    append(folder/'round_02'/'episodes', [evil])
    return Collection(folder)

@pytest.fixture(scope='module')
def url(run):
    with serving(view_site(run)) as url: yield url

def get(url, path='', **headers):
    "(status, page)"
    try: answer = urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=20)
    except urllib.error.HTTPError as e: answer = e
    return answer.status, answer.read().decode()

def links(page, path): return [unescape(m) for m in re.findall(rf'href="({path}\?[^"]*)"', page)]

# -- which trajectories

def test_filters_are_exact(run):
    every = [run.trajectory(i) for i in range(len(run))]
    part = lambda i: run.key(i).rpartition(':')[0]
    for f,fits in ((Filter(), lambda i, t: True), (Filter(won='yes'), lambda i, t: t.won),
                   (Filter(won='no'), lambda i, t: not t.won), (Filter(won='unknown'), lambda i, t: False),
                   (Filter(type='clean'), lambda i, t: t.task_type == 'clean'),
                   (Filter(round='1'), lambda i, t: t.round == 1),
                   (Filter(source='composed'), lambda i, t: t.source == 'composed'),
                   (Filter(acted='sampled'), lambda i, t: any(s.actor == 'sampled' for s in t.steps)),
                   (Filter(acted='policy'), lambda i, t: all(s.actor == 'policy' for s in t.steps)),
                   (Filter(part='round_01/episodes'), lambda i, t: part(i) == 'round_01/episodes'),
                   (Filter(task='house/pen', won='no'), lambda i, t: t.task == 'house/pen' and not t.won),
                   (Filter(q='SHELF 12', round='1'), lambda i, t: t.round == 1 and 'shelf 12' in t.steps[0].action)):
        assert [*run.pick(f)] == [i for i,t in enumerate(every) if fits(i, t)], f
    rows = run.rows(range(len(run)))
    assert [(r['steps'], r['sampled'], r['invalid']) for r in rows] == [
        (len(t), sum(s.actor == 'sampled' for s in t.steps), sum(not s.valid for s in t.steps)) for t in every]
    assert [run.position(run.key(i)) for i in range(len(run))] == [*range(len(run))]

TEXT = st.text(st.sampled_from('ab nN"\\\n\r\tuéÉ0e9:,{}ß'), max_size=6)

@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT, TEXT, TEXT.filter(bool))
def test_a_text_is_found_where_it_is_and_nowhere_else(reason, action, observation, q):
    rows = [to_row(Trajectory('', '', '', '', (Step(reason, action, observation),)))]
    found = any(q.lower() in t.lower() for t in (reason, action, observation))
    same = holding(pa.Table.from_pylist(rows), q, pa.array([True]).to_numpy(zero_copy_only=False))[0]
    if q in reason + '\0' + action + '\0' + observation: assert same
    assert not same or found

@pytest.mark.parametrize('q', ('reason', 'actor', '"action": "', 'true', 'nothing\\n', 'othing', 'shelf 7'))
def test_names_of_fields_are_no_text(run, q):
    texts = lambda t: [x.lower() for s in t.steps for x in (s.reason, s.action, s.observation)]
    expected = [i for i in run.pick(Filter(round='1')) if any(q.lower() in x for x in texts(run.trajectory(i)))]
    assert [*run.pick(Filter(q=q, round='1'))] == expected

@pytest.mark.parametrize('words,contains', (
    (['won'], 'FIELD=VALUE'), (['wom=no'], 'did you mean won'), (['won=maybe'], 'choose from yes'),
    (['round=-1'], 'number of a round'), (['acted=me'], 'policy, sampled')))
def test_wrong_filters(words, contains):
    with pytest.raises(A3TError, match=contains): read_filter(words)

def test_a_run_at_work_grows(tmp_path):
    append(tmp_path/'round_00'/'episodes', [made(1)])
    append(tmp_path/'round_01'/'episodes', [made(2)])
    c = Collection(tmp_path)
    key, old = c.key(1), c.pieces[0]
    append(tmp_path/'round_00'/'episodes', [made(3)])
    c.refresh()
    assert len(c) == len(c.pick(Filter())) == 3 and c.pieces[0] is old and c.trajectory(c.position(key)) == made(2)

# -- other sources

@pytest.mark.parametrize('format', ('chat', 'atif'))
def test_an_exported_file_shows_the_same(run, tmp_path, format, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_command(str(run.path/'round_01'/'trajectories'), str(tmp_path/'e.jsonl.xz'), format)
    store, file = Collection(run.path/'round_01'/'trajectories'), Collection(tmp_path/'e.jsonl.xz')
    assert [*map(file.trajectory, range(len(file)))] == [*map(store.trajectory, range(len(store)))]
    assert file.key(3) == 'e.jsonl.xz:3' and store.key(3) == 'trajectories:3'
    assert file.rows([5])[0]['steps'] == store.rows([5])[0]['steps']
    one = Collection(next((run.path/'round_00'/'episodes').glob('*.parquet')))
    assert len(one) == 3

def test_what_claims_nothing_and_what_cannot_be_read(tmp_path):
    lines = ('{"task":"x","actions":["look \\ud83d"],"won":true}', '{"messages":[{"role":"user","content":"Hi"}]}', '7',
             '{"task":"x","actions":[],"won":true}')
    (tmp_path/'a.jsonl').write_text('\n'.join(lines))
    c = Collection(tmp_path/'a.jsonl')
    with serving(view_site(c)) as url:
        status, page = get(url)
        assert status == 200 and 'no claim' in page and '2 more cannot be read' in page and 'line 3' in page
        assert 'no claim' in get(url, link('/episode', at='a.jsonl:1'))[1]
        assert 'look ?' in get(url, link('/episode', at='a.jsonl:0'))[1]
    assert [f.fault for f in c.faults][1] == 'it claims success, but holds no action: add its actions'
    assert [*c.pick(Filter(won='unknown'))] == [1] == [*c.pick(Filter(task='line 2'))]
    (tmp_path/'b.jsonl').write_text('7\n')
    for name,contains in (('b.jsonl', 'no episode that can be read'), ('none.jsonl', 'there is no')):
        with pytest.raises(A3TError, match=contains): Collection(tmp_path/name)

# -- pages

def test_a_list_comes_in_pages(url, run):
    seen, path, n = [], '/?round=1', 0
    while path:
        status, page = get(url, path)
        assert status == 200 and page.count('class="stop"') <= PAGE
        seen, n = [*seen, *re.findall('<tr id="([^"]*)"', page)], n + 1
        path = next((unescape(p) for p in re.findall('data-key="n" href="([^"]*)"', page)), '')
    assert seen == [run.key(i) for i in run.pick(Filter(round='1'))] and n == 3
    assert 'None match' in get(url, '/?q=no+such+word')[1]

def test_an_episode_leads_on_and_back(url):
    first = links(get(url, '/?won=no&round=1&first=50')[1], '/episode')[0]
    status, page = get(url, first)
    assert status == 200 and 'won=no' in first
    at = lambda key: unescape(re.search(f'data-key="{key}" href="([^"]*)"', page)[1])
    assert at('Escape').startswith('/?first=50&won=no&round=1#') and at('n') != at('p') and get(url, at('p'))[0] == 200

def test_two_rounds_side_by_side(url, run):
    key = next(run.key(i) for i in run.pick(Filter(task='house/pen', won='yes')))
    beside = links(get(url, link('/episode', at=key))[1], '/compare')[0]
    assert 'a=round_00' in beside and 'b=round_01' in beside, 'the earlier round is on the left'
    page = get(url, beside)[1]
    assert page.count('first difference: reason') == 1 == page.count('id="difference"') and 'first other action' in page
    assert 'goal number 1' in get(url, unescape(re.search('data-key="n" href="([^"]*)"', page)[1]))[1]
    other = run.key(run.pick(Filter(task='task/2'))[0])
    assert 'two tasks' in get(url, link('/compare', a=key, b=other))[1]

def test_differences():
    a = HOUSE
    change = lambda k, **kw: replace(a, steps=tuple(replace(s, **kw) if i == k else s for i,s in enumerate(a.steps)))
    assert Pair(a, a).marks == {}
    assert Pair(a, replace(a, observation='x')).marks == {0:'first difference: first observation'}
    assert Pair(a, change(1, action='x')).marks == {2:'first difference: action'}
    assert Pair(a, change(0, actor='sampled')).marks == {1:'first difference: actor'}
    short = replace(change(0, reason='x'), steps=change(0, reason='x').steps[:2])
    assert Pair(a, short).marks == {1:'first difference: reason', 3:'first other action'}
    assert Pair(a, short).rows[3][2] is None
    assert Pair(replace(a, steps=()), replace(a, steps=())).marks == {}

BAD = ('/nix', '/episode', '/episode?at=x:1', '/episode?at=round_00/episodes:3', '/episode?at=round_00/episodes:-1',
       '/episode?at=round_00/episodes:²', '/compare?a=round_00/episodes:0', '/?first=x', '/?won=maybe', '/?round=²',
       '/?first=-1', '/?round=' + '9'*30)

@pytest.mark.parametrize('path', BAD)
def test_bad_addresses(url, path, caplog):
    status, page = get(url, quote(path, safe='/?=&:'))
    assert status in (400, 404) and 'Back to the list' in page and 'Traceback' not in page

def test_only_this_machine_under_its_name(url):
    assert get(url, '/', Host='evil.example')[0] == 403 and url.startswith('http://127.0.0.1:')
    host = http.client.HTTPConnection(url.removeprefix('http://'), timeout=10)
    host.request('GET', '/')
    policy = host.getresponse().getheader('Content-Security-Policy')
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert 'unsafe-inline' not in policy.split('script-src')[1]
    host.close()

def test_hostile_texts_are_escaped(url, run):
    i = next(i for i in range(len(run)) if run.table['round'][i].as_py() == 2)
    key = run.key(i)
    paths = ('/?round=2', link('/', q=EVIL), link('/', task=EVIL), link('/episode', at=key), link('/episode', at=EVIL),
             link('/compare', a=key, b=key))
    for page in (*(get(url, p)[1] for p in paths), single_page(run, Filter(round='2'))):
        assert '<img' not in page and page.count('<script') <= 1 and 'script>document' not in page, page
        assert '&lt;script&gt;' in page

# -- the command

def test_one_page_in_one_file(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['view', str(run.path), '--html', 'a.html', '--only', 'round=0', 'won=yes']) == 0
    page = (tmp_path/'a.html').read_text(encoding='utf-8')
    assert capsys.readouterr().out == 'a.html: 1 trajectories on one page\n' and page.count('<details') == 1
    assert not re.search(r'(src|href)="', page) and 'round=0' in page
    for more,contains in ((['--html', 'a.jsonl'], 'ends in .html'), (['--port', '70000'], '--port'),
                          (['--html', 'b.html', '--only', 'q=nix'], 'no trajectory'),
                          (['--only', 'x=1'], 'FIELD=VALUE')):
        assert main(['view', str(run.path), *more]) == 1
        said = capsys.readouterr().err
        assert contains in said and said.count('\n') == 1
    assert main(['view', 'nowhere']) == 1 and 'there is no nowhere' in capsys.readouterr().err

def test_too_many_for_one_page(tmp_path):
    append(tmp_path/'s', [made(i) for i in range(501)])
    with pytest.raises(A3TError, match='501 trajectories are too many'): single_page(Collection(tmp_path/'s'), Filter())

# -- in a real browser

def complaints(browser):
    bad = 'Runtime.exceptionThrown', 'Log.entryAdded', 'Page.javascriptDialogOpening'
    return [e for e in browser.events if e['method'] in bad]

def focus(browser): return browser.js('document.activeElement.innerText || ""')

def test_keys_alone_from_the_list_to_two_rounds_and_back(url, browser):
    browser.goto(url + '/?round=1')
    browser.press('j'); browser.press('j')
    assert focus(browser) == 'goal number 1'
    browser.press('k'); first = focus(browser)
    assert first == HOUSE.goal
    browser.loads(lambda: browser.press('Enter'))
    browser.press('j')
    assert 'go to drawer' in focus(browser) and browser.js('location.hash') == '#step-1'
    browser.loads(lambda: browser.press('c'))
    assert 'first difference: reason' in browser.text()
    browser.press('d')
    assert browser.js('document.getElementById("difference").getBoundingClientRect().top') < 850
    for key in ('Escape', 'n', 'Escape'): browser.loads(lambda: browser.press(key))
    assert focus(browser) == 'goal number 1', 'the list comes back where it was left'
    browser.loads(lambda: browser.press('n'))
    assert browser.js('location.search') == '?round=1&first=50' and not complaints(browser)

def test_search_and_filters_are_in_the_address(url, browser):
    browser.goto(url)
    browser.press('/'); browser.type('shelf 12'); browser.loads(lambda: browser.press('Enter'))
    assert browser.js('location.search') == '?q=shelf+12' and '11 of' in browser.text().replace('12 of', '11 of')
    browser.press('/'); browser.press('Escape'); browser.press('j')
    assert focus(browser) == 'goal number 12'
    choose = ("const e = document.querySelector('[name=won]'); e.value = 'no'; "
              "e.dispatchEvent(new Event('change', {bubbles: true}))")
    browser.loads(lambda: browser.js(choose))
    assert browser.js('location.search') == '?q=shelf+12&won=no'
    browser.loads(lambda: browser.press('Escape'))
    assert browser.js('location.search') == ''

def test_hostile_texts_do_nothing_in_a_browser(url, run, browser, tmp_path):
    key = run.key(next(i for i in range(len(run)) if run.table['round'][i].as_py() == 2))
    (tmp_path/'one.html').write_text(single_page(run, Filter(round='2')), encoding='utf-8')
    for address in ('/?round=2', link('/episode', at=key), link('/compare', a=key, b=key), link('/', q=EVIL),
                    f'file://{tmp_path}/one.html'):
        browser.goto(address if address.startswith('file') else url + address)
        browser.js('document.querySelectorAll("details").forEach(e => e.open = true)')
        assert EVIL in browser.text() + browser.js('document.querySelector("[name=q]")?.value || ""'), address
        assert browser.js('document.images.length') == 0 and browser.js('document.title') != 'owned'
        assert not complaints(browser)

def test_the_single_page_searches_in_itself(run, browser, tmp_path):
    (tmp_path/'one.html').write_text(single_page(run, Filter(round='0')), encoding='utf-8')
    browser.goto(f'file://{tmp_path}/one.html#{quote("round_00/episodes:1", safe="")}')
    assert 'Reason 0.' in browser.text() and 'Reason 1.' not in browser.text(), 'the link opens its episode'
    browser.press('j'); browser.press('Enter')
    assert 'Reason 1.' in browser.text()
    browser.press('/'); browser.type('Reason 0')
    assert browser.js('[...document.querySelectorAll("details")].filter(e => e.offsetParent).length') == 1
    assert not complaints(browser)

def test_no_page_is_wider_than_the_window(url, run, browser):
    key = [run.key(i) for i in run.pick(Filter(task='house/pen'))]
    def size(width, height):
        browser.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
                     mobile=False)
    try:
        for width in (1200, 380):
            size(width, 800)
            for path in ('/', '/?round=2', link('/episode', at=key[0]), link('/compare', a=key[0], b=key[1])):
                browser.goto(url + path)
                assert browser.js('document.documentElement.scrollWidth') <= width, (path, width)
    finally: size(1200, 850)

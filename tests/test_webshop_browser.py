"The shop in a browser: over plain HTTP, and in a real browser where there is one"
import http.client, os, re, signal, subprocess, sys, threading, urllib.error, urllib.parse, urllib.request
from dataclasses import replace
from http.cookiejar import CookieJar
from html import escape, unescape
from html.parser import HTMLParser

import pytest

from a3t.accumulate import append
from a3t.core import A3TError, to_row
from a3t.files import write_json
from a3t.envs.contract import check_environment
from a3t.envs.base import load_environment, play
from a3t.envs.webshop.generator import generate_shop, shop_files
from a3t.envs.webshop.browser import TEMPLATES, Site, page_blocks, read_replays, replayed, shop_site
from a3t.web import serving
from stall import EVIL, GOALS, Stall

ACTIONS = ['search[red mug]', 'click[g000000001]', 'click[red]', 'click[nonsense]', 'click[large]', 'click[buy now]']

@pytest.fixture(scope='module')
def traj():
    t = play(Stall(), 'mug/1', ACTIONS)
    reasons = ('I look for a red mug.', f'This one is {EVIL}.', 'Red is asked for.', '', 'It should be large.',
               'All fits.')
    return replace(t, steps=tuple(replace(s, reason=r, actor='policy' if i % 2 else 'sampled')
                                  for i,(s,r) in enumerate(zip(t.steps, reasons))))

@pytest.fixture
def site(traj):
    shop = Site(Stall(), [traj, replace(traj, task='unknown')])
    with serving(shop_site(shop)) as url: yield shop, url

class Client:
    "What a browser does without drawing: cookies, forms, redirects"
    def __init__(self, url):
        self.url, self.opener = url, urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    def get(self, path, data=None, **headers):
        request = urllib.request.Request(self.url + path,
                                         urllib.parse.urlencode(data).encode() if data is not None else None, headers)
        try: answer = self.opener.open(request, timeout=10)
        except urllib.error.HTTPError as e: answer = e
        self.at, self.status = urllib.parse.urlparse(answer.url).path, answer.status
        self.headers, self.page = answer.headers, answer.read().decode()
        return self.page
    def post(self, path, **data):
        token = re.search('name="_xsrf" value="([^"]+)"', self.page)
        return self.get(path, dict(data, _xsrf=token[1]) if token else data)
    def buttons(self): return [unescape(x) for x in re.findall('name="click" value="([^"]*)"', self.page)]

class Tags(HTMLParser):
    "All tags and attributes of a page"
    def __init__(self, page): super().__init__(); self.tags, self.attributes = set(), set(); self.feed(page)
    def handle_starttag(self, tag, attrs): self.tags.add(tag); self.attributes |= {k for k,_ in attrs}

def harmless(page):
    t = Tags(page)
    assert not t.tags & {'script', 'img', 'iframe', 'object', 'svg', 'base'}, page
    assert not any(a.startswith('on') or a == 'style' for a in t.attributes), page
    return page

def test_the_stall_keeps_the_contract():
    Stall.exemplar = play(Stall(), 'mug/1',
                          ['search[red mug]', 'click[g000000001]', 'click[red]', 'click[large]', 'click[buy now]'])
    Stall.exemplar = replace(Stall.exemplar,
                             steps=tuple(replace(s, reason='The task says so.') for s in Stall.exemplar.steps))
    Stall.instruction = 'Buy.'
    check_environment(Stall())

def test_an_episode_from_search_to_reward(site):
    shop, url = site
    c = Client(url)
    assert GOALS['mug/1'] in harmless(c.get('/'))
    c.post('/start', task='mug/1'); key = c.at
    assert c.status == 200 and 'name="search"' in c.page and key.startswith('/episode/')
    c.post(key, search='red mug')
    assert c.buttons() == ['Back to Search', 'G000000001', 'G000000002', 'G000000003'] and 'Page 1' in harmless(c.page)
    for label in ('G000000001', 'red', 'large', 'Description', '< Prev'): c.post(key, click=label)
    assert re.findall('value="([^"]*)" class="chosen" aria-pressed', c.page) == ['red', 'large']
    assert '<h1>Red mug</h1>' in c.page
    c.post(key, click='Buy Now')
    assert 'You found it' in c.page and 'Reward 1.000' in c.page and not c.buttons()
    steps = len(shop.episodes[key.split('/')[-1]].steps)
    c.post(key, click='red')
    assert len(shop.episodes[key.split('/')[-1]].steps) == steps == 7, 'an episode that is over stays as it is'

def test_an_invalid_action_counts_and_is_reported(site):
    shop, url = site
    c = Client(url); c.get('/'); c.post('/start', task='mug/1'); key = c.at
    c.post(key, click='Buy Now')
    assert 'That could not be done here' in c.page and '7 steps left' in c.page
    for _ in range(7): c.post(key, click='nothing')
    assert 'The episode is over' in c.page and 'Reward 0.000' in c.page

def test_two_people_do_not_disturb_each_other(site):
    _, url = site
    a, b = Client(url), Client(url)
    for c,task in ((a, 'mug/1'), (b, 'mug/2')): c.get('/'); c.post('/start', task=task); c.key = c.at
    a.post(a.key, search='x'); b.post(b.key, search='y')
    a.post(a.key, click='G000000001'); b.post(b.key, click='G000000002')
    a.post(a.key, click='red')
    assert 'Blue mug' in b.get(b.key) and 'aria-pressed' not in b.page and 'aria-pressed' in a.get(a.key)

def test_old_episodes_are_dropped(site):
    shop, url = site
    keys = [shop.start('mug/1') for _ in range(101)]
    assert len(shop.episodes) == 100
    c = Client(url); c.get('/episode/' + keys[0])
    assert c.status == 404 and 'this episode is gone' in c.page
    c.get('/episode/' + keys[-1]); assert c.status == 200

def test_hostile_texts_are_shown_not_run(site):
    _, url = site
    c = Client(url); c.get('/'); c.post('/start', task='mug/2'); key = c.at
    assert '&lt;script&gt;' in harmless(c.page)
    c.post(key, search=EVIL); harmless(c.page)
    assert EVIL.lower() in unescape(c.page).lower()
    c.post(key, click='G000000003'); harmless(c.page)
    c.post(key, click=EVIL)
    assert 'aria-pressed' in harmless(c.page), 'an option is found by its label, whatever is in it'
    c.post(key, click='Features'); harmless(c.page)
    harmless(c.get('/replay')); harmless(c.get('/replay/0/2')); harmless(c.get('/replay/1/2'))
    assert harmless(c.get('/' + urllib.parse.quote(EVIL))) and c.status == 404
    assert not any('raw ' in t or 'autoescape' in t for t in TEMPLATES.values())

def test_foreign_pages_can_neither_post_nor_rebind(site):
    shop, url = site
    c = Client(url); c.get('/start', dict(task='mug/1'))
    assert c.status == 403 and not shop.episodes, 'no token'
    c.get('/'); c.get('/start', dict(task='mug/1', _xsrf='2|00000000|00000000000000000000000000000000|1700000000'))
    assert c.status == 403 and not shop.episodes, 'a made-up token'
    c.get('/', Host='evil.example:80'); assert c.status == 403
    c.get('/', Host='localhost:' + url.rsplit(':', 1)[1]); assert c.status == 200
    for name,value in {'Content-Security-Policy':"default-src 'none'", 'X-Frame-Options':'DENY',
                       'X-Content-Type-Options':'nosniff'}.items():
        assert value in c.headers[name]
    fresh = Client(url); fresh.get('/')
    assert 'HttpOnly' in fresh.headers['Set-Cookie'] and 'SameSite=Strict' in fresh.headers['Set-Cookie']

def test_only_this_machine_is_served(site):
    import socket
    port = int(site[1].rsplit(':', 1)[1])
    others = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {'127.0.0.1'}
    for address in {a for a in others if not a.startswith('127.')}:
        with pytest.raises(OSError): socket.create_connection((address, port), timeout=1).close()
    assert site[1].startswith('http://127.0.0.1:')

@pytest.mark.parametrize('path',
                         ('/nix', '/episode/nix', '/episode/a/b', '/replay/9/0', '/replay/0/99', '/replay/x/0',
                          '/replay/0/-1', '/?split=nix', '/?first=-1', '/?first=x', '/replay?first=1e9',
                          '/?first=' + '9'*40))
def test_bad_addresses(site, path, caplog):
    c = Client(site[1]); page = c.get(path)
    assert c.status in (400, 404) and 'Back to the tasks' in page and 'Traceback' not in page

@pytest.mark.parametrize('data',
                         (dict(), dict(search=''), dict(search='x'*10_000), dict(click='x'*10_000),
                          dict(search='\x00\x1b[31m'), dict(click='buy now]['), dict(search='a]\nclick[buy now'),
                          dict(click='🦉'), dict(other='x')))
def test_odd_forms_are_answered(site, data):
    c = Client(site[1]); c.get('/'); c.post('/start', task='mug/1'); key = c.at
    c.post(key, **data)
    assert c.status == 200 and c.at == key; harmless(c.page)

def test_odd_requests(site):
    host = site[1].removeprefix('http://')
    c = Client(site[1])
    c.get('/'); c.post('/start', task='no such task'); assert c.status == 404 and 'unknown task' in c.page
    c.get('/'); c.post('/start'); assert c.status == 400
    c.get('/start'); assert c.status == 405
    for body in (b'x'*2**17, b'\xff\xfe=%%%'):
        h = http.client.HTTPConnection(host, timeout=10)
        try:
            h.request('POST', '/start', body, {'Content-Type':'application/x-www-form-urlencoded'})
            status = h.getresponse().status
        except (ConnectionError, http.client.HTTPException): status = 'closed'
        assert status in (400, 403, 413, 'closed')
        h.close()
    c.get('/'); assert c.status == 200

def test_many_tasks_come_in_parts(site):
    c = Client(site[1])
    assert ('more/000' in c.get('/?split=test') and 'more/025' not in c.page and 'Further' in c.page
            and 'Earlier' not in c.page)
    assert 'more/059' in c.get('/?split=test&first=50') and 'Further' not in c.page and 'Earlier' in c.page

def test_a_replay_shows_every_step(site, traj):
    c = Client(site[1])
    assert c.get('/replay').count('Watch') == 2
    for k in range(len(traj) + 1):
        page = harmless(c.get(f'/replay/0/{k}'))
        assert c.status == 200 and f'Step {k} of {len(traj)}' in page
        assert ('Next step' in page) == (k < len(traj)) and ('Step back' in page) == (k > 0)
        framed = [unescape(v) for v in re.findall('value="([^"]*)" class="[^"]*next[^"]*"', page)]
        assert [f'click[{v.lower()}]' for v in framed] == [a for a in ACTIONS[k:k+1] if a.startswith('click')
                                                           and a != 'click[nonsense]']
        assert not re.search('<button(?![^>]*disabled)', page), 'nothing can be clicked in a replay'
    assert 'Reward 1.000, solved' in page

def test_a_replay_of_another_shop_shows_what_was_recorded(traj):
    env = Stall()
    assert replayed(env, traj, 1)[1] == ''
    obs, note = replayed(env, replace(traj, task='unknown'), 1)
    assert obs == traj.steps[0].observation and 'does not know' in note
    assert 'another instruction' in replayed(env, replace(traj, goal='buy a boat'), 0)[1]
    assert 'not the recorded one' in replayed(env, replace(traj, reward=.25), len(traj))[1]
    assert replayed(env, replace(traj, task='unknown', observation='WebShop [SEP] Instruction: [SEP] x'),
                    0)[0] == 'WebShop\nInstruction:\nx'

def test_where_trajectories_are_read_from(tmp_path, traj):
    store = tmp_path/'run'/'round_00'/'trajectories'
    append(store, [traj]); append(tmp_path/'run'/'round_01'/'episodes', [replace(traj, goal='other')])
    assert [t.goal for t in read_replays(tmp_path/'run')] == [traj.goal, 'other']
    assert read_replays(store) == [traj] == read_replays(next(store.iterdir()))
    write_json(tmp_path/'one.json', to_row(traj)); write_json(tmp_path/'two.json', [to_row(traj)]*2)
    assert read_replays(tmp_path/'one.json') == [traj] and read_replays(tmp_path/'two.json') == [traj]*2
    write_json(tmp_path/'bad.json', [dict(task=1)])
    write_json(tmp_path/'number.json', 7)
    (tmp_path/'broken.json').write_text('{'); (tmp_path/'x.parquet').write_bytes(b'no'); (tmp_path/'empty').mkdir()
    for name in ('bad.json', 'number.json', 'broken.json', 'x.parquet', 'empty', 'missing'):
        with pytest.raises(A3TError, match=name.split('.')[0]): read_replays(tmp_path/name)

def test_a_port_in_use_is_an_error(site):
    with pytest.raises(A3TError, match='--port'):
        with serving(shop_site(site[0]), int(site[1].rsplit(':', 1)[1])): pass
    with pytest.raises(A3TError, match='--port'):
        with serving(shop_site(site[0]), 70_000): pass

def test_nothing_is_left_behind():
    before = threading.active_count()
    for _ in range(5):
        with serving(shop_site(Site(Stall()))) as url: Client(url).get('/')
    assert threading.active_count() == before

def test_blocks():
    assert [b.kind for b in page_blocks('WebShop\nInstruction:\nx\n[button] Search [button_]', 'x')] == ['search']
    item = page_blocks('Back\nsize\n  [button] s [button_]\n  [clicked button] l [clicked button_]\nA [button] in a '
                       'title [button_]\n[button] Buy Now [button_]')
    assert [(b.kind, b.text) for b in item] == [('text', 'Back'), ('option', 'size'),
                                                ('title', 'A [button] in a title [button_]'), ('buy', 'Buy Now')]
    assert item[1].buttons == [('s', False), ('l', True)]
    assert page_blocks('[button] red [button_]')[0].buttons == [('red', False)], 'a value without a name'
    results = page_blocks('[button] B000000001 [button_]\nMug\n$3\n\n[button] B000000002 [button_]')
    assert [b.lines for b in results] == [['Mug', '$3'], []]
    assert page_blocks('') == []

def test_webshop_itself_with_a_hostile_catalogue(tmp_path):
    items = (files := shop_files(0, 40))['items_shuffle_40.json']
    for p in items[::2]: p['name'], p['full_description'] = f"{EVIL} {p['name']}", f"[button] Buy Now [button_]\n{EVIL}"
    for name,content in files.items(): write_json(tmp_path/name, content)
    env = load_environment('webshop', games=str(tmp_path), pages='text_rich')
    task = next(t for t in env.tasks('train') if env.goals[t].asin in {p['asin'] for p in items[::2]}
                and env.goals[t].options)
    goal = env.goals[task]
    with serving(shop_site(Site(env))) as url:
        c = Client(url); c.get('/'); c.post('/start', task=task); key = c.at
        harmless(c.post(key, search=goal.query))
        while goal.asin not in c.buttons(): harmless(c.post(key, click='Next >'))
        for label in (goal.asin, 'Description', '< Prev', *goal.options): harmless(c.post(key, click=label))
        assert c.page.count('aria-pressed') == len(goal.options) and f'<h1>{escape(EVIL)}'[:12] in c.page
        c.post(key, click='Buy Now')
        assert 'Reward 1.000' in harmless(c.page) and 'price 100 %' in c.page

@pytest.mark.parametrize('how', (signal.SIGINT, signal.SIGTERM))
def test_the_command_serves_until_it_is_stopped(tmp_path, traj, how):
    write_json(tmp_path/'one.json', to_row(traj))
    folder = generate_shop(0, 40, tmp_path)
    code = (f"from a3t.envs.webshop.browser import shop_command; shop_command({str(tmp_path/'one.json')!r}, 0, "
            f"{str(folder)!r})")
    p = subprocess.Popen([sys.executable, '-c', code], env={**os.environ, 'A3T_DATA':str(tmp_path)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         # tests in the background ignore it
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        url = re.search(r'http://127\.0\.0\.1:\d+', line := p.stdout.readline())
        assert url, line + p.stderr.read()
        c = Client(url[0])
        assert ('Start' in c.get('/') and '1 recorded trajectories' in c.page
                and 'does not know the task' in c.get('/replay/0/1'))
        p.send_signal(how)
        assert p.wait(20) != 0
    finally: p.kill(); p.communicate()

def test_many_at_once(site):
    shop, url = site
    def visit(results, i):
        c = Client(url); c.get('/'); c.post('/start', task='mug/1'); key = c.at
        c.post(key, search=f'words {i}')
        for label in ('G000000001', 'red', 'large', 'Buy Now'): c.post(key, click=label)
        results[i] = 'Reward 1.000' in c.page and f'search[words {i}]' in c.page
    results = [False]*24
    threads = [threading.Thread(target=visit, args=(results, i)) for i in range(len(results))]
    for t in threads: t.start()
    for t in threads: t.join()
    assert all(results)

# ---- in a real browser

def complaints(browser):
    return [e for e in browser.events
            if e['method'] in ('Runtime.exceptionThrown', 'Log.entryAdded', 'Page.javascriptDialogOpening')]

def test_shopping_with_a_mouse(site, browser):
    browser.goto(site[1])
    browser.loads(lambda: browser.click('Start'))
    assert browser.js('document.activeElement.name') == 'search', 'one can type at once'
    browser.type('red mug'); browser.loads(lambda: browser.click('Search'))
    for label in ('Red mug', 'red', 'large', 'Buy Now'): browser.loads(lambda: browser.click(label))
    assert 'You found it' in browser.text() and 'Reward 1.000' in browser.text() and not complaints(browser)

def test_shopping_with_the_keyboard_alone(site, browser):
    browser.goto(site[1])
    browser.tab_to('Start'); browser.loads(lambda: browser.press('Enter'))
    browser.type('red mug'); browser.loads(lambda: browser.press('Enter'))
    for label,key in (('Red mug', 'Enter'), ('red', 'Space'), ('large', 'Enter'), ('Buy Now', 'Space')):
        browser.tab_to(label)
        assert browser.js('getComputedStyle(document.activeElement).outlineStyle') == 'solid', 'the focus is seen'
        browser.loads(lambda: browser.press(key))
    assert 'You found it' in browser.text()

def test_hostile_texts_do_nothing_in_a_browser(site, browser):
    browser.goto(site[1])
    browser.loads(lambda: browser.js('document.querySelectorAll("form")[1].submit()'))
    browser.type(EVIL); browser.loads(lambda: browser.press('Enter'))
    assert EVIL in browser.text() and browser.js('document.title') == 'shopping · a3t'
    assert browser.js('document.images.length + document.scripts.length') == 0
    browser.loads(lambda: browser.click(EVIL))
    browser.goto(site[1] + '/replay/0/2')
    assert EVIL in browser.text() and browser.js('document.title') == 'replay · a3t' and not complaints(browser)

def test_a_replay_goes_on_with_enter(site, browser, traj):
    browser.goto(site[1] + '/replay/0/0')
    for k in range(len(traj)):
        assert f'Step {k} of 6' in browser.text()
        browser.loads(lambda: browser.press('Enter'))
    assert 'Step 6 of 6' in browser.text() and 'Reward 1.000, solved' in browser.text()
    browser.loads(lambda: browser.press('Enter'))
    assert 'Step 5 of 6' in browser.text(), 'at the end, Enter goes back'

def test_no_page_is_wider_than_the_window(site, browser):
    try:
        for width in (1200, 380):
            browser.send('Emulation.setDeviceMetricsOverride', width=width, height=800, deviceScaleFactor=1,
                         mobile=False)
            for path in ('/', '/replay', '/replay/0/1', '/replay/0/2', '/replay/1/6'):
                browser.goto(site[1] + path)
                assert browser.js('document.documentElement.scrollWidth') <= width, (path, width)
    finally:
        browser.send('Emulation.setDeviceMetricsOverride', width=1200, height=850, deviceScaleFactor=1, mobile=False)

def test_a_page_from_elsewhere_cannot_post(site, browser):
    browser.goto(f'data:text/html,<form method=post action="{site[1]}/start"><input name=task '
                 f'value=mug/1><button>go</button></form>')
    browser.loads(lambda: browser.click('go'))
    assert 'This form was not handed out' in browser.text() and not site[0].episodes

"Worlds in the trainers of others: sessions share nothing, a broken engine is never reward 0, the real packages play"
import asyncio, importlib.util, os, pickle, random, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
import pytest
from a3t.core import A3TError
from a3t.envs.base import ToyHouse
from a3t.extras import install_command
from a3t.trainers import openenv, trl, verifiers
from a3t.trainers.sessions import OVER, Session, World, message
from conftest import ROOT
from test_extras import without_extras

SMALL = dict(train=6, seen=1, unseen=1, rooms=4, unseen_rooms=4)
SESSIONS = 50

@pytest.fixture(scope='module')
def alfworld(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('A3T_DATA', str(tmp_path_factory.mktemp('data')))
        yield World('cpu', engine='sim', max_steps=8, generator=SMALL)

def episodes(world):
    "50 episodes: tasks in turn, each with a seed of its own and random actions, some of them not valid"
    rows = world.rows()
    return [dict(rows[i % len(rows)], seed=i) for i in range(SESSIONS)]

def player(row):
    "Chooses actions by the seed of the row, from what the session has shown"
    rng = random.Random(row['seed'])
    return lambda text: rng.choice(re.findall(r'Valid actions: (.*)', text)[0].split(', ') + ['jump'])

def steps(world, row):
    "Yield what a session shows, step by step"
    session, choose = world.session(), player(row)
    yield (text := session.reset(**row))
    while not session.done: yield (text := session.act(choose(text)))
    yield session.reward

@pytest.mark.parametrize('name', ['alfworld', 'smoke'])
def test_sessions_in_turns_see_what_they_see_alone(name, request):
    world = World('smoke') if name == 'smoke' else request.getfixturevalue('alfworld')
    rows = episodes(world)
    alone = [list(steps(world, r)) for r in rows]
    open_ones, seen, rng = [(i, steps(world, r)) for i,r in enumerate(rows)], [[] for _ in rows], random.Random(0)
    while open_ones:
        i, episode = rng.choice(open_ones)
        try: seen[i].append(next(episode))
        except StopIteration: open_ones.remove((i, episode))
    assert seen == alone and len({str(s) for s in seen}) > SESSIONS//2
    with ThreadPoolExecutor(8) as pool: assert list(pool.map(lambda r: list(steps(world, r)), rows)) == alone

def test_rows_are_the_panel_with_seeds(alfworld):
    rows = alfworld.rows('train', 3)
    assert rows == pickle.loads(pickle.dumps(alfworld)).rows('train', 3)
    assert [r['task'] for r in rows] == list(alfworld.env.panel('train', 3, alfworld.settings['seed']))
    assert len({r['seed'] for r in rows}) == 3
    with pytest.raises(A3TError, match='asked for'): alfworld.rows('train', 99)
    with pytest.raises(A3TError, match='max_stepz'): World('cpu', max_stepz=3)
    with pytest.raises(A3TError): World(dict(alfworld.settings), max_steps=0)
    with pytest.raises(A3TError, match='did you mean max_steps'): World(dict(alfworld.settings), max_step=3)

def test_a_game_is_won_once(alfworld):
    row = alfworld.rows()[0]
    session, way = alfworld.session(), alfworld.env.games[row['task']].walkthrough
    session.reset(**row)
    texts = [session.act(a) for a in way]
    assert session.done and session.reward == 1 and texts[-1].endswith(OVER)
    assert session.act('look') == OVER and session.reward == 1 and session.steps == len(way)
    session.reset(**row)
    assert session.reward == 0 and not session.done

def test_actions_are_listed_only_where_the_world_lists_them():
    info = dict(goal='g.', admissible_actions=None)
    assert message('o', info) == 'o' and message('o', info, True) == 'o\n\nYour task is to: g.'
    assert 'Valid actions: a, b' in message('o', dict(info, admissible_actions=['a', 'b']))

class Broken(ToyHouse):
    "A world whose engine breaks"
    def step(self, action): raise OSError('the engine is gone')

ROW = dict(task='train/book-drawer-00', seed=0)
BROKEN = SimpleNamespace(session=lambda: Session(Broken()))

def test_a_broken_engine_has_no_reward():
    game = trl.TextGame(BROKEN)
    game.reset(**ROW, prompt=[])
    for _ in range(2): # a trainer shows this error to the model, and goes on
        with pytest.raises(OSError): game.act('go to desk')
    with pytest.raises(OSError): game.get_reward()
    with pytest.raises(A3TError, match='unknown task'): game.reset('nonsense')
    with pytest.raises(A3TError, match='unknown task'): game.get_reward()
    game.reset(**ROW)
    assert game.get_reward() == 0

# -- TRL

def test_the_only_tool_is_act():
    tools = [n for n in dir(trl.TextGame) if n[0] != '_' and n not in ('reset', 'get_reward')]
    assert tools == ['act'] and 'Args:\n' in trl.TextGame.act.__doc__
    assert trl.TextGame.act.__annotations__ == dict(command=str, **{'return':str})
    factory = pickle.loads(pickle.dumps(trl.environment_factory(World('smoke'))))
    assert 'Valid actions' in factory().reset(**ROW)

# -- verifiers

class Talk:
    "An agent of verifiers as far as `play` sees it: it answers from a list"
    def __init__(self, replies, error=False): self.replies, self.has_error, self.said = iter(replies), error, []
    trace = property(lambda self: self)
    def interaction(self, task): return self
    async def __aenter__(self): return self
    async def __aexit__(self, *error): pass
    async def turn(self, text=None):
        self.said.append(text)
        reply = next(self.replies, None)
        return SimpleNamespace(terminated=reply is None, last_reply=reply)
    def record_reward(self, name, value): self.rewarded = value
    def record_metric(self, name, value): self.counted = value

def played(talk, session):
    asyncio.run(verifiers.play(session, SimpleNamespace(data=SimpleNamespace(**ROW)), talk))
    return talk

def test_the_game_is_the_user_of_the_conversation():
    way = ToyHouse().walkthrough(ROW['task'])
    talk = played(Talk(f'I think.\nAction: {a}' for a in way), Session(ToyHouse()))
    assert (talk.rewarded, talk.counted, len(talk.said)) == (1, len(way), len(way)) and talk.said[0] is None
    assert played(Talk(way[:1]), Session(ToyHouse())).rewarded == 0 # the model stopped: an unfinished episode
    assert not hasattr(played(Talk([], error=True), Session(ToyHouse())), 'rewarded') # its server failed
    talk = Talk(way)
    with pytest.raises(OSError): played(talk, Session(Broken()))
    assert not hasattr(talk, 'rewarded')

def test_the_last_line_is_the_action():
    assert [verifiers.action_of(t) for t in ('a b', ' x\n\n> a b ', 'ACTION:a b', '')] == ['a b', 'a b', 'a b', '']

# -- OpenEnv

def test_an_observation_has_its_parts():
    session = Session(ToyHouse())
    first = openenv.seen(session, session.reset(**ROW))
    assert first['text'].startswith(first['observation']) and (first['reward'], first['done']) == (0, False)
    assert first['actions'] == session.info['admissible_actions'] and not first['won']

# -- the packages

def test_a_missing_package_names_its_extra():
    for code in ('from a3t.trainers.verifiers import plugin; plugin()',
                 'from a3t.trainers.openenv import _classes; _classes()'):
        p = without_extras(code)
        extra = re.search(r'trainers\.(\w+)', code)[1]
        assert p.stderr.strip().split('\n')[-1].endswith(install_command(extra)), p.stderr

GUIDE = (ROOT/'nbs'/'guide'/'trainers.md').read_text(encoding='utf-8')
EXAMPLES = dict(re.findall(r'^## (\w+)\n.*?```python\n(.*?)```', GUIDE, re.S | re.M))

def example(name, tmp_path):
    "Run the example of the guide in a new process; what it prints"
    p = subprocess.run([sys.executable, '-c', EXAMPLES[name]], capture_output=True, encoding='utf-8', cwd=tmp_path,
                       env={**os.environ, 'A3T_DATA':str(tmp_path/'data'), 'PYTHONPATH':str(ROOT),
                            'TRL_EXPERIMENTAL_SILENCE':'1'})
    assert p.returncode == 0, p.stderr[-3000:]
    shown = re.search(rf'^## {name}\n.*?```python\n.*?```.*?```\n(.*?)```', GUIDE, re.S | re.M)[1]
    return p.stdout, shown

@pytest.mark.slow
@pytest.mark.parametrize('name', ['TRL', 'verifiers', 'OpenEnv'])
def test_the_examples_of_the_guide(name, tmp_path):
    package = name.lower()
    if not importlib.util.find_spec(package): pytest.skip(f'{package} is not installed: {install_command(package)}')
    got, shown = example(name, tmp_path)
    assert got.endswith(shown) # TRL prints times first

@pytest.mark.slow
def test_fifty_connections_see_what_they_see_alone(alfworld):
    package = pytest.importorskip('openenv', reason=f'openenv is not installed: {install_command("openenv")}')
    rows = episodes(alfworld)
    def remote(row):
        choose, texts = player(row), []
        with package.GenericEnvClient(base_url=url).sync() as client:
            result = client.reset(**row)
            while texts.append(result.observation['text']) or not result.done:
                result = client.step(dict(command=choose(texts[-1])))
            with pytest.raises(RuntimeError, match='unknown|no game|not'): client.reset(task='nonsense')
        return [*texts, result.reward]
    with openenv.serving(alfworld) as url, ThreadPoolExecutor(SESSIONS) as pool: got = list(pool.map(remote, rows))
    assert got == [list(steps(alfworld, r)) for r in rows]

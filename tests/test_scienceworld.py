"ScienceWorld: its scores and splits behind the contract, snapshots by replay, messages if Java is missing"
import shutil, subprocess, sys
from dataclasses import replace
import pytest
from a3t.core import A3TError, trajectory_id
from a3t.agents import Wording
from a3t.envs import scienceworld
from a3t.envs.contract import check_environment, replay_equal
from a3t.envs.base import play
from a3t.envs.scienceworld import *
from a3t.models.base import gather

needs_java = pytest.mark.skipif(not shutil.which('java'), reason='ScienceWorld needs Java: install Java 8 or newer')

@pytest.fixture(scope='module')
def env(): return load('easy')

@needs_java
def test_contract(env): check_environment(env, 'dev', steps=12, needs=('play', 'compose')) # snapshots have a test below

@needs_java
def test_splits(env):
    for name in EASY:
        v = variations(name)
        assert all(v.values()) and sum(map(len, v.values())) == env.server.getTaskMaxVariations(name)
        assert len(set().union(*v.values())) == sum(map(len, v.values()))
    assert env.tasks('test') == sorted(env.tasks('test')) and {t.split('/')[1] for t in env.tasks('test')} == set(EASY)
    assert len(env.manifest(['dev/find-non-living-thing/155', 'train/find-non-living-thing/155', 'x'])) == 1
    for bad in ('train/find-non-living-thing/155', 'dev/boil/1', 'dev/find-non-living-thing/x', ''):
        with pytest.raises(A3TError, match='unknown task'): env.reset(options={'task':bad})
    with pytest.raises(A3TError, match='no task'): load(['boil', 'fly'])

@needs_java
@pytest.mark.parametrize('name', EASY)
def test_walkthrough_wins(env, name):
    v = variations(name)['dev'][0]
    env.server.load(name, v, SIMPLE, True)
    gold = list(env.server.getGoldActionSequence())
    t = play(env, f'dev/{name}/{v}', gold)
    assert t.won and t.reward == 1 and t.task_type == name

@needs_java
def test_score_rises_and_a_wrong_focus_ends_it(env):
    env.reset(options={'task':EXEMPLAR_TASK})
    rewards = [env.step(a)[1] for _,a in EXEMPLAR_STEPS]
    assert rewards == sorted(rewards) and 0 < rewards[2] < rewards[5] < rewards[6] == 1
    lost = next(t for t in env.tasks('dev') if 'longest' in t)
    env.reset(options={'task':lost})
    assert 0 < env.step('teleport to outside')[1] < 1
    obs, reward, over, _, info = env.step('focus on agent')
    assert over and reward == 0 and not info['won']
    obs, reward, over, _, info = env.step('look around')
    assert over and not info['valid'] and info['admissible_actions'] == ['look around']

@needs_java
def test_snapshots(env):
    way = [a for _,a in EXEMPLAR_STEPS]
    env.reset(options={'task':EXEMPLAR_TASK})
    for a in way[:4]: env.step(a)
    snapshot, key = env.save(), env.key()
    assert env.restore(snapshot)['valid'] and env.key() == key # already there
    end = [env.step(a)[:2] for a in way[4:]]
    env.reset(options={'task':env.tasks('train')[0]})
    env.restore(snapshot)
    assert env.key() == key and env.n == 4 and [env.step(a)[:2] for a in way[4:]] == end
    hash(snapshot), hash(key)

@needs_java
def test_same_in_another_process_and_simulator(env):
    code = ("from a3t.envs.scienceworld import *; from a3t.core import trajectory_id; e = load('easy'); "
            "e.reset(options={'task':e.tasks('train')[7]}); print(trajectory_id(e.exemplar))")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.split()[-1] == trajectory_id(env.exemplar)
    a, b = load('easy'), load('easy')
    for t in env.tasks('train')[:3]:
        first = play(a, t, ['teleport to art studio', 'teleport to kitchen', 'look in table'])
        play(b, t, ['teleport to outside', 'wait1'])
        assert replay_equal(first, play(b, t, first.actions))

@needs_java
def test_forks_have_their_own_simulator():
    "An environment that was made before the fork continues in each child from the same state"
    env = ScienceWorld(EASY)
    task = env.tasks('dev')[0]
    env.reset(options={'task':task})
    env.step('teleport to kitchen')
    async def look(_): return env.step('look around')[0], env.actions
    for answer, actions in gather([look(i) for i in range(2)], processes=2):
        assert 'kitchen' in answer and actions == ('teleport to kitchen', 'look around')
    assert env.actions == ('teleport to kitchen',) and 'kitchen' in env.step('look around')[0]

@needs_java
def test_commands(env):
    obs, info = env.reset(options={'task':EXEMPLAR_TASK})
    assert '\n' not in obs and '\t' not in obs
    assert not any(a.startswith(('reset', 'dunk', 'pour')) for a in info['admissible_actions'])
    info = env.step('teleport to kitchen')[-1]
    moves = [a for a in info['admissible_actions'] if a.startswith('move')]
    assert 'move chair to purple box' in moves and len(info['admissible_actions']) < 200
    assert all(move_parts(a)[1] in ('purple box', 'kitchen') for a in moves)
    before = env.score
    obs, _, _, _, info = env.step('reset task')
    assert not info['valid'] and env.score == before > 0
    assert 'kitchen' in env.step('teleport to kitchen')[0]

@needs_java
def test_names_and_reasons(env):
    goal = env.exemplar.goal
    assert env.things('focus on baby baby wolf') == ['baby wolf'] and env.things('look around') == []
    assert env.things('move egg in inventory to red box') == ['egg in inventory']
    for action, verb in {'teleport to kitchen':'asked', 'teleport to foundry':'go', 'move chair to purple box':'move',
                         'move chair to red box':'other', 'look around':'other', 'focus on chair':'focus'}.items():
        assert env.verb(action, goal) == verb, action
    words = Wording(env.exemplar, env)
    for i,s in enumerate(env.exemplar.steps):
        assert s.reason in words.sentences(replace(env.exemplar, steps=env.exemplar.steps[:i]), s.action), s.action

@needs_java
def test_doctor():
    assert all(c.ok for c in check_data('easy')) and len(check_data('easy')) == 3
    assert not check_data(['fly'])[-1].ok

def test_java_is_missing(monkeypatch):
    monkeypatch.setattr(scienceworld.shutil, 'which', lambda name: None)
    scienceworld._machine.cache_clear()
    with pytest.raises(A3TError, match='needs Java.*install'): simulator()
    bad = check_data()
    assert not bad[0].ok and 'install Java' in bad[0].fix

def test_package_is_missing(monkeypatch):
    monkeypatch.setattr(scienceworld.shutil, 'which', lambda name: '/usr/bin/java')
    monkeypatch.setitem(sys.modules, 'scienceworld', None)
    monkeypatch.setitem(sys.modules, 'scienceworld.constants', None)
    scienceworld._machine.cache_clear()
    with pytest.raises(A3TError, match=r'pip install .a3t-agents\[scienceworld\]'): simulator()

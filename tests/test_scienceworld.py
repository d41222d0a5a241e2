"ScienceWorld: its scores and splits behind the contract, snapshots by replay, messages if Java is missing"
import json, random, re, shutil, subprocess, sys
from dataclasses import replace
import pytest
from a3t.core import A3TError, seed_for, trajectory_id
from a3t.agents import Wording, rollout
from a3t.envs import scienceworld
from a3t.envs.contract import check_environment, replay_equal
from a3t.envs.base import play
from a3t.envs.scienceworld import *
from a3t.envs.scienceworld.script import follow_goal, room_for, wanted
from a3t.models.base import gather
from a3t.scoring.players import Function

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
    assert len(env.manifest([env.tasks('dev')[0], 'train/find-non-living-thing/155', 'x'])) == 1
    assert EXEMPLAR_TASK not in env.tasks('dev'), 'whoever sees the exemplar knows how it is solved'
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

def test_the_script_reads_the_task():
    assert re.match(wanted('find the animal with the longest life span'), 'baby bear')
    assert re.match(wanted('find a(n) non-living thing. First, focus on the thing.'), 'chair')
    assert wanted('Your task is to focus on the green pea, then to focus on the red box.') == 'green\\ pea'
    assert room_for('It is around the workshop.', random.Random(0)) == 'workshop'

@needs_java
def test_the_script_acts_on_what_is_offered(env):
    played = rollout(lambda: env, env.tasks('dev')[::40][:3], Function(follow_goal), limit=1)
    assert all(s.valid for t in played for s in t.steps) and any(t.reward for t in played)

@needs_java
def test_reasons_after_a_pour(env):
    "No action of the exemplar has two names, so nothing is held, whatever was poured into what"
    wording, ex = Wording(env.exemplar, env), env.exemplar
    poured = replace(ex, steps=(*ex.steps[:2], replace(ex.steps[1], action='pour red paint into jug')))
    assert len(env.things('pour red paint into jug')) == 2
    for action in ex.actions: assert wording.sentences(poured, action), action

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

# -- what the simulator refuses, found by playing

def all_commands(env):
    "Commands that the simulator lists here, and its names of things"
    listed = json.loads(env.server.getValidActionObjectCombinationsJSON())['validActions']
    near = {int(n) for n in re.findall(r'ObjectID \((\d+)', within_reach(env.server).toString())}
    valid = {a['action'] for a in listed if near.issuperset(a['obj_ids']) or a['action'].startswith('teleport')}
    return valid - {'reset task'}, sorted({a['action'][9:] for a in listed if a['action'].startswith('focus on ')})

def near_miss(rng, forms, names):
    "A form of the simulator with any things in it, in one of six cases not quite complete"
    form = rng.choice(forms)
    while 'OBJ' in form: form = form.replace('OBJ', rng.choice(names), 1)
    return form.rsplit(' ', 1)[0] if rng.random() < 1/6 else form

def wander(env, task, steps, seed=0):
    "Commands that are listed, and near misses: (command, answer, was it listed?, is the state as before?, valid?)"
    rng, last = random.Random(seed_for('refusals', seed, task)), None
    env.reset(options={'task':task})
    forms = sorted({a for a in env.server.getPossibleActions() if not a.startswith('reset')})
    for _ in range(steps):
        if env.over: env.reset(options={'task':task})
        if last != (before := env.key()): (valid, names), last = all_commands(env), before
        listed = sorted(a for a in valid if not a.startswith(('look', 'focus')))
        act = rng.choice(listed) if rng.random() < .3 else near_miss(rng, forms, [*names, *ROOMS, 'unicorn'])
        obs, *_, info = env.step(act)
        yield act, obs, act in valid, env.key() == before, info['valid']

def shape(answer):
    "The first words of an answer, without the name of a thing after *The*"
    return re.sub(r'^The .*? (is|isn|can|aren|does|doesn)\b', r'The thing \1', answer)[:36]

def check_refusals(env, tasks, steps):
    """An answer is a refusal if nothing changed, it describes nothing, and the simulator lists no command that gets it;
    returns the number of different ones"""
    env.max_steps = 10**9
    found = [x for t in tasks for x in wander(env, t, steps)]
    # or it tells what the agent did; whatever is disconnected counts as done
    described = re.compile('This (?:room|outside)|In your inventory|You (?!can)|.* has been disconnected$')
    accepted = {shape(obs) for _, obs, listed, same, _ in found if listed or not same}
    refused = {shape(x[1]):x for x in found if shape(x[1]) not in accepted and not described.match(x[1])}
    assert not [x for x in refused.values() if x[-1]], 'unknown refusals'
    changed = [x for x in found if not x[3] and not x[4]] # time passes all the same: things grow, or get warm
    assert len(changed) <= 2 + .05*len(found) and not [x for x in changed if x[1].startswith('No known')]
    return len(refused)

@needs_java
def test_refusals_are_known_in_one_house(env):
    two = ScienceWorld(('find-animal', 'chemistry-mix'))
    assert check_refusals(two, ['train/find-animal/0', 'train/chemistry-mix/0'], 30) >= 5

@needs_java
@pytest.mark.slow
def test_every_refusal_is_known():
    "All thirty types, two variations each"
    world = load('all')
    tasks = [f'train/{n}/{v}' for n in task_names() for v in variations(n)['train'][:2]]
    assert check_refusals(world, tasks, 60) >= 20

@pytest.mark.parametrize('answer', [
    "It's not clear how to flush that.", 'Its not clear how to go to table.', "You can't move something into itself.",
    'No known action matches that input.', 'The orange is not openable.', "The box isn't open, so you can't see.",
    'Ambiguous request: Please enter the number', 'The inventory the orange is in is not movable.',
    "That can't be moved there, because the fridge isn't open.", 'The blue light bulb is already activated.',
    'wood cup is already connected, and must be disconnected before it can be connected to something else'])
def test_refusals(answer): assert REFUSED.match(answer)

@pytest.mark.parametrize('answer', [
    'You focus on the parrot egg.', 'a fridge. The fridge door is closed.', 'The fridge is now open.', '',
    'You move the orange to the red box.', 'This room is called the kitchen. In it, you see: the agent',
    'a oven, which is turned off. The oven door is closed.', 'The thermometer measures a temperature of 20 degrees'])
def test_answers_that_are_no_refusals(answer): assert not REFUSED.match(answer)

# -- commands that name things as displayed, cached by state

def test_names_as_displayed():
    text = 'In it, you see: a baby beaver a parrot egg a glass cup A door to the kitchen (that is open) water water'
    names = {1:'baby baby beaver', 2:'egg parrot', 3:'cup', 4:'door to kitchen', 5:'substance in pot', 6:'stone'}
    others = {1:['beaver', 'baby beaver', 'organism'], 2:['parrot', 'parrot egg', 'egg parrot', 'organism'],
              3:['cup', 'glass cup'], 5:['water', 'substance'], 7:['water', 'substance'], 6:['rock']}
    assert shown_names(names, others, text) == {1:'baby beaver', 2:'parrot egg', 4:'door to the kitchen'}

@needs_java
def test_commands_are_those_of_the_simulator(env):
    "Same commands as in its own list; with names as displayed, as many, and all of them are carried out"
    lost = next(t for t in env.tasks('train') if 'longest' in t)
    for room in ('outside', 'kitchen'):
        env.reset(options={'task':lost})
        env.step(f'teleport to {room}')
        valid, _ = all_commands(env)
        near = within_reach(env.server)
        mine = commands(env.server, near)
        assert set(mine) == {a for a in valid if a.startswith(('focus on ', 'pick up ', 'open ', 'move '))}
        assert {f'teleport to {r}' for r in ROOMS} >= {a for a in valid if a.startswith('teleport')}
        shown = commands(env.server, near, text=' '.join(env._seen()))
        assert len(shown) == len(mine) and 'baby baby' not in ' '.join(shown)
        renamed = [a for a in shown if a.startswith('focus on ') and a not in mine]
        assert room == 'kitchen' or renamed
        for a in renamed: assert REFUSED.match(env.server.step(a)) is None

@needs_java
def test_lists_are_cached_by_state(env, monkeypatch):
    "A list from the cache is the one that the simulator gives; the same actions have the same effect, asked or not"
    asked, real = [], ScienceWorld._list
    monkeypatch.setattr(ScienceWorld, '_list', lambda self, near: asked.append(1) or real(self, near))
    way = ['teleport to kitchen', 'open fridge', 'look around', 'teleport to outside', 'teleport to kitchen', 'wait1']
    env.reset(options={'task':EXEMPLAR_TASK})
    lists = [env.step(a)[-1]['admissible_actions'] for a in way]
    assert len(asked) < len(way) + 1
    for i, a in enumerate(way):
        if not i: env.reset(options={'task':EXEMPLAR_TASK})
        env.step(a)
        assert sorted(real(env, within_reach(env.server))) == lists[i]
    assert len(asked) < len(way) + 1
    env.reset(options={'task':env.tasks('train')[0]})
    assert len(env.lists) == 1

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

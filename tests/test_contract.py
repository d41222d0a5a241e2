"""The contract of environments: it holds for all of them, each broken promise is named, and a run asks for no more than
there is"""
import random, re, sys, types
from dataclasses import replace
import numpy as np
import pytest
from a3t.accumulate import append, read
from a3t.agents import Sampler, rollout
from a3t.compose import compose_all
from a3t.core import A3TError, Trajectory
from a3t.doctor import check_environment_needs
from a3t.envs import alfworld, cooking
from a3t.envs.cooking.games import TEXTWORLD_SPLITS
from a3t.envs.alfworld.generator import write_games
from a3t.envs.contract import LEVELS, check_environment, check_needs
from a3t.envs.base import TextEnv, ToyHouse
from a3t.envs.webshop.env import PAGES, WebShop
from a3t.envs.webshop.shop import INSTRUCTIONS, SPLITS, Shop, prepare_shop
from a3t.envs.webshop.generator import generate_shop
from conftest import one_line_error

# -- it holds

def test_the_toy_house():
    check_environment(ToyHouse(), another=ToyHouse())
    for split in ToyHouse.splits: check_environment(ToyHouse(3), split)
    check_environment(ToyHouse(10**9), steps=30)

@pytest.mark.parametrize('engine, needs', [('sim', LEVELS), ('textworld', ('play', 'compose'))])
def test_generated_alfworld_games(tmp_path, engine, needs):
    games = write_games(tmp_path/'g.jsonl.xz', seed=1, train=6, seen=2, unseen=2)
    make = lambda: alfworld.load(str(games), engine, max_steps=20)
    check_environment(make(), needs=needs, steps=100, another=make())
    if engine == 'textworld':
        with pytest.raises(A3TError, match='AlfWorld .*: save is missing: define it, or leave out `explore`'):
            check_environment(make(), steps=20)

def test_generated_shops(tmp_path):
    shop = Shop(prepare_shop(generate_shop(seed=3, products=120, folder=tmp_path), tmp_path/'p'))
    for form, kind, split in zip(PAGES, [*INSTRUCTIONS, 'human'], SPLITS):
        check_environment(WebShop(shop, pages=form, instructions=kind), split,
                          another=WebShop(shop, pages=form, instructions=kind))

def test_cooking():
    games = {f'{s}/both/0000':cooking.EXEMPLAR_GAME for s in TEXTWORLD_SPLITS}
    check_environment(cooking.Cooking(games), another=cooking.Cooking(games))

# -- each broken promise is named

def with_info(**change):
    class Broken(ToyHouse):
        def _info(self, valid): return {k:v for k,v in {**super()._info(valid), **change}.items() if v != 'gone'}
    return Broken

def with_step(change):
    "A toy house whose steps are changed by a function of (house, action, what the toy house gives)"
    class Broken(ToyHouse):
        def step(self, action): return change(self, action, super().step(action))
    return Broken

def with_parts(**parts): return type('Broken', (ToyHouse,), parts)

def offers(change):
    class Broken(ToyHouse):
        def _info(self, valid):
            info = super()._info(valid)
            return dict(info, admissible_actions=change(info['admissible_actions']))
    return Broken

class Shared(ToyHouse):
    "Its state is the class's"
    at = holds = None
    def __setattr__(self, k, v): setattr(Shared, k, v) if k in ('at', 'holds') else super().__setattr__(k, v)

class Leaky(ToyHouse):
    "What it saves is its own dictionary"
    class Moment:
        def __init__(self, house): self.house, self.where = house.key()[:4], house.where
        def __hash__(self): return 0
        def __eq__(self, other): return (self.house, self.where) == (other.house, other.where)
        def __deepcopy__(self, memo):
            res = object.__new__(type(self))
            res.house, res.where = self.house, dict(self.where)
            return res
    def save(self): return self.n, Leaky.Moment(self)
    def restore(self, snapshot):
        self.n, m = snapshot
        (self.thing, self.goal_place, self.at, self.holds), self.where = m.house, m.where
        return self._info(True)

class Frozen(ToyHouse):
    "It reads `max_steps` once"
    def __init__(self):
        super().__init__()
        self.limit = 10
    def step(self, action):
        got = super().step(action)
        return *got[:3], self.n >= self.limit, got[4]

class Gone(ToyHouse):
    "It restores snapshots of its own task only"
    def restore(self, snapshot): return super().restore((snapshot[0], self.thing, self.goal_place, *snapshot[3:]))

def jump(house, action, got):
    "Bad actions are not counted"
    house.n -= not got[-1]['valid']
    return *got[:3], house.n >= house.max_steps, got[4]

def fails(house, action, got): raise ValueError('two\nlines')

def saved(house): return house.n, *ToyHouse.key(house)

rng = random.Random(0)
EX = ToyHouse.exemplar
BROKEN = [
    (with_parts(instruction=' '), 'instruction is empty'),
    (with_parts(exemplar=None), 'exemplar is missing'),
    (with_parts(exemplar=replace(EX, won=False)), 'exemplar must be a success'),
    (with_parts(exemplar=replace(EX, task_type='fly')), 'exemplar has the task type'),
    (with_parts(exemplar=replace(EX, steps=tuple(replace(s, reason='') for s in EX.steps))), 'exemplar has no reasons'),
    (with_parts(exemplar=replace(EX, steps=(replace(EX.steps[0], action='go  to drawer'),))),
     'exemplar: the step .* is parsed differently'),
    (with_parts(exemplar=replace(EX, task='train/mug-desk-00')),
     'exemplar: its task train/mug-desk-00 now plays differently'),
    (with_parts(splits=()), r'splits = \(\) must'),
    (with_parts(task_types=('put', 'put')), 'task_types = .* must be a tuple of different names'),
    (with_parts(tasks=lambda self, split: ToyHouse.tasks(self, split)[::-1]), 'must be sorted'),
    (with_parts(tasks=lambda self, split: ToyHouse.tasks(self, 'train')), 'is in the splits seen and train'),
    (with_parts(tasks=lambda self, split: []), r"tasks\('train'\) is empty"),
    (with_parts(tasks=TextEnv.tasks), 'tasks is missing: define it'),
    (with_parts(manifest=lambda self, tasks: {t:str(rng.random()) for t in tasks}),
     'panel and manifest must give a task the same hash'),
    (with_parts(manifest=lambda self, tasks: dict.fromkeys(tasks, 'x')), 'manifest must leave out ids'),
    (with_parts(panel=lambda self, split, n=0, seed=0: ToyHouse.panel(self, 'train', min(n, 3), seed)),
     'panel.* must raise an A3TError'),
    (with_parts(_task=lambda self, options: 'train/mug-desk-00'), 'reset accepts an unknown task'),
    (with_parts(reset=lambda self, *, seed=None, options=None: ToyHouse.reset(self, options=options)[0]),
     'reset must return'),
    (with_parts(reset=lambda self, *, seed=None, options=None: ('', ToyHouse.reset(self, options=options)[1])),
     'reset shows'),
    *[(with_info(**{k:'gone'}), rf"info\['{k}'\] is missing after reset")
      for k in ('goal', 'task_type', 'won', 'valid', 'admissible_actions')],
    (with_info(goal=''), r"info\['goal'\] after reset is empty"),
    (with_info(task_type='fly'), r"info\['task_type'\] after reset is 'fly'"),
    (with_info(won=0), r"info\['won'\] after reset is 0"),
    (with_parts(exemplar=replace(EX, goal=None)), 'exemplar: its goal is None: make it a text'),
    (with_parts(exemplar=replace(EX, steps=({'action':'go'},))), 'exemplar is missing'),
    (with_parts(__init__=lambda self: setattr(self, 'max_steps', '10')), "max_steps = '10' must be an int, 1 or more"),
    (with_parts(reset=lambda self, *, seed=None, options=None: (ToyHouse.reset(self, options=options),
    ToyHouse.reset(self, options={'task':'train/mug-desk-00'}))[1]),
     r"show the same: reset must begin the task in options\['task'\]"),
    (with_step(lambda house, a, got: (got[0], 10**400, *got[2:])),
     'gives the reward 1000.*: make it a number from 0 to 1'),
    (with_step(lambda house, a, got: (got[0], 1., *got[2:])), 'must be 1 where the task is won, and only there'),
    (with_step(lambda house, a, got: (got[0], got[1] - 1, *got[2:])),
     'gives the reward -1.0: make it a number from 0 to 1'),
    (with_step(lambda house, a, got: (got[0], float('nan'), *got[2:])),
     'gives the reward nan: make it a number from 0 to 1'),
    (with_step(fails), r'raises ValueError \(two lines\)'),
    (with_info(won=True), 'info after reset must have valid=True and won=False'),
    (with_info(admissible_actions=None), 'is None: list the actions'),
    (with_info(admissible_actions='go'), 'must be a list of str'),
    (with_info(admissible_actions=[]), 'is empty in mid-episode'),
    (offers(lambda acts: acts + acts[:1]), 'twice'),
    *[(offers(lambda acts, x=x: [*acts, x]), 'offers .*: offer it with single spaces')
      for x in ('go to  desk', 'go\xa0to desk', 'look ', 'a\nb', 'look] act[go', '\tlook')],
    (with_step(lambda house, a, got: (*got[:4],
                                      dict(got[4], admissible_actions=[*got[4]['admissible_actions'], 'fly to moon']))),
                                      'but .*admissible_actions.* offered it'),
    (with_step(lambda house, a, got: got[:4]), 'must return .observation, reward, terminated, truncated, info'),
    (with_step(lambda house, a, got: ('', *got[1:])), 'an observation must be a text'),
    (with_step(lambda house, a, got: (got[0], None, *got[2:])), 'gives the reward None'),
    (with_step(lambda house, a, got: (got[0], float('nan'), *got[2:])), 'gives the reward nan'),
    (with_step(lambda house, a, got: (*got[:3], int(got[3]), got[4])), 'terminated and truncated must be'),
    (with_step(lambda house, a, got: (*got[:4], dict(got[4], valid=True))), r"must give info\['valid'\]=False"),
    (with_step(lambda house, a, got: got if a in got[4]['admissible_actions'] or got[4]['valid'] else 1/0),
     'raises ZeroDivisionError'),
    (with_step(lambda house, a, got: (*got[:3], False, got[4])), 'does not end the episode after max_steps = 10'),
    (with_step(lambda house, a, got: (*got[:3], house.n >= 3, got[4])),
     'ends the episode after 3 steps, before max_steps = 10'),
    (with_step(jump), 'does not end the episode after max_steps = 10 steps: .* also where all actions were invalid'),
    (with_step(lambda house, a, got: (got[0] + str(rng.random()), *got[1:])), 'the same 1 actions must give the same'),
    (with_parts(reset=lambda self, *, seed=None, options=None: (str(rng.random()),
    ToyHouse.reset(self, options=options)[1])), 'reset with the same seed must give the same'),
    (with_parts(max_steps=None, __init__=lambda self: None), 'max_steps is missing'),
    (with_parts(verb=lambda self, action, goal='': None), 'verb.* gives None'),
    (with_parts(form=lambda self, action, goal='': action), 'form.* make it .text, tuple of names'),
    (with_parts(things=lambda self, action: None), 'things.* make it a list of str'),
    (with_parts(words=lambda self, goal: goal), 'words.* make it a list of str'),
    (with_parts(kind=lambda self, name: 1), 'kind.* make it a str'),
    *[(with_parts(**{m:getattr(TextEnv, m)}), f'{m} is missing: define it') for m in ('save', 'restore', 'key')],
    (with_parts(save=lambda self: list(ToyHouse.save(self))), 'save gives list with parts that cannot be hashed'),
    (with_parts(save=lambda self: (*ToyHouse.save(self), rng.random())), 'save must give the same value'),
    (with_parts(restore=lambda self, m: ToyHouse.restore(self, (0, *m[1:]))),
     'restore does not bring back the full snapshot'),
    (with_parts(restore=lambda self, m: self._info(True)),
     'restore (must return the info of its snapshot|does not bring)'),
    (with_parts(restore=lambda self, m: ToyHouse.restore(self, m) and None), 'restore must return info as a dict'),
    (with_parts(save=lambda self: ToyHouse.save(self)[:5],
                restore=lambda self, m: ToyHouse.restore(self, (*m, *self.where.values()))),
                'restore does not bring|save must give'),
    (with_parts(save=saved, key=saved), 'key changes where an invalid action does nothing'),
    (with_parts(save=saved, key=lambda self: ()), 'key is the same for two states'),
    (Leaky, 'a snapshot from save changes'),
    (Gone, 'from another task'),
    (Frozen, 'max_steps must be read at every step'),
]

@pytest.mark.parametrize('make, message', BROKEN, ids=[s[:50] for _,s in BROKEN])
def test_a_broken_promise_is_named(make, message):
    with pytest.raises(A3TError, match=f'breaks the contract of environments: .*({message})') as e:
        check_environment(make())
    assert '\n' not in str(e.value)

WALK = ('go to drawer', 'go to shelf', 'go to table', 'go to desk')

@pytest.mark.parametrize('change, message', [
    (lambda house, a, got: (*got[:2], False, got[3], dict(got[4], won=a == 'go to desk')),
     'does not end the episode'),
    (lambda house, a, got: (got[0], float(a == 'go to table'), a == 'go to desk', got[3],
                            dict(got[4], won=a == 'go to desk')), r"reward 1.0 and info\['won'\] = False"),
    (lambda house, a, got: (got[0], .9*(a == 'go to desk'), a == 'go to desk', got[3],
                            dict(got[4], won=a == 'go to desk')), r"reward 0.9 and info\['won'\] = True")])
def test_what_a_success_is(change, message):
    class Walk(with_step(change)):
        tasks = lambda self, split: ['a/mug-desk-00'] if split == 'train' else []
        def _info(self, valid): return dict(super()._info(valid), admissible_actions=[WALK[min(self.n, 3)]])
    with pytest.raises(A3TError, match=message): check_environment(Walk(), needs=('play', 'compose'))

def test_two_instances():
    check_environment(Shared())
    with pytest.raises(A3TError, match='two instances disturb each other'):
        check_environment(Shared(), another=Shared())

@pytest.mark.parametrize('env, kw, message',
                         [(ToyHouse, {}, 'it is no TextEnv'), (object(), {}, 'it is no TextEnv'),
                          (ToyHouse(), dict(steps=0), 'steps = 0 is too few')])
def test_what_cannot_be_checked(env, kw, message):
    with pytest.raises(A3TError, match=message): check_environment(env, **kw)

def test_a_validity_of_numpy_can_be_stored(tmp_path):
    class Numpy(ToyHouse):
        def _info(self, valid):
            return {k:np.bool_(v) if isinstance(v, bool) else v for k,v in super()._info(valid).items()}
    trajs = rollout(Numpy, Numpy().tasks('train')[:2], Sampler())
    append(tmp_path/'s', trajs)
    assert [s.valid for t in trajs for s in t.steps] == [s.valid for t in read(tmp_path/'s') for s in t.steps]

def test_an_unknown_level():
    with pytest.raises(A3TError, match="needs = 'fly' is unknown: choose from play, compose, explore"):
        check_environment(ToyHouse(), needs=('fly',))

# -- an open action space: play and evaluate work, sampling is refused when a run is opened

class Quiz(TextEnv):
    "Any text is an answer"
    instruction, task_types, splits = 'Answer.', ('quiz',), ('train', 'test')
    def __init__(self, max_steps=3): self.max_steps = max_steps
    exemplar = None
    def tasks(self, split): return [f'{split}/{n}' for n in range(3)]
    def _info(self, won=False):
        return dict(goal='what is 2 + 2?', task_type='quiz', admissible_actions=None, won=won, valid=True)
    def reset(self, *, seed=None, options=None):
        task = self._task(options)
        if task not in self.tasks(task.split('/')[0]):
            raise A3TError(f'unknown task {task!r}: `tasks(split)` lists them')
        self.n = 0
        return f'The question {task} is on the board.', self._info()
    def step(self, action):
        self.n += 1
        won = action == '4'
        return 'Right.' if won else 'Wrong.', float(won), won, self.n >= self.max_steps, self._info(won)

Quiz.exemplar = Trajectory('quiz/0', 'quiz', 'what is 1 + 1?', 'A question is on the board.',
                           (replace(EX.steps[0], reason='I know it.', action='2', observation='Right.'),), 1., True)

@pytest.fixture
def quiz(monkeypatch):
    module = types.ModuleType('a3t.envs.quiz')
    module.load = lambda max_steps=3: Quiz(max_steps)
    monkeypatch.setitem(sys.modules, 'a3t.envs.quiz', module)
    return dict(CHOICES, environment='quiz')

def test_an_open_space_plays(quiz):
    check_environment(Quiz(), needs=('play',), another=Quiz())
    for needs in (LEVELS, ('play', 'compose')):
        with pytest.raises(A3TError, match='is None: list the actions'): check_environment(Quiz(), needs=needs)
    async def answers(traj, info, seed=0): return 'I can count.', '4'
    assert all(t.won for t in rollout(Quiz, Quiz().tasks('test'), answers))
    assert all(t.won for t in compose_all(Quiz, Quiz().tasks('test'), answers, None, most=1, p=0, invalid_limit=0))
    for run in (lambda: rollout(Quiz, ['test/0'], Sampler()), lambda: compose_all(Quiz, ['test/0'], answers, None,
                                                                                  most=1, p=1)):
        with pytest.raises(A3TError, match='lists no admissible actions to sample from: set p=0'): run()

CHOICES = dict(engine='', explore_engine='', opening='prompted', p=0, invalid_limit=0)

def test_what_a_run_needs(quiz, tmp_path):
    check_needs(quiz)
    for change in (dict(p=.1), dict(invalid_limit=3)):
        with pytest.raises(A3TError, match='the environment quiz lists no actions, so nothing can be sampled: set '
                                           'opening=prompted, p=0 and invalid_limit=0'):
            check_needs(quiz | change)
    with pytest.raises(A3TError, match='the environment quiz lacks save, restore, key: set opening=prompted'):
        check_needs(quiz | dict(opening='sampled'))
    games = str(write_games(tmp_path/'g.jsonl.xz', seed=1, train=6, seen=0, unseen=0))
    alfworld = dict(CHOICES, environment='alfworld', games=games)
    for engine in ('sim', 'textworld'): check_needs(dict(alfworld, explore_engine=engine, p=.1, invalid_limit=3))
    check_needs(dict(alfworld, explore_engine='sim', opening='sampled'))
    with pytest.raises(A3TError, match='alfworld with explore_engine = textworld lacks save, restore, key: set another '
                                       'explore_engine, or opening=prompted'):
        check_needs(dict(alfworld, explore_engine='textworld', opening='sampled'))

def test_a_run_that_cannot_explore_is_refused_when_it_is_opened(project):
    games = write_games(project.path/'g.jsonl.xz', seed=1, train=6, seen=2, unseen=2)
    sets = ('environment=alfworld', f'games={games}', 'explore_engine=textworld', 'opening=sampled')
    one_line_error(project.a3t('run', 'smoke', '--name', 'a', '--set', *sets),
                   'explore_engine = textworld lacks save, restore, key: set another explore_engine, or '
                   'opening=prompted')
    assert not project.run('a').exists()
    told = project.a3t('doctor', 'smoke', '--set', *sets)
    assert told.returncode == 1 and re.search(r'BAD +environment alfworld +opening = sampled returns to saved '
                                              r'states.*\n.*→ set another explore_engine, or opening=prompted',
                                              told.stdout), told.stdout

def test_the_doctor_asks_without_making_games():
    class Settings(dict): __missing__ = lambda self, key: ''
    (good,) = check_environment_needs(Settings(CHOICES, environment='cooking', opening='sampled',
                                               generator=dict(train=10**6)))
    assert good.ok

"""Cooking games: made by TextWorld, played as its logic plays them; splits, losses, snapshots, names, files"""
from dataclasses import replace
import pytest
from a3t.agents import Wording
from a3t.core import A3TError, content_hash, read_json
from a3t.envs import cooking
from a3t.envs.cooking import kitchen
from a3t.envs.contract import check_environment
from a3t.envs.base import play
from a3t.envs.cooking.kitchen import *
from a3t.envs.cooking import *
from a3t.opening.explore import explore, shrink

SIZES = dict(train=5, seen=5, unseen=5)

@pytest.fixture(scope='session')
def file(tmp_path_factory): return games_file(tmp_path_factory.mktemp('games'), **SIZES)

@pytest.fixture
def env(file): return Cooking(read_json(file))

def at(env, task, actions):
    env.reset(options={'task':task})
    for a in actions: res = env.step(a)
    return res

def of_level(env, level): return next(t for t in env.tasks('train') if f'/{level}/' in t)

def test_contract(env):
    for split in env.splits: check_environment(env, split, steps=20)

@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('split', ['train', 'unseen'])
def test_textworld_says_the_same(level, split):
    game = textworld_game(level, len(level), split)
    assert compare(game, level, seed=0) >= 4 # the walkthrough
    assert sum(compare(game, level, seed=s) for s in (1, 2, 3)) > 30

def test_a_difference_is_found(monkeypatch):
    monkeypatch.setattr(Kitchen, '_heats', lambda self, f: 'raw' in self.foods[f])
    with pytest.raises(AssertionError, match='only in TextWorld.*cook'):
        [compare(textworld_game('cook', s), 'cook', seed=s) for s in range(1, 9)]

def test_walkthroughs_win_at_their_end_only(env):
    for task in env.games:
        t = play(env, task, env.games[task]['walkthrough'])
        assert t.won and t.reward == 1 and all(s.valid for s in t.steps), task
        scores = [at(env, task, t.actions[:i])[1] for i in range(1, len(t)+1)]
        assert scores == sorted(scores) and max(scores[:-1]) < 1

def test_splits_share_no_game_and_unseen_asks_for_new_things(env):
    assert [len(env.tasks(s)) for s in env.splits] == [5, 5, 5]
    assert len({content_hash({k:v for k,v in g.items() if k != 'walkthrough'}) for g in env.games.values()}) == 15
    old = kitchen._textworld().FOOD_PREPARATIONS_SPLITS['train']
    for task in env.games:
        known = all((cook, cut) in old.get(f, ()) for f,cook,cut in env.games[task]['recipe'])
        assert known == (not task.startswith('unseen/')), task
    assert {env.games[t]['level'] for t in env.tasks('train')} == set(env.task_types)

def test_how_to_lose(env):
    task = of_level(env, 'both')
    way, food = env.games[task]['walkthrough'], env.games[task]['recipe'][0][0]
    cook = next(a for a in way if a.startswith('cook'))
    cut = next(a for a in way if a.split()[0] in CUT.values())
    other = next(v for v in CUT.values() if v != cut.split()[0]) + ' ' + cut.split(' ', 1)[1]
    for end in ([*way[:way.index(cook)+1], cook], [*way[:way.index(cut)], other],
                [*way[:way.index(cook)+1], f'eat {food}']):
        obs, reward, over, _, info = at(env, task, end)
        assert over and not info['won'] and 0 < reward < 1 and obs.endswith('You lost.'), end
        again = env.step('look')
        assert again[1] == reward and not again[-1]['valid'] and not again[-1]['won']

def test_meal_needs_all_that_the_recipe_says(env):
    task = of_level(env, 'both')
    way = env.games[task]['walkthrough']
    last = max(i for i,a in enumerate(way) if cooking._PROCESS.fullmatch(a)) # the last thing that the recipe says
    for i in range(len(way) - 2):
        assert ('prepare meal' in at(env, task, way[:i+1])[-1]['admissible_actions']) == (i >= last), way[i]

def test_moments(env):
    task = of_level(env, 'rooms')
    way = env.games[task]['walkthrough']
    env.reset(options={'task':task})
    for a in way[:4]: env.step(a)
    snapshot, key = env.save(), env.key()
    end = [env.step(a)[:2] for a in way[4:]]
    hash(snapshot), hash(key)
    env.reset(options={'task':of_level(env, 'take')})
    info = env.restore(snapshot)
    assert env.key() == key and set(info['admissible_actions']) >= {way[4]}
    env.step('look')
    assert env.key() == key and env.save() != snapshot # the number of steps does not count as a state
    env.restore(snapshot)
    assert [env.step(a)[:2] for a in way[4:]] == end and env.kitchen.won

def test_names(env):
    goal = 'prepare a meal with red potato and eat it. Directions: dice the red potato, fry the red potato.'
    assert env.words(goal) == ['red potato'] == env.things('take red potato from patio table')
    assert (env.things('cook red potato with stove') == ['fry the red potato']
            and env.things('cook red potato with oven') == ['roast the red potato'])
    assert env.form('cook red potato with oven') == ('cook {} with oven', ('red potato',
                                                     )) and env.form('prepare meal') == ('prepare meal', ())
    for action, verb in {'cook red potato with stove':'follow', 'cook red potato with oven':'other',
                         'cook potato with stove':'other', 'take red potato from fridge':'take',
                         'take knife':'take knife',
                         'take salt':'other', 'open barn door':'open door', 'open fridge':'open', 'go east':'go',
                         'eat meal':'eat', 'eat red potato':'other', '':'other', 'take':'other'}.items():
        assert env.verb(action, goal) == verb, action
    assert foods_of('prepare a meal with egg, a salt and a red potato and eat it.') == ['egg', 'salt', 'red potato']

def test_reasons_name_what_was_seen(env):
    words = Wording(env.exemplar, env)
    for task in env.games:
        t = play(env, task, env.games[task]['walkthrough'])
        for i,s in enumerate(t.steps):
            seen = f'{t.goal} {t.observation} ' + ' '.join(x.observation for x in t.steps[:i]) + ' meal'
            said = words.sentences(replace(t, steps=t.steps[:i]), s.action)
            assert said and all(n in seen for n in env.things(s.action) if n in said[0]), (s.action, said)
            assert not any('zucchini' in r or 'oak door' in r for r in said)

def test_exemplar_is_our_own(env):
    assert env.exemplar.won and env.exemplar.reward == 1 and 'zucchini' not in kitchen._textworld().FOODS
    words = Wording(env.exemplar, env)
    for i,s in enumerate(env.exemplar.steps):
        assert s.reason in words.sentences(replace(env.exemplar, steps=env.exemplar.steps[:i]), s.action)

def test_exploring_finds_and_shrinks(env):
    task = of_level(env, 'cook')
    found, n = explore(env, task, 20_000)
    assert n < 20_000 and play(env, task, shrink(env, task, found)).won

def test_files(file, monkeypatch):
    before = file.stat().st_mtime_ns
    assert games_file(file.parent, **SIZES) == file and file.stat().st_mtime_ns == before
    one = dict(train=1, seen=0, unseen=0)
    a, b = games_file(file.parent, **one), games_file(file.parent, **one, seed=1)
    assert a != b and read_json(a) != read_json(b) and read_json(a) == generate_games(**one)
    with pytest.raises(A3TError, match='unknown settings.*rooms'): games_file(file.parent, rooms=3)
    with pytest.raises(A3TError, match="no cooking games of level 'grill'"): generate_games(levels=['grill'])
    with pytest.raises(A3TError, match='unknown task'): Cooking({}).reset(options={'task':'train/cut/0'})
    with pytest.raises(A3TError, match='reset'): Cooking({}).step('look')

def test_doctor(tmp_path, monkeypatch):
    monkeypatch.setenv('A3T_DATA', str(tmp_path))
    one = dict(train=1, seen=1, unseen=1)
    assert all(c.ok for c in check_data(generator=one))
    env = load(generator=one)
    assert [len(env.tasks(s)) for s in env.splits] == [1, 1, 1] and '3 games' in check_data(generator=one)[-1].found
    file = next((tmp_path/'games').glob('cooking-*.json'))
    file.write_text(file.read_text()[:100])
    bad = check_data(generator=one)[-1]
    assert not bad.ok and bad.fix == f'rm {file}'
    assert not check_data(generator=dict(rooms=3))[-1].ok

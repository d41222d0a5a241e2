"The generator of AlfWorld games: official format, plausible contents, splits that mean something, every game winnable"
import importlib.util, json, os, re, subprocess, sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from a3t.core import A3TError
from a3t.envs.alfworld import generator
from a3t.envs.alfworld import rooms
from a3t.envs.alfworld.generator import games_file, generate_games, make_rooms, split_tasks, unsolved, write_games
from a3t.envs.alfworld.rooms import KINDS, can_hold, make_room
from a3t.envs.alfworld.house import House
from a3t.envs.alfworld.simulator import Simulator
from a3t.envs.alfworld.engine import AlfWorld
from a3t.envs.alfworld.games import load_games, parse_facts
from a3t.envs.alfworld.tasks import ALL_TYPES, NO_GOALS, room_tasks
from a3t.envs.base import play

def facts(game):
    "The facts of a game, as written"
    return parse_facts(game.problem, lower=False)

SMALL = dict(train=60, seen=24, unseen=24)
SETTINGS = [dict(), dict(receptacles=(), objects=()), dict(receptacles=(5, 5), objects=(4, 4), rooms=2, unseen_rooms=1),
            dict(receptacles=(12, 30), objects=(20, 50), shared=.4, hidden=1.),
            dict(hidden=0., shared=0., types=('heat', 'look'))]

@pytest.fixture(scope='module', params=range(len(SETTINGS)), ids=str)
def made(request): return SETTINGS[request.param], generate_games(request.param, **SMALL, **SETTINGS[request.param])

def room_number(game): return game.task.split('/')[1].rsplit('-', 1)[1]

@pytest.fixture(scope='module')
def official():
    "Some real games"
    for source in (None, Path(__file__).parents[2]/'shared/data/alfworld/games.jsonl.xz'):
        try: games = load_games(source)
        except A3TError: continue
        return [games[t] for t in games.tasks('train')[::40]]
    pytest.skip('no official AlfWorld games here')

def test_every_thing_lies_where_it_may(made):
    settings, games = made
    for game in games.values():
        f = facts(game)
        kinds = {i:t.removesuffix('Type') for i,t in f['receptacleType'] | f['objectType']}
        init = game.problem.split('(:goal')[0]
        assert len(kinds) == sum(init.count(f'({p} ') for p in ('receptacleType', 'objectType')), 'no name twice'
        assert max(Counter(o for o,_ in f['inReceptacle']).values()) == 1, 'a thing lies in one place'
        location = dict(f['receptacleAtLocation'])
        for o,r in f['inReceptacle']:
            assert can_hold(kinds[r], kinds[o]) or kinds[o] == 'DeskLamp'
            assert dict(f['objectAtLocation'])[o] == location[r]
        assert {l for _,l in f['atLocation']}.isdisjoint(location.values())
        movable = {o for o, in f['pickupable']}
        lo, hi = settings.get('objects', (8, 14)) or (1, 99)
        assert lo <= len(movable) <= max(hi, 5) and movable <= {o for o,_ in f['inReceptacle']}
        lo, hi = settings.get('receptacles', (6, 10)) or (4, 60)
        assert lo <= len(location) <= hi

def test_nothing_is_done_at_the_start(made):
    for game in made[1].values():
        _, obj, _, goal, _ = game.task.split('/')[1].split('-')
        f = facts(game)
        kinds = {i:t.removesuffix('Type') for i,t in f['receptacleType'] | f['objectType']}
        at = [kinds[r] for o,r in f['inReceptacle'] if kinds[o] == obj]
        assert len(at) >= (2 if game.task_type == 'two' else 1)
        if game.task_type in ('pick', 'two', 'cool'): assert goal not in at
        if game.task_type == 'cool': assert 'Fridge' not in at and not f['isCool']
        assert not f['isHot'] and not f['isClean'] and not f['isOn'] and not f['opened'] and goal not in NO_GOALS
        assert (obj.lower() in game.goal and goal.lower() in game.goal
                and f'{obj}Type' in game.problem.split('(:goal')[1])

def test_every_walkthrough_wins_on_the_simulator(made):
    assert not unsolved(made[1].values())

def test_a_broken_game_is_found():
    game, = generate_games(0, train=1, seen=0, unseen=0, types=('heat',)).values()
    assert not unsolved([game])
    for bad in (dict(walkthrough=game.walkthrough[:-1]), dict(walkthrough=('look at me', *game.walkthrough)),
                dict(walkthrough=(*game.walkthrough, 'look')),
                dict(problem=game.problem.replace('(heatable', '(coolable'))):
        assert unsolved([replace(game, **bad)]) == [game.task]

@pytest.mark.parametrize('settings,n', [({}, 24), (dict(receptacles=(), objects=()), 6)], ids=['small', 'natural'])
def test_the_engine_plays_every_type(settings, n):
    games = generate_games(11, train=0, seen=0, unseen=n, rooms=2, **settings)
    env, types = AlfWorld(games), Counter()
    for task in games.tasks('unseen'):
        game = games[task]
        traj = play(env, task, game.walkthrough)
        assert traj.won and len(traj) == len(game.walkthrough) and all(s.valid
                                                                       for s in traj.steps) and traj.goal == game.goal
        sim = Simulator(House(game.problem, game.goal))
        assert [sim.room(), *map(sim.step, game.walkthrough)] == [traj.observation,
                                                                  *(s.observation for s in traj.steps)]
        assert play(env, task, game.walkthrough[:-1]).won is False
        types[traj.task_type] += 1
    assert set(types.values()) == {n//6} and len(types) == 6

def test_the_stock_engine_plays_them():
    games = generate_games(12, train=3, seen=0, unseen=0)
    env = AlfWorld(games, fast=False)
    assert all(play(env, t, games[t].walkthrough).won for t in games.tasks('train'))

def test_splits(made):
    settings, games = made
    folder = lambda split: {t.split('/')[1] for t in games.tasks(split)}
    rooms = {s:{room_number(games[t]) for t in games.tasks(s)} for s in ('train', 'seen', 'unseen')}
    assert not folder('train') & folder('seen'), 'a seen task is new'
    assert not rooms['unseen'] & (rooms['train'] | rooms['seen']), 'an unseen room is new'
    places = defaultdict(set)
    for g in games.values():
        places[room_number(g)].add(json.dumps([sorted(facts(g)[k])
                                               for k in ('receptacleType', 'receptacleAtLocation', 'openable')]))
    assert all(len(v) == 1 for v in places.values()), 'a room is the same in all its games'
    assert len({json.dumps(sorted(facts(g)['inReceptacle']))
                for g in games.values()}) == len(games), 'no contents twice'
    for split,n in SMALL.items():
        types = Counter(games[t].task_type for t in games.tasks(split))
        assert sum(types.values()) == n and set(types) == set(settings.get('types',
            ALL_TYPES)) and max(types.values()) - min(types.values()) <= 1

def test_hidden_and_shared():
    def share(**kw):
        inside, opens = 0, 0
        places, spots = 0, 0
        for g in generate_games(5, train=60, seen=0, unseen=0, **kw).values():
            f = facts(g)
            inside += len(f['inReceptacle'])
            opens += sum((r,) in f['openable'] for _,r in f['inReceptacle'])
            at = dict(f['receptacleAtLocation'])
            places += len(at)
            spots += len(set(at.values()))
        return opens/inside, 1 - spots/places
    assert share(hidden=0., shared=0.)[0] < .03 and share(shared=0.)[1] == 0
    assert share(hidden=1.)[0] > .4 and .05 < share()[1] < .15 < share(shared=.5)[1]

def test_same_seed_same_bytes(tmp_path):
    a, b = (write_games(tmp_path/f'{x}.jsonl.xz', 7, train=12, seen=6, unseen=6).read_bytes() for x in 'ab')
    assert a == b != write_games(tmp_path/'c.jsonl.xz', 8, train=12, seen=6, unseen=6).read_bytes()
    games = generate_games(7, train=12, seen=6, unseen=6)
    assert {k:g.hash for k,g in load_games(tmp_path/'a.jsonl.xz').items()} == {k:g.hash for k,g in games.items()}
    assert games.tasks('train') == generate_games(7, train=12, seen=0,
                                                  unseen=30).tasks('train'), 'splits do not depend on each other'

FINGERPRINT = ("from a3t.envs.alfworld.generator import generate_games; from a3t.core import content_hash; "
               "print(content_hash([g.hash for g in generate_games(7, train=12, seen=6, unseen=6).values()])[:16])")

def test_same_games_in_every_process():
    """Games do not depend on the order of sets. Where this fails because the generator changed, raise `VERSION` and
    update the number"""
    run = lambda n: subprocess.run([sys.executable, '-c', FINGERPRINT], env={**os.environ, 'PYTHONHASHSEED':n},
                                   capture_output=True, text=True, check=True).stdout.strip()
    assert (generator.VERSION, run('1')) == (2, '7ced32e2469c4749')

def test_games_file(tmp_path):
    file = games_file(tmp_path, 1, train=6, seen=6, unseen=6)
    stamp = file.stat().st_mtime_ns
    assert games_file(tmp_path, 1, train=6, seen=6, unseen=6) == file and file.stat().st_mtime_ns == stamp
    assert games_file(tmp_path, 1, train=7, seen=6, unseen=6) != file
    assert games_file(tmp_path, 1, train=6, seen=6, unseen=6,
                      objects=[8, 14]) == file, 'a list from a settings file is the same'

@pytest.mark.parametrize('bad',
                         [dict(receptacles=(3, 9)), dict(receptacles=(9, 6)), dict(objects=(0, 3)), dict(rooms=0),
                          dict(unseen_rooms=0), dict(rooms=99),
                                 dict(types=()), dict(types=('pick', 'cook')), dict(hidden=2), dict(shared=-1),
                                 dict(train=-1), dict(train=0, seen=0, unseen=0)])
def test_bad_settings_are_one_line(bad):
    with pytest.raises(A3TError) as e: generate_games(0, **bad)
    assert '\n' not in str(e.value)

def test_unknown_setting(tmp_path):
    with pytest.raises(A3TError, match='unknown settings'): games_file(tmp_path, 0, room=3)

def test_furniture_is_what_the_package_lists():
    "The table can be counted again, over all floor plans but those of the benchmark's unseen games"
    folder = Path(importlib.util.find_spec('alfworld').submodule_search_locations[0])/'gen/layouts'
    for kind,base in KINDS.items():
        plans = [n for n in range(base+1, base+31) if n not in (10, 219, 308, 424)]
        has, number = Counter(), defaultdict(list)
        for n in plans:
            has.update(set(json.loads((folder/f'FloorPlan{n}-objects.json').read_text())))
            ids = json.loads((folder/f'FloorPlan{n}-openable.json').read_text())
            for t,k in Counter(i.split('|')[-1 if 'Basin' in i else 0] for i in ids).items(): number[t].append(k)
        for t,(share,mean) in rooms.FURNITURE[kind].items():
            assert abs(has[t]/len(plans) - share) < .006, (kind, t)
            assert t in rooms.SET_BY_HAND or abs(sum(number[t])/len(number[t]) - mean) < .06, (kind, t)
        for t in rooms.THINGS[kind][0]: assert has[t]/len(plans) >= .9, (kind, t)

def test_the_smallest_rooms_have_all_tasks():
    for seed in range(30):
        rooms = {k:make_room(seed, k, n+1, (5, 5)) for k,n in KINDS.items()}
        assert all(room_tasks(rooms['kitchen'], t) for t in ALL_TYPES if t != 'look')
        assert room_tasks(rooms['bedroom'], 'look') and room_tasks(rooms['bathroom'], 'clean')
        for r in rooms.values():
            assert room_tasks(r, 'pick') and room_tasks(r, 'two')
            assert not set(split_tasks(seed, r, 'pick', 'train')) & set(split_tasks(seed, r, 'pick', 'seen'))
    assert len(make_rooms(0, 3, 2)['train']) == 12 and len(make_rooms(0, 3, 2)['unseen']) == 8

def test_layout_is_the_official_one(official):
    "Sections, declarations and goals as in real games"
    def sections(problem):
        res = []
        for line in problem.split('\n'):
            m = re.match(r'\s*\((\w+) .*\)$', line)
            kind = m[1] if m else re.sub(r'\S+ - ', '* - ', line)
            if '(:goal' in line: return res
            if not res or res[-1] != kind: res.append(kind)
    empty = lambda s: [x for x in s if x.strip()]
    declared = lambda g, k: set(re.findall(rf'^\s*(\w+) - {k}$', g.problem, re.M))
    mine = list(generate_games(0, **SMALL).values())
    order = {k:i for i,k in enumerate(generator.FACTS)}
    for g in official + mine:
        facts = [s for s in empty(sections(g.problem)) if s in order]
        assert facts == sorted(facts, key=order.get)
    layout = lambda g: [s for s in sections(g.problem) if s not in order and 'define' not in s
                        and s != 'inReceptacleObject']
    assert {tuple(layout(g)[:9]) for g in mine} == {tuple(layout(g)[:9]) for g in official}
    for k in ('otype', 'rtype'): assert declared(mine[0], k) == declared(official[0], k)
    goals = lambda games: {re.sub(r'(\w+)Type\b', 'X', g.problem[g.problem.index('(:goal'):]) for g in games}
    assert goals(mine) <= goals(official)
    def sentence(g):
        _, obj, _, goal, _ = g.task.split('/')[1].split('-')
        return re.sub(rf'\b{goal.lower()}\b', 'R', re.sub(rf'\b{obj.lower()}\b', 'O', g.goal))
    assert len({sentence(g) for g in mine}) == 12 and {sentence(g) for g in mine} == {sentence(g) for g in official}

def test_tasks_are_plausible(official):
    "What official games ask for can be asked for here"
    for g in official:
        _, obj, _, goal, number = g.task.split('/')[1].split('-')
        kind = list(KINDS)[max(0, int(number)//100 - 1)]
        assert obj in sum(rooms.THINGS[kind], []) and (goal == 'DeskLamp' or goal in rooms.FURNITURE[kind]), (kind, obj,
                                                                                                              goal)
        assert goal not in NO_GOALS

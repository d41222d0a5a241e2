"The simulator against AlfWorld's engine: strange houses, real games, and its own invariants"
import os, random
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from a3t.core import A3TError
from a3t.files import read_json
import numpy as np
from a3t.envs.alfworld.simulator import AlfSim, Simulator
from a3t.envs.alfworld.batch import AlfSims
from a3t.envs.alfworld.house import House, read_rules, read_words
from a3t.envs.alfworld.parity import compare, near_miss, parity, parity_report, parity_words, recheck, transcript
from a3t.envs.alfworld.generator import generate_games
from a3t.envs.alfworld.engine import AlfWorld
from a3t.envs.alfworld.games import (
    SPLITS, Game, Games, load_games, mini_games, official_domain, official_grammar, task_type)
from a3t.envs.contract import check_environment
from a3t.envs.base import play

RECEPTACLES = ('Fridge', 'Microwave', 'SinkBasin', 'Cabinet', 'Drawer', 'CounterTop', 'Shelf')
OBJECTS = ('Apple', 'Mug', 'Knife', 'ButterKnife', 'DeskLamp', 'Bowl', 'Bread', 'Sink', 'Window')
GOALS = dict(
    pick_and_place_simple='(exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) (objectType ?o '
                          '{o}Type) (receptacleType ?r {r}Type))))',
    pick_clean_then_place_in_recep='(exists (?r - receptacle) (exists (?o - object) (and (cleanable ?o) (objectType ?o '
                                   '{o}Type) (receptacleType ?r {r}Type) (isClean ?o) (inReceptacle ?o ?r))))',
    pick_heat_then_place_in_recep='(exists (?r - receptacle) (exists (?o - object) (and (heatable ?o) (objectType ?o '
                                  '{o}Type) (receptacleType ?r {r}Type) (isHot ?o) (inReceptacle ?o ?r))))',
    pick_cool_then_place_in_recep='(exists (?r - receptacle) (exists (?o - object) (and (coolable ?o) (objectType ?o '
                                  '{o}Type) (receptacleType ?r {r}Type) (isCool ?o) (inReceptacle ?o ?r))))',
    look_at_obj_in_light='''(exists (?ot - object ?r - receptacle ?a - agent ?l - location)
        (and (objectType ?ot DeskLampType) (toggleable ?ot) (isToggled ?ot)
        (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))
        (exists (?o - object ?a - agent) (and (objectType ?o {o}Type) (holds ?a ?o)))''',
    pick_two_obj_and_place='''(exists (?r - receptacle) (exists (?o1 - object)
        (and (objectType ?o1 {o}Type) (receptacleType ?r {r}Type) (inReceptacle ?o1 ?r)
        (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 {o}Type) (receptacleType ?r {r}Type)
        (inReceptacle ?o2 ?r))))))''')

def strange_game(seed):
    """A small game with everything that official games have rarely or never: places that share a location, things in
    two places or elsewhere than their place, things on the floor, locked-up lamps, nested things, things that start
    hot, sliced or open"""
    rng = random.Random(seed)
    kind, some = list(GOALS)[seed % 6], lambda p: rng.random() < p
    locs = [f'loc_bar_{i}' for i in range(5)]
    recs = [(f'Sink_bar_{i:02}_bar_SinkBasin' if t == 'SinkBasin' else f'{t}_bar_{i:02}', t, rng.choice(locs))
            for i,t in enumerate([*RECEPTACLES[:4], *rng.choices(RECEPTACLES, k=4)])]
    objs = [(f'{t}_bar_{i:02}', t)
            for i,t in enumerate(['Apple', 'Apple', 'DeskLamp', 'Knife', *rng.choices(OBJECTS, k=5)])]
    init = [f'(atLocation agent1 {rng.choice(locs + ["start"]*2)})']
    for r,t,l in recs:
        init += [f'(receptacleType {r} {t}Type)',
                 f'(receptacleAtLocation {r} {l})'] + [f'(openable {r})']*some(.5) + [f'(opened {r})']*some(.1)
        init += [f'(canContain {t}Type {o}Type)' for o in OBJECTS if some(.7) or o == 'Apple']
    for o,t in objs:
        init.append(f'(objectType {o} {t}Type)')
        homes = rng.choices(recs, k=rng.choice((1, 1, 1, 2))) if some(.9) or t in ('Apple', 'DeskLamp') else []
        init += [f'(inReceptacle {o} {r})' for r,*_ in homes]
        if some(.9): init.append(f'(objectAtLocation {o} {homes[0][2] if homes and some(.8) else rng.choice(locs)})')
        init += [f'({a} {o})' for a in ('pickupable', 'cleanable', 'heatable', 'coolable') if some(.7)
                 or t == 'Apple'] + [f'(sliceable {o})']*(t in ('Apple', 'Bread'))
        init += [f'(toggleable {o})']*(t == 'DeskLamp') + [f'({f} {o})'
            for f in ('isReceptacleObject', 'isHot', 'isSliced', 'isClean', 'isCool') if some(.25) and t != 'Apple']
    init += [f'(inReceptacleObject {a} {b})' for a,b in zip([o for o,_ in objs], [o for o,_ in objs[1:]]) if some(.2)]
    types = [f'{x}Type - rtype' for x in RECEPTACLES] + [f'{x}Type - otype' for x in OBJECTS]
    objects = ['agent1 - agent', 'start - location'] + [f'{l} - location' for l in locs] + [f'{r} - receptacle'
        for r,*_ in recs] + [f'{o} - object' for o,_ in objs]
    target = rng.choice(recs)[1]
    problem = '(define (problem strange) (:domain alfred) (:objects\n' + '\n'.join(objects
        + types) + '\n)\n(:init\n' + '\n'.join(dict.fromkeys(init)) + '\n)\n(:goal (and ' + GOALS[kind].format(
        o='Apple', r=target) + ')))'
    goal = f'goal {seed}.'
    return Game(f'train/{kind}-Apple-None-{target}-0/trial_{seed}', goal, (), problem, official_domain(),
                official_grammar(goal))

def strange_games(seeds):
    return Games('strange houses', {g.task:g for g in map(strange_game, seeds)}, lambda task, game: game)

def no_difference(result): assert not result['differences'], result['first']

def test_both_engines_agree_on_strange_houses():
    no_difference(parity(strange_games(range(12)), episodes=2, steps=40))

def test_the_stock_engine_agrees_too():
    no_difference(parity(strange_games([4]), episodes=1, steps=20, fast=False))

def real_games():
    "Published games where they are there"
    for place in filter(None, (os.environ.get('ALFWORLD_DATA'), 'data/alfworld', '../shared/data/alfworld',
                               '../../shared/data/alfworld')):
        try: return load_games(Path(__file__).parent.parent/place)
        except A3TError as e: assert 'no AlfWorld games at' in str(e)
    pytest.skip('no published games here')

def one_of_each(games, n):
    "n games of each type, taken from all splits in turn"
    rng, res = random.Random(0), []
    for kind in AlfSim.task_types:
        lists = [[t for t in games.tasks(s) if task_type(t) == kind] for s in SPLITS]
        for i in range(n):
            if lists[i % 3]: res.append(rng.choice(lists[i % 3]))
    return sorted(set(res))

def test_both_engines_agree_on_published_games():
    games = real_games()
    no_difference(parity(games, one_of_each(games, 3), episodes=1, steps=30))

def test_both_engines_agree_on_generated_games():
    games = generate_games(seed=3, train=6, seen=0, unseen=6)
    assert {task_type(t) for t in games} == set(AlfSim.task_types)
    no_difference(parity(games, episodes=1, steps=30))

def test_walkthroughs_of_published_games_win():
    games = real_games()
    env = AlfSim(games)
    for task in one_of_each(games, 30):
        traj = play(env, task, games[task].walkthrough)
        assert traj.won and all(s.valid for s in traj.steps) and len(traj) == len(games[task].walkthrough), task

def test_a_difference_is_noticed():
    games, sim = mini_games(), AlfSim(mini_games())
    task = games.tasks('train')[0]
    class Careless(Simulator):
        def _reach(self, r): return self.house.spot_of[r] == self.loc
    sim._opened = lambda t: (games[t].task_type, Careless(House(games[t].problem, games[t].goal)))
    found = compare(AlfWorld(games), sim, task, episodes=0)['differences']
    assert (found[0]['commands'] == ['go to cabinet 1']
            and found[0]['difference']['admissible_actions']['extra'] == ['take mug 1 from cabinet 1'])

def test_parity_goes_on_where_it_stopped(tmp_path, monkeypatch):
    games, file, played = mini_games(), tmp_path/'parity.jsonl', []
    import a3t.envs.alfworld.parity as module
    true = module.compare
    monkeypatch.setattr(module, 'compare', lambda real, sim, task, **kw: played.append(task)
                        or true(real, sim, task, **kw))
    tasks = list(games)
    first = parity(games, tasks[:2], episodes=1, steps=5, file=file)
    file.write_text(file.read_text() + '{"task": "cut sho')
    file.write_text(file.read_text().replace(tasks[0], 'another task')) # game 0 is unknown now, the last line is cut
    again = parity(games, tasks, episodes=1, steps=5, file=file)
    assert played == [*tasks[:2], tasks[0], tasks[2]]
    assert (first['games'], again['games'], again['differences']) == (2, 3, 0) and again['steps'] == first['steps']*3//2
    # now all is there
    assert parity(games, tasks, episodes=1, steps=5, file=file)['steps'] == again['steps'] and len(played) == 4
    parity(games, tasks, episodes=1, steps=6, file=file) # other amounts: played again
    assert len(played) == 7
    with pytest.raises(A3TError, match='cannot write'):
        parity(games, tasks, episodes=1, steps=5, file=tmp_path/'no such folder'/'x')

def test_finished_games_are_held_against_the_simulator_of_today(tmp_path, monkeypatch):
    games, file = mini_games(), tmp_path/'parity.json'
    first = parity_report(games, file, episodes=1, steps=5, stock=1, progress=False)
    assert read_json(file) == first and first['splits'] == dict(train=1, seen=1, unseen=1) and (first['stock']['games'],
        first['stock']['differences']) == (1, 0)
    task = list(games)[0]
    assert first['fast']['digests'].split()[0] == transcript(AlfSim(games, 5), task, episodes=1, steps=5)[:8]
    monkeypatch.setattr(Simulator, '_inventory', lambda self, *_: 'You carry nothing.')
    monkeypatch.setattr('a3t.envs.alfworld.simulator._ALONE',
                        dict(look=Simulator._look, inventory=Simulator._inventory, help=Simulator._help))
    changed = parity_report(games, file, episodes=1, steps=5, progress=False)
    assert changed['fast']['differences'] >= 3 and 'You carry nothing.' in parity_words(changed)
    monkeypatch.undo()
    assert parity_report(games, file, episodes=1, steps=5,
                         progress=False)['fast'] | dict(seconds=0) == first['fast'] | dict(seconds=0)

def report(name): return read_json(Path(__file__).parent.parent/'data'/'results'/f'parity-{name}.json')

def test_reports_are_without_differences():
    for name, least in (('published', 3760), ('generated', 300)):
        r = report(name)
        assert (r['fast']['games'] == len(r['fast']['digests'].split()) >= least and r['stock']['games'] >= 10
                and (r['episodes'], r['steps']) == (2, 50))
        assert (r['fast']['differences'] == r['stock']['differences'] == 0
                and r['fast']['invalid'] > r['fast']['steps']/10)

def test_200_published_games_sound_as_the_engine_did_then():
    games = real_games()
    assert not recheck(report('published'), games, one_of_each(games, 34))

def test_a_recheck_notices(monkeypatch):
    games = mini_games()
    r = dict(steps=20, episodes=1, fast=parity(games, episodes=1, steps=20))
    assert not recheck(r, games)
    with pytest.raises(A3TError, match='here are 1'):
        recheck(r, Games('one', {list(games)[0]:0}, lambda t, _: games[t]))
    monkeypatch.setattr(Simulator, '_see', lambda self, r: 'You see nothing.')
    assert recheck(r, games) == list(games)

@pytest.mark.slow
def test_all_published_games_sound_as_the_engine_did_then():
    games = real_games()
    assert not recheck(report('published'), games)

@pytest.mark.slow
def test_both_engines_agree_on_120_published_games():
    games = real_games()
    no_difference(parity(games, one_of_each(games, 21), episodes=1, steps=30, seed=1))

@pytest.fixture(scope='module')
def pair():
    "Both engines with the same generated games, some of which share a place or hide what is looked for"
    games = generate_games(seed=6, train=6, seen=0, unseen=0, shared=.4, hidden=.5)
    return [env(games, max_steps=10**6) for env in (AlfWorld, AlfSim)]

@settings(max_examples=40, deadline=None)
@given(which=st.integers(0, 5), said=st.lists(st.one_of(st.integers(0, 10**6), st.text(max_size=20)), max_size=30))
def test_both_engines_agree_on_any_sequence(pair, which, said):
    "Whatever is said, both engines answer alike: text, admissible commands, flags"
    (real, sim), task = pair, list(pair[0].games)[which]
    a, b = [env.reset(options={'task':task}) for env in pair]
    for x in said: # a number stands for an admissible command or a near miss of it
        assert (a, real.raw) == (b, sim.raw)
        c = a[-1]['admissible_actions']
        command = x if isinstance(x, str) else c[x % len(c)]
        if not isinstance(x, str) and x % 4 == 0: command = near_miss(random.Random(x), command, sim.sim.house)
        a, b = [env.step(command) for env in pair]
    assert (a, real.raw) == (b, sim.raw)

# ---- the simulator alone

def test_contract(): check_environment(AlfSim(mini_games()))

def test_dialects_spaces_and_case():
    env, (task, *_) = AlfSim(mini_games()), mini_games().tasks('train')
    env.reset(options={'task':task})
    for c in ('go to cabinet 1', ' open cabinet 1\n', 'take mug 1 from cabinet 1'): assert env.step(c)[-1]['valid']
    snapshot = env.save()
    for c, valid in (('put mug 1 in/on cabinet 1', True), ('put mug 1 on cabinet 1', True),
                     ('move mug 1 to cabinet 1', True), ('Move mug 1 to cabinet 1', False),
                     ('move mug 1  to cabinet 1', False), ('move mug to cabinet 1', False), ('go to cabinet 1', False),
                     ('help', True)):
        env.restore(snapshot)
        assert env.step(c)[-1]['valid'] == valid, c

def test_step_before_reset_and_unknown_task():
    env = AlfSim(mini_games())
    with pytest.raises(A3TError, match='reset'): env.step('look')
    with pytest.raises(A3TError, match='no game'): env.reset(options={'task':'train/x/y'})

def test_episode_ends_at_the_step_limit():
    env = AlfSim(mini_games(), max_steps=3)
    env.reset(options={'task':env.tasks('train')[0]})
    assert [env.step('nonsense')[3] for _ in range(3)] == [False, False, True]

def test_snapshots_go_from_one_environment_to_another():
    games = strange_games(range(3))
    a, b, tasks = AlfSim(games), AlfSim(games), list(games)
    snapshots = []
    for t in tasks:
        _, info = a.reset(options={'task':t})
        for i in range(10): *_, info = a.step(info['admissible_actions'][i % len(info['admissible_actions'])])
        snapshots.append((a.save(), a.key(), info, a.step('look')))
    for m, key, info, looked in snapshots[::-1]:
        assert hash(m) and b.restore(m) == {**info,
                                            'valid':True} and b.key() == key and b.save() == m and b.step(
                                            'look') == looked

def test_unknown_rules_words_and_goals_are_refused():
    game = mini_games()[mini_games().tasks('train')[0]]
    with pytest.raises(A3TError, match='rules'):
        House(game.problem, game.goal, game.domain.replace('(not (holdsAny ?a))', ''), game.grammar)
    with pytest.raises(A3TError, match='words'):
        House(game.problem, game.goal, game.domain, game.grammar.replace('You open the', 'You unlock the'))
    with pytest.raises(A3TError, match='issleepy'): House(game.problem.replace('isClean', 'isSleepy'), game.goal)
    with pytest.raises(A3TError, match='form'): House(game.problem.replace('(inReceptacle ?o ?r)', ''), game.goal)
    with pytest.raises(A3TError, match='two places'):
        House(game.problem.replace('(:init', '(:init\n(receptacleAtLocation Cabinet_bar_x '
                                             'loc_bar_0)\n(receptacleAtLocation Cabinet_bar_x loc_bar_1)'), game.goal)
    for n in (0, 100, len(game.problem)//2, len(game.problem)-80):
        with pytest.raises(A3TError): House(game.problem[:n], game.goal)

def test_other_comments_and_goals_do_not_matter_to_the_rules():
    assert read_rules(official_domain() + '; a remark') == read_rules(official_domain())
    assert read_words(official_grammar('put some mug on desk.')) == read_words(official_grammar())

commands = st.one_of(st.integers(0, 10**6), st.text(max_size=30))

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 40), said=st.lists(commands, max_size=40))
def test_any_commands(seed, said):
    "Never raises; what is admissible, and only that, has an effect or an answer; replay and restore give the same"
    game = strange_game(seed)
    house = House(game.problem, game.goal)
    sim, twin, trace = Simulator(house), Simulator(House(game.problem, game.goal)), []
    for x in said:
        admissible, before = sim.commands(), sim.save()
        if isinstance(x, int): # a number stands for an admissible command or a near miss of it
            c = admissible[x % len(admissible)]
            if x % 3 == 0: c = near_miss(random.Random(x), c, house)
        else: c = x
        answer = sim.step(c)
        assert (answer != 'Nothing happens.') == (c.strip() in admissible)
        if answer == 'Nothing happens.': assert sim.save() == before
        after = sim.save(), sim.won, sim.commands()
        sim.restore(before)
        assert (sim.save(), sim.commands()) == (before, admissible)
        assert sim.step(c) == answer and (sim.save(), sim.won, sim.commands()) == after
        trace.append((c, answer, *after))
    assert [(c, twin.step(c), twin.save(), twin.won, twin.commands()) for c,*_ in trace] == trace

# ---- many at once

def test_together_or_alone_an_episode_is_the_same():
    games = generate_games(seed=4, train=12, seen=0, unseen=6)
    tasks, envs, rngs = games.tasks('train'), AlfSims(games, 30, max_steps=20), [random.Random(i) for i in range(30)]
    obs, infos = envs.reset(options=dict(tasks=tasks))
    alone, ended = [AlfSim(games, max_steps=20) for _ in range(30)], 0
    for i,e in enumerate(alone):
        assert e.reset(options={'task':infos['task'][i]})[0] == obs[i] and infos['task'][i] == tasks[i % 12]
    over = [False]*30
    for _ in range(45):
        said = [rng.choice(a) if rng.random() < .8 else 'nonsense' for rng,a in zip(rngs, infos['admissible_actions'])]
        obs, reward, terminated, truncated, infos = envs.step(said)
        for i,e in enumerate(alone):
            one = e.step(said[i]) if not over[i] else (*e.reset(options={'task':infos['task'][i]}), None)
            if over[i]: one = one[0], 0., False, False, one[1]
            assert one == (obs[i], reward[i], terminated[i], truncated[i], {k:infos[k][i] for k in one[-1]})
            over[i], ended = one[2] or one[3], ended + (one[2] or one[3])
    assert ended >= 60

def test_equal_lists_and_wrong_amounts():
    games = mini_games()
    envs = AlfSims(games, 8)
    with pytest.raises(A3TError, match='no seen games'):
        AlfSims(Games('none', {games.tasks('train')[0]:0}, lambda t, _: games[t]), 2, split='seen').reset()
    assert len({tuple(a) for a in envs.reset(seed=1)[1]['admissible_actions']}) == 1
    with pytest.raises(A3TError, match='3 actions for 8'): envs.step(['look']*3)
    obs, *_ = envs.step(np.array(['look']*8))
    assert isinstance(obs, tuple) and envs.observation_space.contains(obs) and envs.action_space.contains(('look',)*8)

def test_a_task_is_drawn_where_none_is_named():
    games = generate_games(seed=4, train=12, seen=0, unseen=6)
    env, drawn = AlfSim(games), []
    for i in range(2): drawn.append([env.reset(seed=5) and env.task] + [env.reset() and env.task for _ in range(20)])
    assert drawn[0] == drawn[1] and 6 < len(set(drawn[0])) <= 12 and set(drawn[0]) <= set(games.tasks('train'))

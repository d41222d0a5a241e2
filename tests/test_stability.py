"What is new in each round, and the rule that says when to stop"
import itertools, random
from collections import Counter
from dataclasses import replace
import pytest
from a3t.quality.alarms import success_falls
from a3t.core import Step, Trajectory
from a3t.files import read_json
from a3t.evaluate import fisher_test
from a3t.envs.base import TextEnv, ToyHouse, play
from a3t.opening import first_successes
from a3t.runs.report import write_report
from a3t.quality.stability import (ADVICE, Explored, coverage, distinct_n, judge, reachable, stability_records,
                                   verb_entropy, verdict, what_it_did)
from test_report import make_run

def traj(task, *actions, won=True, reason='because'):
    return Trajectory(task, 'put', 'g', 'o', tuple(Step(reason, a, 'ok') for a in actions), float(won), won)

def test_distinct_n():
    assert distinct_n(['a b', 'a b']) == .5 and distinct_n(['a b c']) == 1 and distinct_n(['a',
                                                                                           '']) == 0 == distinct_n([])
    assert distinct_n(['a A a'], 1) == 1/3

def test_verb_entropy_counts_the_policys_actions_only():
    t = traj('t', 'go x', 'take y')
    assert verb_entropy([t]) == 1 and verb_entropy([]) == 0
    assert verb_entropy([replace(t, steps=(t.steps[0], replace(t.steps[1], actor='sampled')))]) == 0

def test_reachable_states_against_brute_force():
    env, task = ToyHouse(), ToyHouse().tasks('train')[0]
    def brute(depth):
        found, ways = set(), [()]
        for _ in range(depth + 1):
            new = []
            for way in ways:
                _, info = env.reset(options={'task':task})
                for a in way: *_, info = env.step(a)
                found.add(env.key())
                new += [(*way, a) for a in info['admissible_actions']]
            ways = new
        return found
    for depth in range(4): assert reachable(env, task, depth) == brute(depth)

def test_coverage():
    env, task = ToyHouse(), ToyHouse().tasks('train')[0]
    one = play(env, task, ['go to desk'])
    known = {}
    assert coverage(env, [one], known) == 2/len(reachable(env, task)) == coverage(env, [one, one],
                                                                                  known) and list(known) == [task]
    ways = [()]
    for _ in range(3): ways = [(*way, a) for way in ways for a in _after(env, task, way)]
    everything = [play(env, task, way) for way in ways]
    assert coverage(env, everything, known) == 1.
    assert coverage(env, [], known) is None
    class NoSaves(ToyHouse): save = TextEnv.save
    assert coverage(NoSaves(), [one], {}) is None

def _after(env, task, way):
    _, info = env.reset(options={'task':task})
    for a in way: *_, info = env.step(a)
    return info['admissible_actions']

def test_records():
    a, b, c = traj('a', 'go'), traj('b', 'go'), traj('c', 'look', won=False)
    first, second = stability_records([[a, a, b], [a, c, replace(c, task='d', won=True)]],
                                      {0:[a, c], 1:[replace(a, won=False), replace(c, won=True)]})
    assert (first['sequences'], first['duplicates'], first['solved'], first['new']) == (1, pytest.approx(1/3), 2, 2)
    assert (second['sequences'], second['duplicates'], second['solved'], second['new']) == (2, pytest.approx(1/3), 3, 1)
    assert (first['n'], first['successes'], second['won'], second['lost']) == (2, 1, 1, 1) and 'won' not in first
    assert first['distinct_reasons'] == pytest.approx(1/3)

def test_records_of_a_round_that_found_nothing():
    rec, = stability_records([[]], {}, ToyHouse())
    assert (rec['trajectories'] == rec['sequences'] == rec['solved'] == 0
            and rec['duplicates'] is rec['coverage'] is rec['distinct_2'] is None)
    assert verdict([rec]) == 'too few to tell'

def test_records_of_rounds_on_other_tasks_are_not_paired():
    a, b, c = (traj(t, 'go') for t in 'abc')
    first, second, third = stability_records([[a]]*3, {0:[a, b], 1:[a, c], 2:[a, replace(b, won=False)]})
    assert 'won' not in second and second['against'] == [] and second['panel'] != first['panel'] == third['panel']
    assert 'won' not in third and third['against'] == [dict(round=0, won=0, lost=1)]

def test_a_round_that_has_not_explored_keeps_its_number():
    a = traj('a', 'go')
    assert [r['round'] for r in stability_records([None, [a], None, [a]], {1:[a], 3:[a]})] == [1, 3]

# -- the verdict

def series(*wins, n=60, new=(40, 0, 0, 0, 0), pairs=()):
    res = [dict(round=i, n=n, successes=k, solved=100, new=m) for i,(k, m) in enumerate(zip(wins, new))]
    for r,(won, lost) in zip(res[1:], pairs): r |= dict(won=won, lost=lost)
    return res

@pytest.mark.parametrize('records,want', [
    ([], 'too few to tell'), (series(30), 'too few to tell'), (series(1, 2, n=3), 'too few to tell'),
    (series(3, 3, 3, n=3), 'too few to tell'),
    (series(0, 0, n=12), 'nothing learned'), (series(0, n=12), 'nothing learned'),
    (series(0, 0, 0, 0), 'nothing learned'),
    (series(0, 1, n=12), 'too few to tell'), (series(2, 0, n=2), 'too few to tell'), (series(0, 8, n=12), 'improving'),
    (series(8, 0, n=12), 'degrading'),
    (series(37, 43), 'too few to tell'), (series(37, 43, pairs=[(13, 7)]), 'too few to tell'),
    (series(43, 43, pairs=[(7, 7)]), 'too few to tell'),
    (series(6, 24), 'improving'), (series(36, 46), 'too few to tell'), (series(36, 46, pairs=[(13, 3)]), 'improving'),
    (series(36, 42, pairs=[(6, 0)]), 'improving'), (series(36, 41, pairs=[(5, 0)]), 'too few to tell'),
    (series(42, 36, pairs=[(0, 6)]), 'degrading'), (series(6, 36, 36, 18), 'degrading'),
    (series(36, 30), 'too few to tell'),
    (series(6, 36, 32), 'improving'), # still better than the first, and not surely worse than the best
    (series(*[36]*3, pairs=[(1, 1)]*2), 'saturated'), (series(*[36]*3, pairs=[(9, 9)]*2), 'too few to tell'),
    (series(*[36]*3), 'too few to tell'),
    (series(*[36]*2, pairs=[(0, 0)]), 'too few to tell'),
    (series(*[36]*3, new=(40, 10, 0), pairs=[(1, 1)]*2), 'too few to tell'),
    (series(*[59]*3, new=(40, 10, 9), pairs=[(0, 0)]*2), 'saturated'), (series(*[300]*3, n=500), 'saturated'),
    (series(*[60]*3), 'saturated'),
    (series(*[12]*3, n=12, pairs=[(0, 0)]*2), 'too few to tell'),
    (series(*[24]*3, n=24, pairs=[(0, 0)]*2), 'saturated'),
    (series(300, 500, 510, n=1000, pairs=[(200, 0), (10, 0)]), 'improving'), # not saturated: round 0 is far
    (series(100, 850, 860, 880, n=1000, pairs=[(750, 0), (10, 0), (20, 0)]), 'improving'), # by 3 points, but surely
])
def test_verdict(records, want):
    assert verdict(records) == want
    assert judge(records)['advice'] == ADVICE[want] and judge(records)['why']

def test_the_best_of_many_rounds_is_chosen_so_its_p_counts_more():
    "7 lost tasks against 0 suffice beside one round (p = 1.6%), not as the best of four (6.2%)"
    first = dict(round=0, n=60, successes=37, solved=9, new=9)
    last = lambda r: dict(round=r, n=60, successes=30, solved=9, new=0, against=[dict(round=0, won=0, lost=7)])
    assert verdict([first, last(1)]) == 'degrading'
    assert verdict([first, *[dict(first, round=r, successes=36) for r in (1, 2, 3)], last(4)]) == 'too few to tell'

def test_direct_pairs_win_over_sums_of_changes():
    "Changes that take each other back widen the sum: 20 won and 10 lost, though 10 won and none lost"
    records = series(30, 35, 40, pairs=[(10, 5), (10, 5)])
    assert verdict(records) == 'too few to tell'
    records[2]['against'] = [dict(round=0, won=10, lost=0)]
    assert verdict(records) == 'improving'

def test_rounds_on_another_panel_are_not_compared():
    few, many = series(6, n=60)[0], dict(series(90, n=100)[0], round=1)
    assert verdict([few, many]) == 'too few to tell'
    assert verdict([dict(few, panel='a'), dict(few, round=1, successes=50, panel='b')]) == 'too few to tell'
    assert verdict([dict(few, panel='a'), dict(few, round=1, successes=50, panel='b'),
                    dict(few, round=2, successes=40, panel='a')]) == 'improving'

def test_a_round_without_evaluation_is_passed_over():
    "The pairs of a missing round are missing too: then the counts are compared unpaired"
    records = series(6, 30) + [dict(round=2, solved=100, new=0)]
    assert verdict(records) == 'improving'
    assert verdict([records[0], dict(round=1, solved=9, new=0),
                    dict(records[1], round=2, won=0, lost=0)]) == 'improving'

def test_the_verdict_agrees_with_the_alarm():
    for before, now in itertools.product(range(0, 61, 6), repeat=2):
        falls = success_falls([dict(successes=k, n=60) for k in (before, now)])
        if falls: assert verdict(series(before, now, pairs=[(30, 30)])) == 'degrading'

def test_chance_alone_seldom_gets_a_verdict():
    "Three rounds of equal skill: rarely called better or worse"
    rng, said = random.Random(0), Counter()
    for _ in range(400):
        played = {r:[traj(str(t), 'go', won=rng.random() < .5) for t in range(60)] for r in range(3)}
        said[verdict(stability_records([[traj('a', 'go')]]*3, played))] += 1
    assert said['improving'] < 20 and said['degrading'] < 20 and said['too few to tell'] > 360

def test_fisher_test_by_hand():
    assert fisher_test(3, 3, 0, 3) == pytest.approx(2/20) and fisher_test(0, 5, 0, 5) == 1 == fisher_test(2, 4, 2, 4)
    assert fisher_test(4, 4, 0, 4) == pytest.approx(2/70) and fisher_test(0, 4, 4, 4) == pytest.approx(2/70)
    assert 0 < fisher_test(5000, 10_000, 5300, 10_000) < .001

def test_the_report_has_them(tmp_path):
    report = write_report(run := make_run(tmp_path/'run'))
    assert [r['round'] for r in report['stability']['rounds']] == [0,
        1] and report['stability']['verdict'] == 'too few to tell'
    assert ('Verdict' in (run/'report.html').read_text()
            and read_json(run/'report.json')['stability'] == report['stability'])

def test_no_coverage_where_steps_are_dear():
    "ScienceWorld's states are not counted: that took hours"
    env = ToyHouse()
    one = next(t for task in env.tasks('train') for t in first_successes(env, task))
    assert coverage(env, [one], {}) > 0
    env.enumerable = False
    assert coverage(env, [one], {}) is None
    scienceworld = pytest.importorskip('a3t.envs.scienceworld')
    assert not scienceworld.ScienceWorld.enumerable

def test_records_of_streams():
    "Trajectories pass once, and the first tasks by id are covered whatever their order"
    env = ToyHouse()
    made = [[t for task in env.tasks('train') for t in first_successes(env, task)],
            [t for task in env.tasks('train')[:7] for t in first_successes(env, task, seed=1)]]
    played = {r:[replace(t, source='policy') for t in ts] for r,ts in enumerate(made)}
    want = stability_records(made, played, env)
    assert stability_records((iter(m) for m in made), {r:iter(p) for r,p in played.items()},
                             env) == want and want[0]['coverage'] > 0
    assert want[1]['duplicates'] == pytest.approx(1
        - len({what_it_did(t) for t in made[1]} - {what_it_did(t) for t in made[0]})/len(made[1]))

def test_first_tasks_are_kept(monkeypatch):
    monkeypatch.setattr('a3t.quality.stability.MOST_TASKS', 3)
    ts = [traj(task, 'go', str(i)) for i,task in enumerate('hcgabhacdbe')]
    kept = Explored(iter(ts), ToyHouse()).near()
    assert sorted(t.task for t in kept) == list('aabbcc') and all(t in ts for t in kept)

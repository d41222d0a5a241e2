"What is new in each round, and the rule that says when to stop"
from dataclasses import replace
import pytest
from a3t.core import Step, Trajectory, read_json
from a3t.envs.base import TextEnv, ToyHouse, play
from a3t.explore import first_successes
from a3t.report import write_report
from a3t.stability import Explored, coverage, distinct_n, reachable, stability_records, states_of, verb_entropy, verdict, what_it_did
from test_report import make_run

def traj(task, *actions, won=True, reason='because'): return Trajectory(task, 'put', 'g', 'o', tuple(Step(reason, a, 'ok') for a in actions), float(won), won)

def test_distinct_n():
    assert distinct_n(['a b', 'a b']) == .5 and distinct_n(['a b c']) == 1 and distinct_n(['a', '']) == 0 == distinct_n([])
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
    assert coverage(env, [one], known) == 2/len(reachable(env, task)) == coverage(env, [one, one], known) and list(known) == [task]
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
    first, second = stability_records([[a, a, b], [a, c, replace(c, task='d', won=True)]], {0:[a, c], 1:[replace(a, won=False), replace(c, won=True)]})
    assert (first['sequences'], first['duplicates'], first['solved'], first['new']) == (1, pytest.approx(1/3), 2, 2)
    assert (second['sequences'], second['duplicates'], second['solved'], second['new']) == (2, pytest.approx(1/3), 3, 1)
    assert (first['n'], first['successes'], second['won'], second['lost']) == (2, 1, 1, 1) and 'won' not in first
    assert first['distinct_reasons'] == pytest.approx(1/3)

def test_records_of_a_round_that_found_nothing():
    rec, = stability_records([[]], {}, ToyHouse())
    assert rec['trajectories'] == rec['sequences'] == rec['solved'] == 0 and rec['duplicates'] is rec['coverage'] is rec['distinct_2'] is None
    assert verdict([rec]) == 'too early'

def series(*rates, new=None): return [dict(round=i, n=100, successes=round(100*p), solved=100, new=k) for i,(p, k) in enumerate(zip(rates, new or [50] + [0]*len(rates)))]

@pytest.mark.parametrize('rates,new,want', [
    ((), None, 'too early'), ((.5,), None, 'too early'),
    ((.1, .4), None, 'improving'), ((.1, .4, .6), None, 'improving'),
    ((.6, .2), None, 'degrading'), ((.1, .6, .6, .3), None, 'degrading'), ((.6, .5), None, 'improving'),
    ((.6, .6, .6), None, 'saturated'), ((1., 1., 1.), None, 'saturated'), ((.6, .58, .6, .59), None, 'saturated'),
    ((.6, .6, .6), (50, 0, 20), 'improving'), ((.5, .5, .6), None, 'improving')])
def test_verdict(rates, new, want): assert verdict(series(*rates, new=new)) == want

def test_a_round_without_evaluation_is_passed_over():
    assert verdict(series(.1, .5) + [dict(round=2, solved=100, new=0)]) == 'improving'

def test_the_report_has_them(tmp_path):
    report = write_report(run := make_run(tmp_path/'run'))
    assert [r['round'] for r in report['stability']['rounds']] == [0, 1] and report['stability']['verdict'] in ('improving', 'too early')
    assert 'Verdict' in (run/'report.html').read_text() and read_json(run/'report.json')['stability'] == report['stability']

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
    made = [[t for task in env.tasks('train') for t in first_successes(env, task)], [t for task in env.tasks('train')[:7] for t in first_successes(env, task, seed=1)]]
    played = {r:[replace(t, source='policy') for t in ts] for r,ts in enumerate(made)}
    want = stability_records(made, played, env)
    assert stability_records((iter(m) for m in made), {r:iter(p) for r,p in played.items()}, env) == want and want[0]['coverage'] > 0
    assert want[1]['duplicates'] == pytest.approx(1 - len({what_it_did(t) for t in made[1]} - {what_it_did(t) for t in made[0]})/len(made[1]))

def test_first_tasks_are_kept(monkeypatch):
    monkeypatch.setattr('a3t.stability.MOST_TASKS', 3)
    ts = [traj(task, 'go', str(i)) for i,task in enumerate('hcgabhacdbe')]
    kept = Explored(iter(ts), ToyHouse()).near()
    assert sorted(t.task for t in kept) == list('aabbcc') and all(t in ts for t in kept)

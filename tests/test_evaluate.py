"Rates, intervals and panels, against independent arithmetic"
import math
import pytest
from hypothesis import given, strategies as st
from a3t.agents import ReAct
from a3t.core import A3TError, Trajectory
from a3t.envs.base import ToyHouse
from a3t.envs.panel import Panel
from a3t.evaluate import (
    accumulated_score, check_panel, graded, mean_interval, plot_rates,
    plot_types, score_table, summarise, trials, wilson)
from a3t.models.scripted import ScriptedModel

def traj(task, won=True, kind='pick', reward=None):
    return Trajectory(task, kind, 'g', 'o', (), float(won) if reward is None else reward, won)

@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_its_equation(sn):
    "Wilson's bounds are the rates p with |p̂ − p| = z·sqrt(p(1−p)/n)"
    s, n = sn
    lo, hi = wilson(s, n)
    assert 0 <= lo <= s/n <= hi <= 1 and lo < hi
    for p in (lo, hi):
        if 0 < p < 1: assert abs(s/n - p) == pytest.approx(1.96*math.sqrt(p*(1 - p)/n), abs=1e-9)

def test_wilson_known_values():
    assert wilson(81, 263) == pytest.approx((.2553, .3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(15, 148) == pytest.approx((.0624, .1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, .1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((.0061, .1718), abs=1e-4)

def test_wilson_mirrors():
    for s in range(11):
        lo, hi = wilson(s, 10)
        assert wilson(10 - s, 10) == pytest.approx((1 - hi, 1 - lo))

@pytest.mark.parametrize('s,n', [(-1, 3), (4, 3), (1, 0)])
def test_wilson_refuses(s, n):
    with pytest.raises(A3TError): wilson(s, n)

def test_summarise_counts_by_type():
    s = summarise([traj('a'), traj('b', False), traj('c', True, 'cool'), traj('d', False, 'cool', .5)])
    assert (s['n'], s['successes'], s['rate'], s['reward']) == (4, 2, .5, .625)
    assert {k:(v['successes'], v['n']) for k,v in s['by_type'].items()} == {'pick':(1, 2), 'cool':(1, 2)}
    assert s['ci95'] == list(wilson(2, 4)) and set(s['by_type']['cool']) == {'n', 'successes', 'rate', 'ci95', 'reward',
                                                                             'reward_ci95'}

def test_empty_and_doubled_are_errors():
    with pytest.raises(A3TError, match='no episodes'): summarise([])
    with pytest.raises(A3TError, match='doubled a'): summarise([traj('a'), traj('a', False)])
    with pytest.raises(A3TError, match='no rounds'): accumulated_score([])

def test_many_missing_tasks_are_counted():
    with pytest.raises(A3TError, match='missing t0, t1, t2 and 7 more'): check_panel([], [f't{i}' for i in range(10)])

def test_accumulated_is_best_over_rounds():
    a = accumulated_score([[traj('a'), traj('b', False, reward=.3)], [traj('a', False), traj('b', False, reward=.6)],
                           [traj('b'), traj('a')]])
    assert (a['successes'], a['by_round'], a['reward']) == (2, [.5, .5, 1.], 1.)
    a = accumulated_score([[traj('a'), traj('b', False, reward=.3)], [traj('a', False), traj('b', False, reward=.6)]])
    assert a['reward'] == .8 and a['rate'] == .5

@pytest.mark.parametrize('second', [['a'], ['a', 'b', 'c'], ['a', 'b', 'b'], ['a', 'x']])
def test_accumulated_refuses_other_panels(second):
    with pytest.raises(A3TError): accumulated_score([[traj('a'), traj('b')], [traj(t) for t in second]])

def test_panels():
    env = ToyHouse()
    a, b = env.panel('seen', 10, 0), env.panel('seen', 10, 1)
    assert list(a) == sorted(a) and len(a) == 10 and a != b and set(a) <= set(env.tasks('seen'))
    assert a.hash == Panel(dict(reversed(a.items()))).hash != b.hash and a.hash != Panel({**a, list(a)[3]:'0'*64}).hash
    for bad in ('Seen', '', 'valid_unseen'):
        with pytest.raises(A3TError, match='no split'): env.panel(bad)
    with pytest.raises(A3TError, match='doubled: x'): Panel([('x', '1'), ('x', '1')])

def test_tables_and_plots_stand_gaps():
    s = {'r0':summarise([traj('a')]), 'r1':summarise([traj('a', False, 'cool')])}
    assert score_table(s).loc['r0', 'cool'] == '–'
    plot_rates(s, {'random':s['r1']})
    plot_types(s)

# -- mean rewards

@pytest.mark.parametrize('rewards', [[0.]*70 + [1.]*30, [i/99 for i in range(100)], [.5]*90 + [0.]*10])
def test_the_interval_of_a_mean_is_students(rewards):
    n, m = len(rewards), sum(rewards)/len(rewards)
    half = 1.984*(sum((r - m)**2 for r in rewards)/(n - 1)/n)**.5 # t with 99 degrees of freedom
    # means of 100 successes go in steps of .01
    assert mean_interval(rewards) == pytest.approx((m - half, m + half), abs=.015)
    assert mean_interval(rewards) == mean_interval(rewards[::-1])

def test_equal_rewards_say_nothing_about_their_spread():
    assert mean_interval([0.]*100) == wilson(0, 100) and mean_interval([1.]*9) == wilson(9, 9)
    lo, hi = mean_interval([.5]*10)
    assert 0 < lo < .5 < hi < 1

def test_a_graded_reward_stands_beside_success():
    s = {'r0':summarise([traj('a'), traj('b', False, reward=.5)])}
    assert score_table(s).loc['r0', 'reward %'] == 75 and graded(s)
    assert 'reward %' not in score_table({'r0':summarise([traj('a'), traj('b', False)])})
    assert plot_rates(s, what='reward').get_ylabel() == 'mean reward'

def test_progress_says_which_wave_it_is(tmp_path, capsys):
    lm, tasks = ScriptedModel(lambda prompt: 'act[look]'), ToyHouse().tasks('train')[:5]
    def said(name, **kw):
        trials(tmp_path/name, tasks, ToyHouse, lm, ReAct(lm), **kw)
        return capsys.readouterr().err
    bars = said('a', wave=2, progress='episodes')
    assert all(f'episodes, wave {i} of 3' in bars for i in (1, 2, 3)) and 'wave 4' not in bars
    bars = said('b', progress='episodes')
    assert 'episodes' in bars and 'wave' not in bars
    assert said('c') == ''

def test_episodes_in_a_wrong_folder(tmp_path):
    "A store that is not there yet is made; another folder is refused before anything is played"
    lm, tasks = ScriptedModel(lambda prompt: 'act[look]'), ToyHouse().tasks('train')[:2]
    assert len(trials(tmp_path/'new'/'store', tasks, ToyHouse, lm, ReAct(lm))) == 2
    with pytest.raises(A3TError, match='is not a trajectory store, but holds store'):
        trials(tmp_path/'new', tasks, None, lm, ReAct(lm))

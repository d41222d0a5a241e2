"AlfWorld's engines are timed on equal answers; the targets hold"
import sys
import pytest
from a3t.bench.alfworld import (
    ENGINES, batch_rate, bench_commands, bench_engines, bench_tasks, processes_rate, sending_share)
from a3t.envs.alfworld.generator import generate_games, write_games
from a3t.envs.alfworld.simulator import AlfSim
from a3t.envs.alfworld.games import task_type

@pytest.fixture(scope='module')
def games(): return generate_games(seed=5, train=12, seen=6, unseen=6)

def test_tasks_and_commands_are_the_same_each_time(games):
    tasks = bench_tasks(games, 2)
    assert len(tasks) == 12 == len(set(tasks)) and tasks == bench_tasks(games, 2)
    assert {task_type(t) for t in tasks} == set(AlfSim.task_types)
    commands = bench_commands(games, tasks[0], 40)
    assert len(commands) == 40 and commands == bench_commands(games, tasks[0], 40)
    assert tuple(commands[:3]) == games[tasks[0]].walkthrough[:3]

def test_engines_that_differ_are_not_timed(games, monkeypatch):
    rows = bench_engines(games, bench_tasks(games)[:1], 5, ('fast', 'simulator'))
    assert all(r['load'] > 0 and r['step'] > 0 and len(r['step_ms']) == 1 for r in rows.values())
    class Wrong(AlfSim):
        def step(self, action): return ('Nothing.', *super().step(action)[1:])
    monkeypatch.setitem(ENGINES, 'simulator', Wrong)
    with pytest.raises(AssertionError, match='differ'):
        bench_engines(games, bench_tasks(games)[:1], 5, ('fast', 'simulator'))

def test_many_episodes(games, tmp_path):
    assert all(r > 0 for r in batch_rate(games, 20, 3)) and 0 < sending_share(games, 20) < 10
    assert processes_rate(write_games(tmp_path/'g.jsonl.xz', seed=5, train=12, seen=6, unseen=6), 2, 5, 5) > 0

@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason='the stock engine fails on Python 3.13')
def test_targets(games):
    rows = bench_engines(games, bench_tasks(games)[:3], 20)
    times = lambda engine, what: rows['stock'][what]/rows[engine][what]
    assert times('simulator', 'step') >= 1000 and times('simulator', 'load') >= 300 and times('fast', 'step') >= 15

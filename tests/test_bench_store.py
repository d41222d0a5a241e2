"The benchmark of stores compares like with like"
from collections import Counter
import pytest
from a3t.accumulate import append, entries, read, round_statistics, trajectory_files
from a3t.bench.store import (
    ManyTasks, WAVE, fill, measure_operation, naive_append, naive_batches, naive_statistics, random_length_rows,
    random_trajectories, time_operation)
from a3t.runs.folders import stage_folder
from a3t.training.batches import Batches

def test_both_ways_agree(tmp_path):
    ts = list(random_trajectories(0, 200))
    for i in range(0, 200, 50): assert append(tmp_path/'a', ts[:i+50]) == naive_append(tmp_path/'b', ts[:i+50]) == 50
    names = [[p.name for p in trajectory_files(tmp_path/f)] for f in 'ab']
    assert names[0] == names[1] and read(tmp_path/'a') == ts
    assert [(s.trajectories, s.failed)
            for s in round_statistics(entries(tmp_path/'a')).itertuples()] == naive_statistics(ts)
    assert 12 < sum(map(len, ts))/len(ts) < 18 and Counter(t.source for t in ts)['policy'] == 50

def test_operations(tmp_path):
    run = tmp_path/'run'
    assert len(fill(run, 2*WAVE)) == 2 and fill(run, 2*WAVE) == [] and len(fill(run, 3*WAVE)) == 1
    assert len(trajectory_files(stage_folder(run, 'explore')/'trajectories')) == 3
    for name in ('first_append', 'naive_append', 'select', 'to_train', 'stability', 'alarms', 'report'):
        assert time_operation(name, run)['seconds'] > 0
    assert (run/'report.html').exists() and measure_operation('entries', run)['seconds'] > 0
    with pytest.raises(KeyError): measure_operation('no such operation', run)

def test_rows_and_panels():
    rows = random_length_rows(100)
    b = Batches(map(len, rows), 16)
    assert naive_batches(b.lengths, list(b)) == list(b) and all(any(r.loss_mask) for r in rows)
    env = ManyTasks(1000)
    panel = env.panel('train')
    panel.check(env)
    assert len(panel) == 1000

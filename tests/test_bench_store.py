"The benchmark of stores compares like with like"
from collections import Counter
import pytest
from a3t.accumulate import append, entries, read, round_statistics, trajectory_files
from a3t.bench.store import ManyTasks, WAVE, fill, measure, naive_append, naive_batches, naive_statistics, pretend, pretend_rows, use
from a3t.runs.folders import stage_folder
from a3t.training.batches import Batches

def test_both_ways_agree(tmp_path):
    ts = list(pretend(0, 200))
    for i in range(0, 200, 50): assert append(tmp_path/'a', ts[:i+50]) == naive_append(tmp_path/'b', ts[:i+50]) == 50
    assert [p.name for p in trajectory_files(tmp_path/'a')] == [p.name
        for p in trajectory_files(tmp_path/'b')] and read(tmp_path/'a') == ts
    assert [(s.trajectories, s.failed)
            for s in round_statistics(entries(tmp_path/'a')).itertuples()] == naive_statistics(ts)
    assert 12 < sum(map(len, ts))/len(ts) < 18 and Counter(t.source for t in ts)['policy'] == 50

def test_uses(tmp_path):
    run = tmp_path/'run'
    assert len(fill(run, 2*WAVE)) == 2 and fill(run, 2*WAVE) == [] and len(fill(run, 3*WAVE)) == 1
    assert len(trajectory_files(stage_folder(run, 'explore')/'trajectories')) == 3
    for name in ('first_append', 'naive_append', 'select', 'to_train', 'stability', 'alarms', 'report'):
        assert use(name, run)['seconds'] > 0
    assert (run/'report.html').exists() and measure('entries', run)['seconds'] > 0
    with pytest.raises(RuntimeError, match='KeyError'): measure('no such use', run)

def test_rows_and_panels():
    rows = pretend_rows(100)
    b = Batches(map(len, rows), 16)
    assert naive_batches(b.lengths, list(b)) == list(b) and all(any(r.loss_mask) for r in rows)
    env = ManyTasks(1000)
    panel = env.panel('train')
    panel.check(env)
    assert len(panel) == 1000

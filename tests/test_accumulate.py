import io, json
from dataclasses import replace
import pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from a3t.accumulate import PAPER, append, is_success, plot_statistics, read, round_statistics, select_training, trajectory_files
from a3t.core import A3TError, Step, Trajectory, content_hash, to_row, trajectory_id, write_atomic

def traj(task='t', won=True, source='composed', round=0, reason='r', seed=0):
    return Trajectory(task, 'pick', 'a goal', 'You see "ü" | a,b\n🦉', (Step(reason, 'go', 'ok', 'sampled'), Step('', 'take', 'done')),
                      1. if won else .25, won, source, round, seed)

def test_round_trip_and_duplicates(tmp_path):
    a, b, c = traj(), traj(reason='other'), traj(won=False)
    assert read(tmp_path/'none') == []
    assert append(tmp_path, [a, b, a, replace(a, round=2)]) == 2
    before = {p.name:p.read_bytes() for p in trajectory_files(tmp_path)}
    assert append(tmp_path, [b, c]) == 1 and append(tmp_path, [a, b, c]) == 0 and append(tmp_path, []) == 0
    assert read(tmp_path) == [a, b, c] and len(trajectory_files(tmp_path)) == 2
    assert all((tmp_path/n).read_bytes() == d for n,d in before.items())

def test_same_content_same_name(tmp_path):
    for d in 'xy': append(tmp_path/d, [traj()])
    assert [p.name for p in trajectory_files(tmp_path/'x')] == [p.name for p in trajectory_files(tmp_path/'y')]

def test_half_written_is_not_read(tmp_path):
    append(tmp_path, [traj()])
    name = trajectory_files(tmp_path)[0].name
    (tmp_path/f'.{name}.abc123').write_bytes(b'PAR1 half')
    (tmp_path/'notes.txt').write_text('x')
    assert len(read(tmp_path)) == 1

@pytest.mark.parametrize('spoil', [lambda b: b[:-9], lambda b: b'', lambda b: b[:40]+bytes([b[40]^1])+b[41:], lambda b: b+b'x'])
def test_damage_is_noticed(tmp_path, spoil):
    append(tmp_path, [traj()])
    p, = trajectory_files(tmp_path)
    p.write_bytes(spoil(p.read_bytes()))
    with pytest.raises(A3TError, match='damaged'): read(tmp_path)
    with pytest.raises(A3TError, match='damaged'): append(tmp_path, [traj(reason='new')])

def test_missing_file_is_noticed(tmp_path):
    for i in range(3): append(tmp_path, [traj(reason=str(i))])
    trajectory_files(tmp_path)[1].unlink()
    with pytest.raises(A3TError, match='number 1 .* is missing'): read(tmp_path)

def test_killed_in_mid_append(tmp_path, monkeypatch):
    append(tmp_path, [traj()])
    monkeypatch.setattr('os.replace', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): append(tmp_path, [traj(reason='new')])
    monkeypatch.undo()
    assert read(tmp_path) == [traj()] and append(tmp_path, [traj(reason='new')]) == 1

def test_disk_refuses(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(A3TError, match='cannot'): append(tmp_path/'file', [traj()])

def test_selection():
    s = [traj(reason=str(i)) for i in range(3)]
    own = [traj(won=False, source='policy', round=r, reason=f'f{r}') for r in range(3)]
    assert select_training(s + own[:1]) == s + own[:1]
    assert select_training(s[:1] + own[:1]) == s[:1] and select_training(s[:1] + own[:1], margin=0) == s[:1] + own[:1]
    assert select_training(own) == []
    assert select_training(s + own) == s + own[1:]                  # successes outnumber failures; the latest stay
    assert select_training(s + [replace(f, source='composed') for f in own]) == s
    assert select_training([traj('other', False, 'policy')] + s) == s

def test_threshold():
    half = traj(won=False)
    assert not is_success(half) and is_success(half, .25) and not is_success(traj(), 1.1)
    assert select_training([half], threshold=.2) == [half]

def test_statistics():
    ts = [traj('a'), traj('b', False, 'policy'), traj('a', reason='2', round=1), traj('b', round=1), traj('a', False, 'policy', 1)]
    d = round_statistics(ts, 4)
    assert d.loc[0].tolist() == [1, 0, 1, 25.] and d.loc[1].tolist() == [4, 1, 2, 50.]
    assert list(d.columns) == ['trajectories', 'failed', 'solved', 'success']
    assert round_statistics([]).empty
    assert len(plot_statistics(d).axes) == 3 and all(len(v) == 4 for v in PAPER.values())

def test_files_of_earlier_versions_are_read(tmp_path):
    "Without the later fields; the id is what it was"
    traj = Trajectory('t', 'put', 'goal', 'room', (Step('why', 'look', 'a desk', 'sampled'),), 1., True, 'composed', 2, 7)
    row = to_row(traj)
    del row['full']
    row['steps'] = json.dumps([{k:v for k,v in s.items() if k != 'cut'} for s in json.loads(row['steps'])])
    pq.write_table(pa.Table.from_pylist([row]), out := io.BytesIO())
    write_atomic(tmp_path/f'00000-{content_hash(out.getvalue())[:16]}.parquet', out.getvalue())
    assert read(tmp_path) == [traj] and trajectory_id(traj) == '9d0ae83f0a44d294'
    lost = replace(traj, task='u', won=False, full=True, steps=(replace(traj.steps[0], cut=True),))
    assert append(tmp_path, [traj, lost]) == 1 and read(tmp_path) == [traj, lost]
    assert trajectory_id(replace(traj, full=True, steps=lost.steps)) == trajectory_id(traj)

def test_a_full_context_is_no_success():
    "Whatever reward the environment gave until then"
    lost = Trajectory('t', 'put', 'goal', 'room', reward=.8, full=True)
    assert not is_success(lost) and not is_success(lost, .5) and is_success(replace(lost, full=False), .5)

import ast, io, json, random, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pyarrow as pa, pyarrow.parquet as pq, pytest
import a3t.accumulate
from a3t.accumulate import (
    FILE, append, entries, fetch, file_table, is_success, paper_training_sets, plot_statistics, read, round_statistics,
    flip_rewards, select_training, shortest, sources_table, stores, stream, training_sources, trajectory_files, way)
from a3t.core import A3TError, Step, Trajectory, content_hash, to_row, trajectory_id
from a3t.envs.base import ToyHouse
from a3t.files import results_folder, write_atomic
from a3t.models.roles import is_bound

ROOT = Path(a3t.accumulate.__file__).parents[1]

def traj(task='t', won=True, source='composed', round=0, reason='r', seed=0):
    return Trajectory(task, 'pick', 'a goal', 'You see "ü" | a,b\n🦉',
                      (Step(reason, f'go {reason}', 'ok', 'sampled'), Step('', 'take', 'done')),
                      1. if won else .25, won, source, round, seed)

def test_round_trip_and_duplicates(tmp_path):
    a, b, c = traj(), traj(reason='other'), traj(won=False)
    assert read(tmp_path/'none', missing_ok=True) == []
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

@pytest.mark.parametrize('spoil',
                         [lambda b: b[:-9], lambda b: b'', lambda b: b[:40]+bytes([b[40]^1])+b[41:], lambda b: b+b'x'])
def test_damage_is_noticed(tmp_path, spoil):
    append(tmp_path, [traj()])
    p, = trajectory_files(tmp_path)
    p.write_bytes(spoil(p.read_bytes()))
    with pytest.raises(A3TError, match='damaged'): read(tmp_path)
    with pytest.raises(A3TError, match='damaged'): entries(tmp_path)
    shutil.copytree(tmp_path, tmp_path/'copy')
    # the first time that this process sees it
    with pytest.raises(A3TError, match='damaged'): append(tmp_path/'copy', [traj(reason='new')])

def test_missing_file_is_noticed(tmp_path):
    for i in range(3): append(tmp_path, [traj(reason=str(i))])
    trajectory_files(tmp_path)[1].unlink()
    for use in (read, entries, trajectory_files, lambda d: append(d, [])):
        with pytest.raises(A3TError, match='number 1 .* is missing'): use(tmp_path)

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

def test_the_same_actions_count_once():
    "In whatever round, by whatever source, and with whatever reasons: K stays as it was"
    s, own = [traj(reason=str(i)) for i in range(3)], [traj(won=False, source='policy', reason=f'f{i}')
                                                       for i in range(3)]
    again = [replace(t, round=r, source='policy', steps=(replace(t.steps[0], reason=f'other {r}'), *t.steps[1:]))
             for t in s for r in (1, 2)]
    assert select_training(s + own) == select_training(s + own
                                                       + again) == select_training([*s, *own[:1], *again, *own[1:]])
    for kept in (select_training(s + again), select_training(again + s)): assert len(kept) == 3
    later = replace(own[0], round=1)
    assert select_training(s + own[:1] + [later]) == s + [later], 'of failures, the latest stays'
    assert select_training(s[:2] + own[:1] + [later] + again) == s[:2] + [later] + again[4:5]
    assert select_training([s[0], replace(s[0], task='other')]) == [s[0], replace(s[0], task='other')]

def test_an_older_failure_does_not_replace_the_latest():
    "The latest failures stay, also where the actions of the latest of all were seen before"
    s, lost = [traj(reason=str(i)) for i in range(2)], [traj(won=False, source='policy', round=r, reason=x)
                                                        for r,x in enumerate('aba')]
    assert select_training(s + lost) == s + lost[2:]

def test_failures_of_a_prompted_model_are_not_contrasted():
    "It plays round 0, which is supervised in the paper; its successes are trained on, in a row of their own"
    s, lost = [traj(reason=str(i), source='prompted') for i in range(3)], traj(won=False, source='prompted')
    own = traj(won=False, source='policy', round=1)
    assert select_training([*s, lost]) == s and select_training([*s, lost, own]) == [*s, own]
    assert round_statistics([*s, lost, own])['failed'].tolist() == [0, 1]
    sources = training_sources([*s, own])
    assert list(sources) == ['prompted', 'failures']
    assert sources_table({'round 1':sources}).loc["the prompted model's", 'round 1'] == '3 (100%)'

def test_without_a_step_there_is_nothing_to_learn(tmp_path):
    "An episode whose first prompt fills the context"
    s, full = [traj(reason=str(i)) for i in range(2)], replace(traj(won=False, source='policy'), steps=(), full=True)
    append(tmp_path, [*s, full])
    for all_ in ([*s, full], entries(tmp_path)):
        assert select_training(all_) == all_[:2] and round_statistics(all_).loc[0].tolist()[:2] == [2, 0]

@pytest.mark.parametrize('seed', range(5))
def test_copies_from_later_rounds_change_nothing(seed):
    rng = random.Random(seed)
    ts = [traj(rng.choice('ab'), rng.random() < .5, rng.choice(['policy', 'composed']), 0, str(i)) for i in range(30)]
    copies = [replace(t, round=1) for t in rng.sample(ts, 12)]
    chosen = lambda some: sorted((t.task, t.won, way(t)) for t in select_training(some))
    won = lambda some: [c for c in chosen(some) if c[1]]
    assert won(ts) == won(ts + copies) and len(chosen(ts)) == len(chosen(ts + copies))
    assert round_statistics(ts + copies).loc[1].tolist() == round_statistics(ts).loc[0].tolist()

def test_the_committed_run_without_repetitions():
    """Its training set is what it was, but for 38 successes that repeat earlier actions, and a failure beside one of
    them"""
    known = [e for r in range(4) for e in entries(results_folder()/'cpu-alfworld'/f'round_{r:02}'/'trajectories')]
    kept, won = select_training(known), [e for e in known if e.won]
    assert len(won) == 833 and sum(e.won for e in kept) == len({(e.task, e.way) for e in won}) == 795
    assert len(kept) == 803
    first = {}
    for e in won: first.setdefault((e.task, e.way), e)
    assert [e for e in kept if e.won] == list(first.values())
    assert select_training([e for e in known if not e.round]) == [e for e in known if not e.round]

def test_sources_of_a_training_set():
    own, made = traj(source='policy'), traj(reason='2')
    own = replace(own, steps=tuple(replace(s, actor='policy') for s in own.steps))
    lost = replace(own, won=False)
    plain = replace(made, steps=own.steps)
    found = training_sources([traj(source='explored'), own, made, plain, lost], sentences=lambda t, a: ['one']*len(a))
    count = lambda n, mixed, steps, sampled: dict(trajectories=n, with_sampled=mixed, steps=steps,
                                                  sampled_steps=sampled,
                                                  forced_steps=0)
    assert found == dict(explored=count(1, 1, 2, 1), policy=count(1, 0, 2, 0), composed=count(2, 1, 4, 1),
                         failures=count(1, 0, 2, 0))
    assert list(found) == ['explored', 'policy', 'composed', 'failures'] and json.loads(json.dumps(found)) == found
    table = sources_table({'round 0':found, 'round 1':training_sources([own])})
    assert table['round 0'].tolist() == ['4', '1 (25%)', '1 (25%)', '2 (50%)', '1 (25%)', '1', '8', '2 (25%)', '0 (0%)']
    assert table.loc['composed, with a sampled action', 'round 1'] == '0 (0%)'
    assert training_sources([own],
                            sentences=lambda t, a: ['only'])['policy']['forced_steps'] == 0, 'nothing was sampled'
    forced = training_sources([made], sentences=lambda t, a: ['only'])['composed']
    assert forced['forced_steps'] == 1 and training_sources([traj(won=False)],
                                                            .2)['composed']['trajectories'] == 1
    assert sources_table({}).empty

@pytest.mark.parametrize('actre,counted', [('base', None), ('bound', 2), ('trained', 1)])
def test_only_a_bound_actre_has_no_choice(actre, counted):
    "The cell of the stage: with actre = trained, reasons are free but in a sampled round 0"
    step, wording = Step('', 'look', 'ok', 'sampled'), SimpleNamespace(sentences=lambda t, action: ['the only one'])
    kept = [replace(traj(source=s, round=r), steps=(step,)) for s,r in (('explored', 0), ('composed', 1))]
    cells = json.loads((ROOT/'nbs'/'stages'/'train.ipynb').read_text())['cells']
    known = dict(S=dict(actre=actre, opening='sampled', success_threshold=None), env=ToyHouse(), kept=kept,
                 stage='round 1', fetch=iter, is_bound=is_bound, Wording=lambda *args: wording,
                 training_sources=training_sources, sources_table=sources_table)
    exec(next(''.join(c['source']) for c in cells if c['id'] == 'sources1'), known)
    forced = [c['forced_steps'] for c in known['sources'].values() if 'forced_steps' in c]
    assert (sum(forced) if forced else None) == counted

def test_flipped_rewards():
    ts = [traj(f't{i}', i % 2 == 0, reason=str(i)) for i in range(1000)]
    assert flip_rewards(ts, 0) == ts and [t.won for t in flip_rewards(ts, 1)] == [not t.won for t in ts]
    some = flip_rewards(ts, .1)
    turned = [a.task for a,b in zip(ts, some) if a != b]
    assert 70 < len(turned) < 130 and all(b.reward == b.won for a,b in zip(ts, some) if a != b)
    assert flip_rewards(ts[::-1], .1) == some[::-1] and flip_rewards(ts, .1, 1) != some, 'the order does not count'
    assert set(turned) <= {a.task for a,b in zip(ts, flip_rewards(ts, .2)) if a != b}
    assert all(replace(t, steps=u.steps, round=0) == t for t,u in zip(some, ts))

def test_threshold():
    half = traj(won=False)
    assert not is_success(half) and is_success(half, .25) and not is_success(traj(), 1.1)
    assert select_training([half], threshold=.2) == [half]

def test_statistics():
    ts = [traj('a'), traj('b', False, 'policy'), traj('a', reason='2', round=1), traj('b', round=1),
          traj('a', False, 'policy', 1)]
    d = round_statistics(ts, 4)
    assert d.loc[0].tolist() == [1, 0, 1, 25.] and d.loc[1].tolist() == [4, 1, 2, 50.]
    assert list(d.columns) == ['trajectories', 'failed', 'solved', 'success']
    assert round_statistics([]).empty
    assert len(plot_statistics(d).axes) == 3 and len(paper_training_sets('alfworld')) == 4

def test_files_of_earlier_versions_are_read(tmp_path):
    "Without the later fields; the id is what it was"
    traj = Trajectory('t', 'put', 'goal', 'room', (Step('why', 'look', 'a desk', 'sampled'),), 1., True, 'composed', 2,
                      7)
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

def test_statistics_count_what_is_selected():
    "Against the definition: select for each round, from all up to it"
    rng = random.Random(0)
    some = lambda: traj(rng.choice('abcdef'), rng.random() < .4, rng.choice(['policy', 'composed', 'prompted']),
                        rng.randrange(4), str(rng.randrange(20)))
    for margin, threshold in ((1, None), (0, None), (2, .2)):
        ts = [some() for _ in range(300)]
        stats = round_statistics(ts, 10, margin, threshold)
        for r in range(4):
            kept = select_training([t for t in ts if t.round <= r], margin, threshold)
            won = [t for t in kept if is_success(t, threshold)]
            assert stats.loc[r].tolist() == [len(kept), len(kept) - len(won), len({t.task for t in won}),
                                             10.*len({t.task for t in won})]

def test_entries_choose_like_trajectories(tmp_path):
    rng = random.Random(1)
    for i in range(5):
        append(tmp_path, [traj(rng.choice('abc'), rng.random() < .5, rng.choice(['policy', 'composed']), i, f'{i} {j}')
                          for j in range(20)])
    ts, es = read(tmp_path), entries(tmp_path)
    assert list(stream(tmp_path)) == ts == list(fetch(es)) and list(fetch(es[::-3])) == ts[::-3]
    assert [(e.task, e.task_type, e.reward, e.won, e.source, e.round, e.seed) for e in es] == [
        (t.task, t.task_type, t.reward, t.won, t.source, t.round, t.seed) for t in ts]
    assert list(fetch(select_training(es))) == select_training(ts) and len(select_training(ts)) > 30
    assert round_statistics(es).equals(round_statistics(ts))

def test_entries_of_earlier_versions(tmp_path):
    "A file without a later field: the field has its default"
    row = to_row(traj(seed=5))
    del row['source']
    pq.write_table(pa.Table.from_pylist([row]), out := io.BytesIO())
    (tmp_path/f'00000-{content_hash(out.getvalue())[:16]}.parquet').write_bytes(out.getvalue())
    e, = entries(tmp_path)
    assert (e.task, e.seed, e.source) == ('t', 5, 'policy')

def test_wave_reads_nothing_of_earlier_waves(tmp_path, monkeypatch):
    "An append costs its own size: no file is opened, no folder listed, no row decoded"
    for i in range(4): append(tmp_path, [traj(reason=f'{i} {j}') for j in range(8)])
    def refuse(*args): raise AssertionError('old files are looked at')
    monkeypatch.setattr(a3t.accumulate, 'file_table', refuse)
    monkeypatch.setattr(a3t.accumulate.os, 'listdir', refuse)
    monkeypatch.setattr(a3t.accumulate, 'from_row', refuse)
    assert append(tmp_path, [traj(reason='0 1'), traj(reason='new')]) == 1
    monkeypatch.undo()
    assert len(read(tmp_path)) == 33

def test_first_append_reads_ids_only(tmp_path, monkeypatch):
    for i in range(3): append(tmp_path/'a', [traj(reason=str(i))])
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    asked = []
    monkeypatch.setattr(a3t.accumulate,
                        'file_table', lambda path, columns=None: asked.append((path.name[:5], columns))
                        or file_table(path, columns))
    assert append(tmp_path/'b', [traj(reason='1')]) == 0 and asked == [(f'{i:05d}', ['id']) for i in range(3)]

def test_append_sees_what_others_did(tmp_path):
    "Another process adds a file, takes one away, or starts again: the next append knows"
    store, other = tmp_path/'store', tmp_path/'other'
    for i in range(2): append(store, [traj(reason=str(i))])
    code = ("import sys; from test_accumulate import append, traj; append(sys.argv[1], [traj(reason='theirs')])")
    subprocess.run([sys.executable, '-c', code, store], check=True, cwd=Path(__file__).parent)
    assert append(store, [traj(reason='theirs'), traj(reason='1')]) == 0 and append(store, [traj(reason='mine')]) == 1
    assert [p.name[:5] for p in trajectory_files(store)] == ['00000', '00001', '00002', '00003']
    trajectory_files(store)[-1].unlink()
    assert append(store, [traj(reason='mine')]) == 1
    store.rename(other)
    assert append(store, [traj(reason='1')]) == 1 and len(read(store)) == 1 and len(read(other)) == 4

def test_more_than_99999_files(tmp_path, monkeypatch):
    "The number of a file may outgrow its five digits"
    files = [tmp_path/f'{i:05d}-{"0"*16}.parquet' for i in range(100_001)]
    monkeypatch.setattr(a3t.accumulate.os, 'listdir', lambda folder: [p.name for p in reversed(files)])
    assert trajectory_files(tmp_path) == files and FILE.fullmatch(files[-1].name)[1] == '100000'

def test_wrong_folder(tmp_path):
    run = tmp_path/'runs'/'mine'
    for r in range(5): append(run/f'round_{r:02d}'/'trajectories', [traj()])
    (run/'run.json').write_text('{}')
    file = trajectory_files(run/'round_00'/'trajectories')[0]
    for wrong, said in ((tmp_path/'runs'/'typo',
                         r'typo does not exist: .*runs holds mine\. Pass the folder of a store'),
                        (run, 'mine is not a trajectory store, but holds round_00/trajectories, round_01/trajectories, '
                              'round_02/trajectories and 2 more'),
                        (run/'run.json', 'run.json is a file, not a trajectory store. Pass its folder'),
                        (file, 'is a file')):
        for use in (read, entries, stream, trajectory_files):
            with pytest.raises(A3TError, match=said) as e: use(wrong)
            assert '\n' not in str(e.value)
        if wrong.exists():
            with pytest.raises(A3TError, match=said): read(wrong, missing_ok=True)
    assert stores(run) == [run/f'round_{r:02d}'/'trajectories' for r in range(5)]
    shutil.rmtree(run/'round_00')
    (run/'round_00').mkdir()
    with pytest.raises(A3TError, match='round_00 is not a trajectory store: it holds nothing'): read(run/'round_00')
    (run/'round_00'/'.00000-half').write_text('')
    assert read(run/'round_00', missing_ok=True) == read(run/'none'/'at all', missing_ok=True) == []

@pytest.mark.parametrize('folder', [None, 3, ['a'], b'/tmp', 'a\0b'])
def test_what_is_no_path(folder):
    for reads in (read, entries, lambda f: list(stream(f, missing_ok=True))):
        with pytest.raises(A3TError, match='is not a path: pass the folder of a store'): reads(folder)

def test_a_device_is_no_store():
    with pytest.raises(A3TError, match='/dev/null is a file, not a trajectory store'): read('/dev/null')

def test_old_stores_still_read():
    "The committed trajectories of earlier results"
    found = stores(ROOT/'data'/'results')
    assert len(found) > 20 and all(len(read(p)) == len(entries(p)) > 0 for p in found)

def test_shortest():
    "As a stable sort, longest first, into a dict"
    rng = random.Random(2)
    ts = [replace(traj(rng.choice('abcd'), seed=i), steps=(Step('', 'go', 'ok'),)*rng.randrange(6)) for i in range(200)]
    want = {t.task:t for t in sorted(ts, key=len, reverse=True)}
    assert list(shortest(iter(ts)).items()) == list(want.items())
    cost = lambda t: (len(t), -(t.seed % 3))
    assert list(shortest(iter(ts), cost).items()) == [*{t.task:t for t in sorted(ts, key=cost, reverse=True)}.items()]

# pyarrow's threads can abort Python at its end ("terminate called without an active exception", status 134)

QUIET = ("import os, sys; from a3t.accumulate import append, entries, fetch, read; from a3t.core import Trajectory; "
         "append(sys.argv[1], [Trajectory('t', 'x', 'g', 'o', seed=1)]); ")
USE = ("n = len(os.listdir('/proc/self/task')); list(fetch(entries(sys.argv[1]))), read(sys.argv[1]); "
       "sys.exit(len(os.listdir('/proc/self/task')) - n)")

def end_well(store, n):
    "Start processes that read a store, two at a time; their exit statuses"
    start = lambda: subprocess.Popen([sys.executable, '-c', QUIET + USE, store])
    return [p.wait() for _ in range(n//2) for p in [start(), start()]]

@pytest.mark.skipif(sys.platform != 'linux', reason='counts threads in /proc')
def test_reading_starts_no_thread(tmp_path):
    append(tmp_path, [traj()])
    assert end_well(tmp_path, 2) == [0, 0]

@pytest.mark.slow
def test_forty_processes_end_well(tmp_path):
    append(tmp_path, [traj()])
    assert end_well(tmp_path, 40) == [0]*40

def code_of(path):
    "The Python of a module or notebook, magics left out"
    if path.suffix == '.py': return path.read_text()
    cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    return '\n'.join(l for c in cells for l in c.splitlines() if not l.lstrip().startswith(('%', '!')))

def threaded(code):
    "Calls that read Parquet or make pandas tables of Arrow's, and may start threads"
    reads = {'read_table', 'read_parquet', 'to_pandas', 'read_pandas', 'ParquetDataset', 'read_row_groups',
             'read_row_group', 'iter_batches', 'read_feather'}
    def bad(call):
        f = call.func
        name = f.attr if isinstance(f, ast.Attribute) else getattr(f, 'id', '')
        file = isinstance(f, ast.Attribute) and name == 'read' and 'ParquetFile(' in ast.unparse(f.value)
        quiet = any(k.arg == 'use_threads' and getattr(k.value, 'value', None) is False for k in call.keywords)
        return (name in reads or file) and not quiet
    return [ast.unparse(n) for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and bad(n)]

def test_nobody_reads_with_threads():
    assert (threaded('pq.read_table(x)') and threaded('ParquetFile(f).read()') and threaded('pd.read_parquet(p)')
            and threaded('t.to_pandas(use_threads=True)'))
    assert not threaded('pq.read_table(x, use_threads=False)') and not threaded('p.read()')
    files = [p for d in ('a3t', 'nbs') for e in ('*.py', '*.ipynb') for p in (ROOT/d).rglob(e)
             if '.ipynb_checkpoints' not in p.parts]
    assert len(files) > 60
    found = {str(p.relative_to(ROOT)):bad for p in files if any(w in p.read_text() for w in ('arrow', 'parquet'))
             and (bad := threaded(code_of(p)))}
    assert found == {}

"Several processes: training whose sum is that of one, waves that outlive their workers"
import json, os, shlex, shutil, signal, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from conftest import LOST, OTHER, WON
from fastcore.basics import chunked
from safetensors.torch import load_file
from test_vllm import STUB, Stub, gone
from a3t.accumulate import append, read
from a3t.agents import ReAct, Sampler, rollout
from a3t.core import A3TError, trajectory_id
from a3t.files import write_json
from a3t.data import make_rows
from a3t.envs.base import ToyHouse
from a3t.models.weights import load_model
from a3t.models.base import gather
from a3t.runs.cluster import LoadedThere, cluster, dismiss, room_for, waves
from a3t.runs.stage import Stage, arrived
from a3t.training.log import checkpoints, read_log
from a3t.train import launch, train, train_together
from a3t.training.batches import share

ROOT = Path(__file__).resolve().parent.parent
TWO = 'torchrun --standalone --nproc-per-node 2'
FAST = dict(epochs=4, learning_rate=1e-2, batch_size=3, lora_rank=4, target_modules='all-linear',
            contrast_floor=-5., gradient_checkpointing=False)

@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')

def rows_of(tokenizer):
    return make_rows(tokenizer, [WON, replace(WON, steps=WON.steps[1:]), LOST, OTHER,
                                 replace(WON, steps=WON.steps[2:])])[0]

def assert_same_training(a, b, loss=1e-4, weight=1e-4):
    "Two trainings agree, up to sums in another order"
    one, two = read_log(a/'train.jsonl'), read_log(b/'train.jsonl')
    assert [l['step'] for l in one] == [l['step'] for l in two] and [l['tokens'] for l in one] == [l['tokens']
                                                                                                   for l in two]
    for x,y in zip(one, two):
        for k in ('loss', 'imitation', 'contrast', 'logp_won', 'logp_lost', 'learning_rate'):
            assert (x[k] is None) == (y[k] is None) and (x[k] is None or abs(x[k] - y[k]) < loss), (k, x, y)
    one, two = (load_file(d/'adapter'/'adapter_model.safetensors') for d in (a, b))
    assert one.keys() == two.keys() and any(v.abs().max() > .05 for v in one.values())
    for k in one: torch.testing.assert_close(one[k], two[k], atol=weight, rtol=0)

def test_two_processes_equal_one_and_resume(folder, tmp_path, interruptible):
    "Killed after the first epoch, all at once, and started again"
    model, tok = load_model(folder, device='cpu', dtype=torch.float32)
    rows, kw = rows_of(tok), FAST | dict(epochs=24) # enough that it cannot end before the kill
    train(model, rows, tmp_path/'one', **kw)
    job = dict(name=folder, quantize='none', device='cpu', dtype='float32')
    def stop_after_an_epoch():
        while not list((tmp_path/'two'/'checkpoints').glob('*/complete.json')): time.sleep(.02)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=stop_after_an_epoch, daemon=True).start()
    with pytest.raises(KeyboardInterrupt): launch(TWO, job, rows, tmp_path/'two', **kw)
    assert not (tmp_path/'two'/'adapter').exists()
    done = len(checkpoints(tmp_path/'two'/'checkpoints'))
    assert 1 <= done < 24
    res = launch(TWO, job, rows, tmp_path/'two', **kw)
    assert res['steps'] == 48 and res['trajectories'] == 5
    assert_same_training(tmp_path/'one', tmp_path/'two')
    assert sorted(p.name for p in (tmp_path/'two').iterdir()) == ['adapter', 'job.json', 'launch.log', 'train.json',
                                                                  'train.jsonl', 'training.json']

KILLED = '''
import os, sys, a3t.train as T, a3t.training.log as L
L.SAVE_EVERY = 1e9 if os.environ['RANK'] == '1' else 0. # the first process decides
def on_step_begin(self, args, state, control, **kw):
    if state.global_step == 4: os._exit(9)
T.StepLog.on_step_begin = on_step_begin
T.train_together(sys.argv[1])
'''

@pytest.mark.slow
def test_two_processes_resume_in_mid_epoch(folder, tmp_path):
    "Three steps an epoch, dead before the fifth: what follows is the same to the byte"
    _, tok = load_model(folder, device='cpu', dtype=torch.float32)
    rows, kw = rows_of(tok), FAST | dict(batch_size=2, epochs=2, lora_dropout=.2)
    job = dict(name=folder, quantize='none', device='cpu', dtype='float32')
    whole = launch(TWO, job, rows, tmp_path/'whole', **kw)
    (tmp_path/'b').mkdir()
    shutil.copy(tmp_path/'whole'/'job.json', tmp_path/'b'/'job.json')
    (tmp_path/'killed.py').write_text(KILLED)
    assert subprocess.run([*shlex.split(TWO.replace('torchrun', str(Path(sys.executable).parent/'torchrun'))),
                           str(tmp_path/'killed.py'), str(tmp_path/'b')], capture_output=True).returncode
    assert [p.name for p in checkpoints(tmp_path/'b'/'checkpoints')] == ['checkpoint-3', 'checkpoint-4']
    assert launch(TWO, job, rows, tmp_path/'b', **kw)['adapter_hash'] == whole['adapter_hash']

@pytest.mark.parametrize('quantize', ['nf4', 'none'])
def test_divided_weights_equal_whole_ones(folder, tmp_path, monkeypatch, quantize):
    "Each process keeps its part of the weights of each layer"
    model, tok = load_model(folder, quantize, 'cpu', torch.float32)
    kw = FAST | dict(gradient_checkpointing=quantize == 'nf4')
    train(model, rows_of(tok), tmp_path/'one', **kw)
    monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true') # what `accelerate launch --use_fsdp` says
    launch(TWO, dict(name=folder, quantize=quantize, device='cpu', dtype='float32'), rows_of(tok), tmp_path/'two', **kw)
    assert_same_training(tmp_path/'one', tmp_path/'two')

def test_more_processes_than_gpus(folder, tmp_path, monkeypatch):
    write_json(tmp_path/'job.json', dict(model=dict(name=folder, quantize='none', device='')))
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    # this process outlives its parent
    monkeypatch.setattr('ctypes.CDLL', lambda *a: SimpleNamespace(prctl=lambda *a: 0))
    with pytest.raises(A3TError, match=r'more processes than this machine has GPUs \(2\): start 2'):
        train_together(tmp_path)

def test_errors_of_launched_processes(folder, tmp_path):
    _, tok = load_model(folder, device='cpu')
    job = dict(name=folder, quantize='none', device='cpu', dtype='float32')
    with pytest.raises(A3TError, match='lower learning_rate'):
        launch(sys.executable, job, rows_of(tok), tmp_path/'a',
               **FAST | dict(learning_rate=1e30, max_grad_norm=1e30, warmup=0.))
    with pytest.raises(A3TError, match=r'ended with status 3 .*read .*launch.log') as e:
        launch('sh -c "echo a worker died >&2; exit 3"', job, rows_of(tok), tmp_path/'c', **FAST)
    assert 'a worker died' in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(A3TError, match='cannot be run'):
        launch('no-such-launcher -n 2', job, rows_of(tok), tmp_path/'b', **FAST)

@pytest.mark.parametrize('world', [1, 2, 3, 7])
def test_share(folder, world):
    "Together the processes do every row once; with the spare ones, all do as many passes"
    items = [(r, i) for i,r in enumerate(rows_of(load_model(folder, device='cpu')[1]))]
    shares = [share(items, 10_000, rank, world) for rank in range(world)]
    assert sorted(i for mine,_ in shares for part in mine for _,i in part) == list(range(len(items)))
    assert len({len(mine) + (spare is not None) for mine,spare in shares}) == 1
    assert all(mine for mine,_ in shares[:2])

@pytest.fixture(scope='module')
def two_workers(tmp_path_factory):
    "A cluster that claims to have two GPUs; the workers find vLLM's place taken by a script"
    path = tmp_path_factory.mktemp('stub')
    with pytest.MonkeyPatch.context() as m:
        for k,v in dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', A3T_VLLM=str(STUB),
                        STUB_LOG=str(path/'stub.jsonl')).items(): m.setenv(k, v)
        ray = cluster('local', num_cpus=2, num_gpus=2)
        yield SimpleNamespace(ray=ray, stub=Stub(path))
        dismiss()
        ray.shutdown()

GPU = dict(num_gpus=1)

def test_lost_worker(two_workers, tmp_path):
    "One of two workers is killed in mid-run: the same trajectories, none missing, none twice"
    def episodes(wave):
        with open(tmp_path/'begun', 'a') as f: f.write(f'{os.getpid()} {wave[0]}\n')
        time.sleep(1)
        return rollout(ToyHouse, wave, Sampler(), seed=1)
    parts = list(chunked(ToyHouse().tasks('train')[:12], 2))
    here = [t for _,made in waves(lambda wave: rollout(ToyHouse, wave, Sampler(), seed=1), parts) for t in made]
    def begun(): return [l.split(' ', 1) for l in (tmp_path/'begun').read_text().splitlines()]
    done = []
    for wave, made in waves(episodes, parts, 'local'):
        done.append(wave)
        append(tmp_path/'store', made)
        if len(done) == 2: # the wave that began last is under way
            pid, lost = begun()[-1]
            os.kill(int(pid), signal.SIGKILL)
    # it was played again
    assert done == parts and len(begun()) == len(parts) + 1 and [t for _,t in begun()].count(lost) == 2
    store = read(tmp_path/'store')
    assert store == here and len({trajectory_id(t) for t in store}) == len(here)

@pytest.mark.slow
def test_engines_stay_with_their_workers(two_workers, folder, tmp_path):
    "Each worker loads the weights once, on its own GPU; one is killed; the episodes are those of one process"
    from a3t.runs import cluster as C
    lm = LoadedThere(str(folder), 'none', 'cpu', None, 2)
    policy = ReAct(lm, temperature=1., max_tokens=8)
    def play(wave):
        lm.forget()
        made = rollout(ToyHouse, wave, policy, seed=5, limit=2)
        me = dict(pid=os.getpid(), gpu=os.environ.get('CUDA_VISIBLE_DEVICES'), loads=C._loaded.cache_info().misses)
        with open(tmp_path/'played', 'a') as f: f.write(json.dumps(me) + '\n')
        return made
    def played(): return [json.loads(l) for l in (tmp_path/'played').read_text().splitlines()]
    parts = list(chunked(ToyHouse().tasks('train')[:16], 2))
    here = [made for _,made in waves(play, parts)]
    (tmp_path/'played').unlink()
    def there(kill):
        for n,(_, made) in enumerate(waves(play, parts, 'local', GPU)):
            if kill and n == 3: os.kill(played()[-1]['pid'], signal.SIGKILL)
            yield made
    assert list(there(False)) == here
    workers = {p['pid']:p['gpu'] for p in played()}
    assert sorted(workers.values()) == ['0', '1'] and {p['loads'] for p in played()} == {1}
    assert list(there(True)) == here
    assert len(played()) >= 2*len(parts) and {p['loads'] for p in played()} == {1}
    assert len({p['pid'] for p in played()} - set(workers)) <= 1 # for the one that was killed, if it was needed
    dismiss()

@pytest.mark.slow
def test_a_vllm_for_each_worker(two_workers, folder, tmp_path):
    "Servers stay between waves, go with their worker, and are stopped with the crew"
    stub = two_workers.stub
    lm = LoadedThere(str(folder), 'none', 'cpu', None, 4, {}, 0, dict(rank=4, flags=''))
    def ask(wave):
        (tmp_path/str(os.getpid())).touch()
        time.sleep(.5)
        return [c.text for c in gather([lm.complete(f'Task {i}') for i in wave])]
    parts = [[i, i + 1] for i in range(8)]
    for _ in range(2): assert [made for _,made in waves(ask, parts, 'local', GPU)] == [[' go to drawer 1']*2]*8
    workers, servers = {int(p.name) for p in tmp_path.iterdir()}, stub.notes('pids')
    assert len(workers) == len(servers) == 2
    for n,(_, made) in enumerate(waves(ask, parts, 'local', GPU)):
        assert made == [' go to drawer 1']*2
        if n == 2: os.kill(min(workers), signal.SIGKILL)
    assert any(gone(pids, 5) for pids in servers) and not all(gone(pids, 0) for pids in stub.notes('pids'))
    def broken(wave): # while the other worker plays, with a server of its own
        ask(wave)
        if wave[0]: raise A3TError('the games are missing')
        time.sleep(600)
    with pytest.raises(A3TError, match='the games are missing'): list(waves(broken, parts, 'local', GPU))
    dismiss()
    assert gone(sum(stub.notes('pids'), []))

def test_a_wave_on_the_disk_is_not_played_again(tmp_path):
    played = []
    def play(wave):
        played.append(wave)
        return rollout(ToyHouse, wave, Sampler(), seed=1)
    wave = ToyHouse().tasks('train')[:2]
    first = arrived(tmp_path, play, wave)
    assert arrived(tmp_path, play, wave) == first and played == [wave] and len(first) == 2
    assert arrived(tmp_path/'none', lambda w: [], wave) == arrived(tmp_path/'none', play, wave) == []

def test_a_stage_stopped_on_a_cluster_loses_no_finished_wave(two_workers, tmp_path):
    "The second wave is there before the first one, which fails; afterwards only the first is played"
    settings = dict(slots=2, ray='local', ray_task={})
    tasks = ToyHouse().tasks('train')[:4]
    def play(wave):
        with open(tmp_path/'begun', 'a') as f: f.write(wave[0] + '\n')
        if wave[0] == tasks[0] and not (tmp_path/'again').exists():
            while not list((tmp_path/'run').rglob('waves/*/*.json')): time.sleep(.05)
            raise A3TError('the disk is full: free some space')
        return rollout(ToyHouse, wave, Sampler(), seed=1)
    stage = Stage(tmp_path/'run', 'explore', 0, settings, {})
    with pytest.raises(A3TError, match='the disk is full'): stage.keep('trial', tasks, play)
    (tmp_path/'again').touch()
    stage.keep('trial', tasks, play)
    assert (tmp_path/'begun').read_text().splitlines().count(tasks[2]) == 1
    assert read(stage.path()) == rollout(ToyHouse, tasks, Sampler(), seed=1)

def test_errors_of_workers(two_workers):
    def broken(wave): raise A3TError(f'{wave} is missing: put it back')
    with pytest.raises(A3TError, match='^game [12] is missing: put it back$'):
        list(waves(broken, ['game 1', 'game 2'], 'local'))
    def ends(wave): os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(A3TError, match='gave up on a wave after losing 4 workers'):
        list(waves(ends, ['game 1'], 'local'))
    with pytest.raises(A3TError, match=r"no machine of the Ray cluster has \{'num_cpus': 1, 'num_gpus': 3\}: lower"):
        list(waves(broken, ['game 1'], 'local', dict(num_gpus=3)))
    dismiss()
    two_workers.ray.shutdown()
    with pytest.raises(A3TError, match='no Ray cluster'): cluster('127.0.0.1:1')

def test_room_for_workers():
    machines = [dict(CPU=16., GPU=4., memory=100.), dict(CPU=4., GPU=1., memory=10., big=1.), dict(CPU=2.)]
    def room(**needs): return room_for(needs, machines)
    assert (room(num_cpus=1), room(num_gpus=1), room(num_gpus=.1), room(num_cpus=1, num_gpus=1)) == (22, 5, 50, 5)
    assert (room(num_cpus=5), room(num_gpus=2), room(num_gpus=8), room(memory=40)) == (3, 2, 0, 2)
    assert (room(resources=dict(big=.5)), room(num_cpus=0), room()) == (2, 3, 3)

import inspect, json, math, os, signal, subprocess, sys, time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from accelerate.state import AcceleratorState, PartialState
from conftest import LOST, OTHER, WON
from safetensors.torch import load_file
from a3t.core import A3TError, content_hash
from a3t.files import file_hash, project_root
from a3t.agents import ActRe
from a3t.compose import annotate
from a3t.data import Row, make_actre_rows, make_rows
from a3t.envs.base import ToyHouse, play
from a3t.losses import floored, normalised, policy_gradient, term_weights
from a3t.models.base import gather
from a3t.models.local import LocalModel
from a3t.models.logprobs import lean, token_logprobs
from a3t.models.weights import load_model, quiet, unpack_4bit
from a3t.settings import parse_value, read_settings
from a3t.training.batches import Batches, micro_batches, rows_loss, threads
from a3t.training.log import StepLog, average_adapters, checkpoints, ends_epoch, read_log
from a3t.training.memory import kept_bytes, most_tokens, predict_memory
from a3t.train import TrainingSettings, lora, rows_hash, train, trainer_arguments
from train_toy import toy

torch.set_num_threads(1)
FAST = dict(epochs=3, learning_rate=1e-2, batch_size=2, lora_rank=4, target_modules='all-linear', contrast_floor=-5.,
            gradient_checkpointing=False)
PROGRAM = Path(__file__).parent/'train_toy.py'
ENV = dict(os.environ, OMP_NUM_THREADS='1',
           PYTHONPATH=os.pathsep.join([str(PROGRAM.parent.parent), os.environ.get('PYTHONPATH', '')]))

@pytest.fixture(scope='module')
def nf4(folder): return load_model(folder, 'nf4', 'cpu', torch.float32)

@pytest.fixture(scope='module')
def rows(nf4): return make_rows(nf4[1], [WON, replace(WON, steps=WON.steps[1:]), LOST, OTHER])[0]

def terms_of(rows): return term_weights([r.won for r in rows], [r.task for r in rows])

def gradients(model, rows, divisor, together, micro=None):
    "LoRA gradients of equation 1, rows together or one after another"
    m = lora(model, 4, seed=1)
    for k,p in m.named_parameters():
        if 'lora_B' in k: torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(len(k)))
    m.train(); unpack_4bit(m)
    terms = terms_of(rows)
    for part in ([list(range(len(rows)))] if together else [[i] for i in range(len(rows))]):
        sub = [rows[i] for i in part]
        with quiet(): logp, which = token_logprobs(m.get_base_model(), sub)
        loss, _ = rows_loss(logp, which, sub, terms[part], divisor, contrast_floor=-5.)
        loss.backward()
    res = {k:p.grad.clone() for k,p in m.named_parameters() if p.grad is not None}
    m.unload(); model.eval()
    return res

def test_training_takes_the_gpu_of_the_model(tmp_path, monkeypatch):
    "Not the first one, which transformers would take"
    chosen = []
    for name,fake in dict(is_available=lambda: True, device_count=lambda: 2, set_device=chosen.append).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    try:
        for at,after in ((0, []), (1, [torch.device('cuda:1')])):
            chosen.clear()
            args = trainer_arguments(SimpleNamespace(device=torch.device('cuda', at)), tmp_path, TrainingSettings())
            assert args.device == torch.device('cuda', at) and args.n_gpu == 1 and chosen[1:] == after
            assert PartialState().device == torch.device(*(('cuda', 1) if at else ('cuda',)))
    finally: AcceleratorState._reset_state(reset_partial_state=True)

def test_batch_gradient_is_the_sum_of_rows(nf4, rows):
    a, b = gradients(nf4[0], rows, len(rows), True), gradients(nf4[0], rows, len(rows), False)
    assert len(a) == 8 and any(g.abs().max() > 1e-4 for g in a.values())
    for k in a: torch.testing.assert_close(a[k], b[k], atol=2e-6, rtol=1e-3)

def test_gradient_equals_plain_transformers(folder, rows):
    "The short way (no mask, loss logits only) against labels, masks and all logits; for one row"
    model, _ = load_model(folder, device='cpu', dtype=torch.float32)
    r = [rows[0]]
    a = gradients(model, r, 1, True)
    m = lora(model, 4, seed=1)
    for k,p in m.named_parameters():
        if 'lora_B' in k: torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(len(k)))
    m.train()
    ids = torch.tensor([r[0].input_ids])
    labels = torch.where(torch.tensor([r[0].loss_mask]), ids, -100)
    m(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward() # the mean over tokens
    for k,p in m.named_parameters():
        if p.grad is not None: torch.testing.assert_close(p.grad, a[k], atol=2e-6, rtol=1e-3)

def test_gradient_through_nf4(folder, rows):
    "4-bit weights pass the gradient that their dequantised values pass, also after the model has acted in eval mode"
    from bitsandbytes.functional import dequantize_4bit
    model, _ = load_model(folder, 'nf4', 'cpu', torch.float32)
    plain, _ = load_model(folder, device='cpu', dtype=torch.float32)
    for k,m in plain.named_modules():
        q = model.get_submodule(k)
        if type(q).__name__ == 'Linear4bit':
            m.weight.data = dequantize_4bit(q.weight.data, q.weight.quant_state).float()
    want = gradients(plain, rows, 1, True)
    for acted in (False, True):
        if acted:
            with torch.no_grad(), quiet(): model.eval()(torch.tensor([rows[0].input_ids]))
        got = gradients(model, rows, 1, True)
        assert got.keys() == want.keys()
        for k in want:
            torch.testing.assert_close(got[k], want[k], atol=(2e-2 if acted else 1e-6)*want[k].abs().max().item(),
                                       rtol=0)

def test_the_trainer_computes_equation_1(nf4, rows, tmp_path):
    "The first line of the log is J of `policy_gradient`, and nothing else in the trainer computes it"
    model, tok = nf4
    train(model, rows, tmp_path, **FAST | dict(epochs=1, batch_size=len(rows), contrast_floor=0.))
    with torch.no_grad(), quiet(): logp, which = token_logprobs(model.train(), rows)
    model.eval()
    sums = torch.stack([logp[which == i].sum() for i in range(len(rows))])
    J = policy_gradient(normalised(sums, [r.n_loss for r in rows]), torch.tensor([r.weight for r in rows]))
    assert abs(read_log(tmp_path/'train.jsonl')[0]['loss'] + J.item()) < 1e-4

def test_the_trainer_calls_policy_gradient(nf4, rows, tmp_path, monkeypatch):
    nothing = lambda logp, rewards, m: 0.*policy_gradient(logp, rewards)
    monkeypatch.setattr('a3t.training.batches.policy_gradient', nothing)
    res = train(nf4[0], rows, tmp_path, **FAST | dict(epochs=1))
    assert res['loss_first'] == res['loss_last'] == 0

def test_defaults_are_those_of_the_settings_file():
    default = read_settings(project_root()/'settings.ini')['DEFAULT']
    fields = {k:v for k,v in vars(TrainingSettings()).items() if k in default}
    assert len(fields) == 16 and {k:parse_value(default[k]) for k in fields} == {
        k:list(v) if isinstance(v, tuple) else v for k,v in fields.items()}
    assert inspect.signature(make_rows).parameters['max_length'].default == int(default['max_length'])
    assert inspect.signature(floored).parameters['floor'].default == float(default['contrast_floor'])

def test_loss_falls_and_model_is_untouched(nf4, rows, tmp_path):
    model, tok = nf4
    ids = torch.tensor([rows[0].input_ids])
    with torch.no_grad(), quiet(): before = model(ids).logits
    names = [n for n,_ in model.named_modules()]
    res = train(model, rows, tmp_path, **FAST | dict(epochs=12))
    with torch.no_grad(), quiet(): after = model(ids).logits
    assert torch.equal(before, after) and names == [n for n,_ in model.named_modules()] and not model.training
    assert (res['loss_last'] < res['loss_first'] - .5 and res['steps'] == 24 and res['trajectories'] == 4
            and res['failed'] == 1)
    log = read_log(tmp_path/'train.jsonl')
    assert [l['step'] for l in log] == list(range(1, 25))
    assert all(l.keys() >= {'step','loss','imitation','contrast','tokens','seconds','learning_rate'} for l in log)
    # R_f = -1: the middle term is zero
    assert all(abs(l['loss']+l['imitation']+l['contrast']) < 1e-4 for l in log)
    assert res['tokens'] == 12*sum(map(len, rows)) and res['parameters'] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ['adapter', 'train.json', 'train.jsonl', 'training.json']
    # PEFT reads the adapter, and it does what the log says
    from peft import PeftModel
    m = PeftModel.from_pretrained(model, tmp_path/'adapter')
    with torch.no_grad(), quiet(): logp, which = token_logprobs(m.get_base_model(), rows)
    m.unload()
    with torch.no_grad(), quiet(): base, _ = token_logprobs(model, rows)
    assert logp[which == 0].mean() > base[which == 0].mean() + .5

class Killed(BaseException): pass

def kill_at(monkeypatch, step):
    was = StepLog.on_step_end
    def on_step_end(self, args, state, control, **kw):
        was(self, args, state, control, **kw)
        if state.global_step == step: raise Killed
    monkeypatch.setattr(StepLog, 'on_step_end', on_step_end)

@pytest.mark.parametrize('step,dropout', [(1, 0.), (3, 0.), (5, .2)])
def test_resume_is_identical(nf4, rows, tmp_path, monkeypatch, step, dropout):
    kw = FAST | dict(lora_dropout=dropout)
    whole = train(nf4[0], rows, tmp_path/'a', **kw)
    kill_at(monkeypatch, step)
    with pytest.raises(Killed): train(nf4[0], rows, tmp_path/'b', **kw)
    monkeypatch.undo()
    half = tmp_path/'b'/'checkpoints'/'checkpoint-99'           # what a kill in mid-save leaves
    half.mkdir(parents=True); (half/'adapter_model.safetensors').write_bytes(b'half')
    with open(tmp_path/'b'/'train.jsonl', 'a') as f: f.write('{"step": 7, "lo')
    again = train(nf4[0], rows, tmp_path/'b', **kw)
    strip = lambda d: {k:v for k,v in d.items() if k not in ('seconds', 'adapter')}
    assert strip(again) == strip(whole) and file_hash(tmp_path/'a'/'adapter') == file_hash(tmp_path/'b'/'adapter')
    a, b = ([strip(l) for l in read_log(tmp_path/d/'train.jsonl')] for d in 'ab')
    assert a == b
    assert train(nf4[0], rows, tmp_path/'b', **kw) == again         # ended: nothing is done again

@pytest.mark.parametrize('step,dropout', [(2, 0.), (4, .2), (7, .2)])
def test_resume_in_mid_epoch_repeats_one_step(nf4, rows, tmp_path, monkeypatch, step, dropout):
    "A checkpoint after every step: the killed step alone is done again, and everything is the same to the byte"
    kw, began = FAST | dict(lora_dropout=dropout, batch_size=1), []
    whole = train(nf4[0], rows, tmp_path/'a', **kw)
    monkeypatch.setattr('a3t.training.log.SAVE_EVERY', 0.)
    with monkeypatch.context() as m:
        kill_at(m, step)
        with pytest.raises(Killed): train(nf4[0], rows, tmp_path/'b', **kw)
    kept = checkpoints(tmp_path/'b'/'checkpoints')
    # of those within an epoch the newest
    assert [int(p.name.split('-')[1]) for p in kept] == [*range(4, step, 4), *([step - 1] if (step - 1)%4 else [])]
    assert [ends_epoch(p) for p in kept] == [int(p.name.split('-')[1])%4 == 0 for p in kept]
    monkeypatch.setattr(StepLog, 'on_step_begin',
                        lambda self, args, state, control, **kw: began.append(state.global_step + 1))
    again = train(nf4[0], rows, tmp_path/'b', **kw)
    strip = lambda d: {k:v for k,v in d.items() if k not in ('seconds', 'adapter')}
    assert began == list(range(step, 13)) and strip(again) == strip(whole)
    assert file_hash(tmp_path/'a'/'adapter') == file_hash(tmp_path/'b'/'adapter')
    a, b = ([strip(l) for l in read_log(tmp_path/d/'train.jsonl')] for d in 'ab')
    assert a == b

def test_checkpoints_come_with_time_and_only_epochs_are_averaged(nf4, rows, tmp_path, monkeypatch):
    seen, was = [], StepLog.on_save
    def on_save(self, args, state, control, **kw):
        was(self, args, state, control, **kw)
        seen.append((state.global_step, [p.name for p in checkpoints(args.output_dir)]))
    monkeypatch.setattr(StepLog, 'on_save', on_save)
    plain = train(nf4[0], rows, tmp_path/'a', **FAST | dict(batch_size=1, epochs=2))
    assert [s for s,_ in seen] == [4, 8] # less than SAVE_EVERY seconds: at the ends of epochs alone
    seen.clear()
    monkeypatch.setattr('a3t.training.log.SAVE_EVERY', 0.)
    assert train(nf4[0], rows, tmp_path/'b',
                 **FAST | dict(batch_size=1, epochs=2))['adapter_hash'] == plain['adapter_hash']
    assert [s for s,_ in seen] == list(range(1, 9)) and seen[2][1] == ['checkpoint-3']
    assert seen[5][1] == ['checkpoint-4', 'checkpoint-6'] and seen[7][1] == ['checkpoint-4', 'checkpoint-8']

def test_killed_after_the_last_step(nf4, rows, tmp_path, monkeypatch):
    whole = train(nf4[0], rows, tmp_path/'a', **FAST)
    monkeypatch.setattr('a3t.train.save_adapter', lambda *a: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed): train(nf4[0], rows, tmp_path/'b', **FAST)
    monkeypatch.undo()
    assert train(nf4[0], rows, tmp_path/'b', **FAST)['adapter_hash'] == whole['adapter_hash']

def test_sigkill_and_other_process(folder, tmp_path):
    "A process that is really killed; the same bytes come from another process"
    command = [sys.executable, str(PROGRAM), 'toy', folder, str(tmp_path/'b'), '20']
    p = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path/'b'/'train.jsonl'
    while p.poll() is None and not (log.exists() and len(read_log(log)) > 10): time.sleep(.02)
    assert p.poll() is None, 'it ended before it could be killed'
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'b'/'adapter').exists() and 10 < len(read_log(log)) < 60
    b = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True).stdout.strip()
    assert toy(folder, tmp_path/'a', 20) == b and len(b) == 64 # not killed, in this process

def test_other_training_is_refused(nf4, rows, tmp_path):
    train(nf4[0], rows, tmp_path, **FAST | dict(epochs=1))
    for change in (dict(epochs=2), dict(learning_rate=1e-3), dict(seed=1)):
        with pytest.raises(A3TError, match='other trajectories or settings'):
            train(nf4[0], rows, tmp_path, **FAST | dict(epochs=1) | change)
    with pytest.raises(A3TError, match='other trajectories'): train(nf4[0], rows[:2], tmp_path, **FAST | dict(epochs=1))

def test_corrected_settings_are_accepted(nf4, rows, tmp_path):
    with pytest.raises(A3TError, match='target_modules'):
        train(nf4[0], rows, tmp_path, **FAST | dict(target_modules=('nothing',)))
    with pytest.raises(A3TError, match='learning_rate'):
        train(nf4[0], rows, tmp_path, **FAST
              | dict(epochs=1, batch_size=1, learning_rate=1e30, max_grad_norm=1e30, warmup=0.))
    assert train(nf4[0], rows, tmp_path, **FAST | dict(epochs=1))['steps'] == 2

def test_a_training_of_one_step_learns(nf4, rows, tmp_path):
    "Its learning rate does not warm up, which would leave it at 0"
    made = train(nf4[0], rows, tmp_path, **FAST | dict(epochs=1, batch_size=len(rows)))
    state = load_file(tmp_path/'adapter'/'adapter_model.safetensors')
    assert made['steps'] == 1 and any(v.any() for k,v in state.items() if 'lora_B' in k)

def test_seed_counts(nf4, rows, tmp_path):
    h = [train(nf4[0], rows, tmp_path/str(i), **FAST | dict(epochs=1, seed=s))['adapter_hash']
         for i,s in enumerate((0, 0, 1))]
    assert h[0] == h[1] != h[2]

def test_average(nf4, rows, tmp_path, monkeypatch):
    monkeypatch.setattr('a3t.train.shutil.rmtree', lambda *a, **k: None)
    train(nf4[0], rows, tmp_path, **FAST)
    states = [load_file(c/'adapter_model.safetensors') for c in checkpoints(tmp_path/'checkpoints')]
    got = load_file(tmp_path/'adapter'/'adapter_model.safetensors')
    assert len(states) == 3 and got.keys() == states[0].keys()
    for k in got: torch.testing.assert_close(got[k], sum(s[k] for s in states)/3)
    assert any(not torch.equal(got[k], states[-1][k]) for k in got)
    last = average_adapters(checkpoints(tmp_path/'checkpoints')[-1:])
    assert all(torch.equal(last[k], states[-1][k]) for k in last)

def test_goes_on_from_an_adapter(nf4, rows, tmp_path):
    first = train(nf4[0], rows, tmp_path/'a', **FAST | dict(average=1))
    second = train(nf4[0], rows, tmp_path/'b', **FAST | dict(epochs=1, learning_rate=1e-3), adapter=first['adapter'])
    assert second['parameters'] == first['parameters'] and second['loss_first'] < first['loss_first']

@pytest.mark.parametrize('kw,word', [
    (dict(learning_rate=1e30, max_grad_norm=1e30, target_modules='all-linear'), 'learning_rate'),
    (dict(contrast_floor=0., epochs=60, schedule='constant'), 'contrast_floor')])
def test_guards(nf4, rows, tmp_path, kw, word):
    with pytest.raises(A3TError, match=word):
        train(nf4[0], [rows[0], rows[2]], tmp_path, **FAST | dict(learning_rate=2e-2) | kw)
    assert not (tmp_path/'adapter').exists() and read_log(tmp_path/'train.jsonl')
    assert not any('lora' in n for n,_ in nf4[0].named_modules())

def test_bad_input(nf4, rows, tmp_path):
    with pytest.raises(A3TError, match='empty'): train(nf4[0], [], tmp_path/'a')
    with pytest.raises(A3TError, match='target_modules'): train(nf4[0], rows, tmp_path/'b', target_modules=('nothing',))
    with pytest.raises(A3TError, match='normalise'): train(nf4[0], rows, tmp_path/'c', normalise='words')
    (tmp_path/'file').write_text('')
    with pytest.raises(A3TError, match='cannot'): train(nf4[0], rows, tmp_path/'file'/'d')

@pytest.mark.parametrize('size', [0, 8_000, 30_000, 60_000])
def test_disk_refuses(nf4, rows, tmp_path, size):
    "Files may not grow beyond a size: adapter, optimiser state or log are cut short; afterwards it goes on"
    resource = pytest.importorskip('resource')
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        with pytest.raises(A3TError, match='cannot write'): train(nf4[0], rows, tmp_path/'a', **FAST)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert not (tmp_path/'a'/'adapter').exists()
    if size == 8_000:
        a, b = (train(nf4[0], rows, tmp_path/d, **FAST)['adapter_hash'] for d in 'ab')
        assert a == b

@pytest.mark.parametrize('kw', [dict(layers=1), dict(gradient_checkpointing=True), dict(micro_tokens=5000),
                                dict(normalise='none')])
def test_variants(nf4, rows, tmp_path, kw):
    a, b = (train(nf4[0], rows, tmp_path/str(i), **FAST | dict(epochs=1, average=1) | k) for i,k in enumerate(({}, kw)))
    assert math.isfinite(b['loss_last'])
    if 'layers' in kw:
        keys = load_file(tmp_path/'1'/'adapter'/'adapter_model.safetensors').keys()
        assert keys and all('layers.1.' in k for k in keys) and b['parameters'] == a['parameters']/2
    elif kw.get('normalise') != 'none':  # how it is computed must not change what is computed
        x, y = (load_file(tmp_path/d/'adapter'/'adapter_model.safetensors') for d in '01')
        for k in x: torch.testing.assert_close(x[k], y[k], atol=2e-3, rtol=1e-2)

def test_bf16(folder, rows, tmp_path):
    model, tok = load_model(folder, device='cpu', dtype=torch.bfloat16)
    res = train(model, rows, tmp_path, **FAST | dict(epochs=8))
    state = load_file(tmp_path/'adapter'/'adapter_model.safetensors')
    assert all(v.dtype == torch.float32 for v in state.values()) and res['loss_last'] < res['loss_first']
    assert model.config._attn_implementation == 'sdpa'

def test_no_gradient_below_the_first_adapted_layer(nf4, rows):
    m = lora(nf4[0], 4, layers=1)
    m.train(); unpack_4bit(m)
    seen = []
    first = m.get_base_model().get_decoder().layers[0]
    out = lambda o: o[0] if isinstance(o, tuple) else o
    hook = first.register_forward_hook(lambda mod, i, o: seen.append(out(o).requires_grad))
    with quiet(): token_logprobs(m.get_base_model(), rows[:1])
    hook.remove(); m.unload(); nf4[0].eval()
    assert seen == [False]

def test_batches():
    lengths = [5, 90, 7, 20, 33, 8, 1]
    b = Batches(lengths, 3, seed=3)
    first = list(b)
    assert len(b) == 3 and sorted(i for x in first for i in x) == list(range(7)) and 1 in first[0]
    assert max(map(len, first)) - min(map(len, first)) <= 1 and list(b) == first
    b.set_epoch(1)
    assert list(b) != first and sorted(i for x in b for i in x) == list(range(7))
    rows = [Row((0,)+tuple(range(10*i, 10*i+n-1)), (), 1., '', True) for i,n in enumerate(lengths)]
    parts = micro_batches([(r, i) for i,r in enumerate(rows)], 40)
    assert sorted(i for p in parts for _,i in p) == list(range(7))
    assert all(len(p) == 1 or sum(len(r) for r,_ in p) <= 40+len(p) for p in parts) and parts[0][0][1] == 1
    assert len(micro_batches([(rows[1], 0)]*5, 90)) == 1 # a common beginning counts once

def test_order_finds_the_longest_row_once():
    "Once, not once for each batch"
    class Lengths(list):
        looks = 0
        def index(self, x):
            Lengths.looks += 1
            return super().index(x)
    b = Batches([1], 2)
    b.lengths, b.n = Lengths(range(1000)), 500
    assert 999 in next(iter(b)) and Lengths.looks == 1

def test_fingerprint_covers_all_rows(rows, monkeypatch):
    "Row by row, without a text of all rows; the hash is that of all rows, so older trainings are recognised"
    want, dumps, sizes = content_hash([asdict(r) for r in rows]), json.dumps, []
    longest = max(len(dumps(asdict(r))) for r in rows)
    monkeypatch.setattr('a3t.train.json.dumps', lambda *a, **kw: sizes.append(len(dumps(*a, **kw))) or dumps(*a, **kw))
    assert rows_hash(rows) == want and len(sizes) == len(rows) and max(sizes) <= longest
    assert rows_hash(rows[::-1]) != want and rows_hash([]) == content_hash([])

def test_a_missing_log_is_an_error(tmp_path):
    for wrong in (tmp_path/'none'/'train.jsonl', tmp_path):
        with pytest.raises(A3TError, match=r'pass the train\.jsonl'): read_log(wrong)
    assert read_log(tmp_path/'train.jsonl', missing_ok=True) == []

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_threads_change_nothing(folder, rows, tmp_path, dtype):
    """In bf16 one micro-batch for each thread: the same bytes as one thread. In fp32 threads share a product, and some
    CPUs then add up in another order"""
    model, tok = load_model(folder, device='cpu', dtype=dtype)
    hashes, was = [], torch.get_num_threads()
    for n in (1, 2, 2):
        torch.set_num_threads(n)
        try:
            hashes.append(train(model, rows, tmp_path/str(len(hashes)),
                                **FAST | dict(batch_size=4, micro_tokens=1))['adapter_hash'])
        finally: torch.set_num_threads(was)
    assert hashes[1] == hashes[2]
    if dtype == torch.bfloat16: assert hashes[0] == hashes[1]
    one, two = (load_file(tmp_path/str(i)/'adapter'/'adapter_model.safetensors') for i in (0, 1))
    for k in one: torch.testing.assert_close(one[k], two[k], rtol=1e-3, atol=1e-5)

def test_pool():
    n = torch.get_num_threads()
    with threads(3) as several:
        assert list(several(lambda x: x*x, range(9))) == [x*x for x in range(9)]
        with pytest.raises(ZeroDivisionError): list(several(lambda x: 1/x, [1, 0, 2]))
    with threads(1) as several: assert several is map
    assert torch.get_num_threads() == n

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_memory_is_predicted(folder, dtype):
    "Bytes kept for a long row, from a short one"
    model, _ = load_model(folder, device='cpu', dtype=dtype)
    m = lora(model, 4, target_modules='all-linear')
    with lean(m.train()), quiet():
        long, plan = kept_bytes(model, 700), predict_memory(m, 700)
        assert abs(long/(700*kept_bytes(model, 128)/128) - 1) < .03 and long < plan['activations']
        less, more = predict_memory(m, 700, checkpointing=True), predict_memory(m, 1400, 2)
        assert less['activations'] < plan['activations'] < more['activations']
    m.unload()
    assert plan['total'] == sum(v for k,v in plan.items() if k != 'total')
    # LoRA's own are fp32
    assert plan['weights'] == sum(p.numel() for p in model.parameters())*dtype.itemsize + plan['learning']//4

@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='only Linux reports the peak')
@pytest.mark.parametrize('tokens,threads,checkpointing', [(512, 1, 0), (512, 2, 0), (1024, 2, 0), (512, 2, 1)])
def test_the_peak_is_as_predicted(tokens, threads, checkpointing):
    "SmolLM2, a process each: within a quarter of the highest resident memory"
    env = {k:v for k,v in ENV.items() if k != 'OMP_NUM_THREADS'}
    out = subprocess.run([sys.executable, str(PROGRAM), 'peak', *map(str, (tokens, threads, checkpointing))], env=env,
                         capture_output=True, text=True, check=True).stdout
    r = json.loads(out.splitlines()[-1])
    assert .75 < r['plan']['total']/r['peak'] < 1.25, r

def test_most_tokens(rows):
    items = [(r, None) for r in rows]
    n = sorted(map(len, rows), reverse=True)
    assert most_tokens(items, [[i] for i in range(len(rows))], 1, 2) == n[0]
    assert most_tokens(items, [list(range(len(rows)))], 1, 2) == n[0]+n[1]

def test_prints_the_memory_it_needs(nf4, rows, tmp_path, capsys):
    train(nf4[0], rows, tmp_path, **FAST | dict(epochs=1), progress='steps')
    assert 'GB of memory at most' in capsys.readouterr().out

# -- one adapter, two jobs

def mean_logprob(model, rows):
    "Mean log-probability of the tokens that bear loss"
    with torch.no_grad(), quiet(): return token_logprobs(model, rows)[0].mean().item()

def names_share(lm, trajs):
    "In how many of the reasons that a free ActRe writes does the action's thing occur?"
    house, actre = ToyHouse(), ActRe(lm, instruction='', max_tokens=24)
    steps = [(replace(t, steps=t.steps[:i]), s.action) for t in trajs for i,s in enumerate(t.steps)]
    said = gather([actre(*x) for x in steps])
    return sum(house.things(a)[0] in r for r,(_, a) in zip(said, steps))/len(steps), said

def test_one_adapter_learns_both_jobs(folder, tmp_path):
    "Policy and ActRe: the tokens of both become more likely, and the same reasons come again"
    load = lambda adapter=None: load_model(folder, device='cpu', dtype=torch.float32, adapter=adapter)
    house, (model, tok) = ToyHouse(), load()
    plain = [play(house, t, house.walkthrough(t)) for t in house.tasks('train')[:4]]
    plain = [replace(t, steps=tuple(replace(s, actor='sampled') for s in t.steps)) for t in plain]
    lm = LocalModel(model, tok, slots=4)
    taught = gather([annotate(t, ActRe(lm, house.exemplar, grounded=house)) for t in plain])
    acts, reasons = make_rows(tok, taught, observations='mask')[0], make_actre_rows(tok, taught)[0]
    before = [mean_logprob(model, r) for r in (acts, reasons)], names_share(lm, taught)[0]
    res = train(model, acts + reasons, tmp_path, **FAST | dict(epochs=16, lora_rank=16, batch_size=4, average=1))
    trained = load(tmp_path/'adapter')
    lm = LocalModel(*trained, slots=4)
    share, said = names_share(lm, taught)
    after = [mean_logprob(trained[0], r) for r in (acts, reasons)], share
    assert res['loss_last'] < res['loss_first'] - 1
    assert all(a > b + 1 for a,b in zip(after[0], before[0]))
    assert names_share(lm, taught)[1] == said

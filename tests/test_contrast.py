"The arms that use failures: groups, mistakes, a divergence, DPO; each equals a formula written out here or elsewhere"
import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
import pytest, torch, torch.nn.functional as F
from conftest import LOST, WON
from hypothesis import given, settings, strategies as st
from a3t.core import A3TError
from a3t.files import read_json
from a3t.data import make_row, make_rows
from a3t.envs.base import ToyHouse, play
from a3t.losses import divergence, dpo, dpo_weights, policy_gradient
from a3t.models.base import toy_tokenizer
from a3t.models.logprobs import token_logprobs
from a3t.models.weights import load_model, quiet
from a3t.train import LATER, TrainingSettings, lora, train
from a3t.training.batches import Batches, Compute, row_logprobs
from a3t.training.log import StepLog, read_log
from a3t.training.mistakes import known_states, mistakes, visited
from a3t.training.reference import mean_logprobs

torch.set_num_threads(1)
FAST = dict(epochs=3, learning_rate=1e-2, lora_rank=4, target_modules='all-linear', gradient_checkpointing=False,
            group=True)

@pytest.fixture(scope='module')
def tiny(folder): return load_model(folder, device='cpu', dtype=torch.float32)

@pytest.fixture(scope='module')
def rows(tiny):
    "Two tasks, each with three successes and a failure"
    won = [WON, replace(WON, steps=WON.steps[1:]), replace(WON, steps=WON.steps[:1] + WON.steps)]
    group = [*won, LOST]
    return make_rows(tiny[1], [replace(t, task=name) for name in ('mug', 'pen') for t in group])[0]

@pytest.fixture(scope='module')
def start(tiny, rows, tmp_path_factory):
    "An adapter that is not zero, from which training continues"
    folder = tmp_path_factory.mktemp('start')
    train(tiny[0], rows[:3], folder, **FAST | dict(epochs=1))
    return str(folder/'adapter')

# -- groups

def test_a_batch_is_one_task():
    b = Batches([9]*6, 2, seed=3, groups='abacbb')
    orders = []
    for epoch in range(4):
        b.set_epoch(epoch)
        orders.append([tuple(x) for x in b])
        assert sorted(orders[-1]) == [(0, 2), (1, 4, 5), (3,)]
    assert len(b) == 3 and len(set(map(tuple, orders))) > 1
    longest = Batches([1, 1, 1, 1, 1, 50], 2, groups='aabbcc')
    assert next(iter(longest)) == [4, 5]

def plain_gradient(tiny, rows, loss, adapter=None):
    "Gradient of a function of the summed log-probabilities of rows, by one plain forward pass for each row"
    m = lora(tiny[0], 4, target_modules='all-linear', adapter=adapter)
    m.train()
    logps = []
    for r in rows:
        ids = torch.tensor([r.input_ids])
        lp = m(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        logps.append(lp[torch.tensor(r.loss_mask[1:])])
    loss(logps).backward()
    res = {k:p.grad.clone() for k,p in m.named_parameters() if p.grad is not None}
    m.unload(); tiny[0].eval()
    return res, [l.detach() for l in logps]

def first_gradient(tiny, rows, folder, monkeypatch, **kw):
    "The gradient that the trainer hands to the optimiser in its first step"
    found = {}
    def on_pre_optimizer_step(self, args, state, control, model=None, **kw):
        if not found: found.update({k:p.grad.clone() for k,p in model.named_parameters() if p.grad is not None})
    with monkeypatch.context() as m:
        m.setattr(StepLog, 'on_pre_optimizer_step', on_pre_optimizer_step)
        train(tiny[0], rows, folder, **FAST | dict(epochs=1, max_grad_norm=1e9) | kw)
    return found

def same(a, b):
    assert a.keys() == b.keys() and any(g.abs().max() > 1e-5 for g in a.values())
    for k in a: torch.testing.assert_close(a[k], b[k], atol=2e-6, rtol=1e-3)

def test_a_step_is_equation_1_of_a_group(tiny, rows, start, tmp_path, monkeypatch):
    got = first_gradient(tiny, rows[:4], tmp_path, monkeypatch, adapter=start)
    def minus_J(logps): return -sum(r.weight*l.mean() for r,l in zip(rows, logps))/4
    same(got, plain_gradient(tiny, rows[:4], minus_J, start)[0])
    line, = read_log(tmp_path/'train.jsonl')
    assert line['loss'] == pytest.approx(-(line['imitation'] + line['contrast']), abs=1e-4) and 'kl' not in line

def test_two_tasks_are_two_steps(tiny, rows, tmp_path):
    res = train(tiny[0], rows, tmp_path, **FAST | dict(epochs=1, batch_size=1))
    assert res['steps'] == 2 and [l['tokens'] for l in read_log(tmp_path/'train.jsonl')] == [sum(map(len, rows[:4]))]*2

# -- DPO

def published(logp, reference, pairs, beta):
    "Equation 7 of Rafailov et al. (2023), written out pair by pair"
    total = 0.
    for s,f in pairs:
        h = beta*(logp[s] - reference[s]) - beta*(logp[f] - reference[f])
        total += -torch.log(1/(1 + torch.exp(-h)))
    return total/len(pairs)

numbers = st.lists(st.floats(-30, -.1), min_size=5, max_size=5)

@settings(max_examples=40, deadline=None)
@given(numbers, numbers, st.floats(.01, 1.))
def test_dpo_is_the_published_formula(logp, reference, beta):
    logp, reference = (torch.tensor(x, dtype=torch.float64) for x in (logp, reference))
    logp.requires_grad_()
    won, groups, pairs = [True, False, True, True, False], 'aaabb', [(0, 1), (2, 1), (3, 4)]
    ours, theirs = dpo(logp, reference, won, groups, beta), published(logp, reference, pairs, beta)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x, logp)[0] for x in (ours, theirs)))

def test_dpo_by_hand():
    "β = 0.1 and a margin of 10: −log σ(1) = 0.31326; without a margin log 2"
    won, same_task = [True, False], 'aa'
    at = lambda s, f: dpo(torch.tensor([s, f]), torch.tensor([-10., -20.]), won, same_task, .1).item()
    assert at(-5., -25.) == pytest.approx(.31326, abs=1e-5) and at(-10., -20.) == pytest.approx(math.log(2))
    with pytest.raises(A3TError, match='a success and a failure'): dpo(torch.zeros(2), torch.zeros(2), won, 'ab')

def test_dpo_is_that_of_trl():
    "TRL's own code computes the loss of the same tokens: the same number and gradient"
    trainer = pytest.importorskip('trl.trainer.dpo_trainer').DPOTrainer
    g = torch.Generator().manual_seed(0)
    logp = (-3*torch.rand(4, 6, generator=g)).requires_grad_() # two chosen, two rejected; six tokens
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    reference = -3*torch.rand(4, 6, generator=g)
    sums = lambda x: (x*mask).sum(1)
    def model(**kw):
        outputs = dict.fromkeys(('entropy', 'mean_logits'), logp.detach())
        return SimpleNamespace(log_probs=logp*mask, is_top1=torch.zeros(4, 6, dtype=torch.bool), **outputs)
    accelerator = SimpleNamespace(device='cpu', gather=lambda x: x, gather_for_metrics=lambda x: x)
    self = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None, beta=.3,
        precompute_ref_logps=True, f_divergence_type='reverse_kl', loss_types=['sigmoid'], loss_weights=[1.],
        use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1)
    chosen, rejected = sums(reference).chunk(2)
    inputs = dict(input_ids=torch.zeros(4, 7, dtype=torch.long), attention_mask=torch.ones(4, 7),
                  completion_mask=F.pad(mask, (1, 0)), ref_chosen_logps=chosen, ref_rejected_logps=rejected)
    theirs = trainer._compute_loss(self, model, inputs, False)
    ours = dpo(sums(logp), sums(reference), [True, True, False, False], 'abab', .3)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x, logp)[0] for x in (ours, theirs)))

def test_dpo_weights_give_its_gradient():
    logp, reference = torch.tensor([-9., -8., -7.], requires_grad=True), torch.tensor([-9., -9., -9.])
    loss, weights = dpo_weights(logp, reference, [True, True, False], 'aaa', .5, m=7)
    direct = dpo(logp, reference, [True, True, False], 'aaa', .5)
    assert loss == pytest.approx(direct.item())
    assert weights.sum().item() == pytest.approx(0., abs=1e-5) # what successes gain, the failure loses
    torch.testing.assert_close(*(torch.autograd.grad(x, logp)[0]
                                 for x in (direct, -policy_gradient(logp, weights, 7))))

def test_the_trainer_computes_dpo(tiny, rows, start, tmp_path, monkeypatch):
    "After a first step, so that the policy has left its start; sums of log-probabilities, as published"
    seen, was = [], {}
    kw = dict(loss='dpo', kl=.02, normalise='none', adapter=start, schedule='constant', warmup=0., learning_rate=1e-3,
              max_grad_norm=1e9)
    def on_pre_optimizer_step(self, args, state, control, model=None, **kw):
        seen.append({k:p.grad.clone() for k,p in model.named_parameters() if p.grad is not None})
        was[len(seen)] = {k:p.detach().clone() for k,p in model.named_parameters() if p.requires_grad}
    monkeypatch.setattr(StepLog, 'on_pre_optimizer_step', on_pre_optimizer_step)
    train(tiny[0], rows[:4], tmp_path, **FAST | dict(epochs=2) | kw)
    _, before = plain_gradient(tiny, rows[:4], lambda ls: sum(l.sum() for l in ls), start)
    m = lora(tiny[0], 4, target_modules='all-linear', adapter=start)
    for k,p in m.named_parameters():
        if k in was[2]: p.data.copy_(was[2][k])
    m.train()
    logps = []
    for r in rows[:4]: logps.append(token_logprobs(m.get_base_model(), [r], False)[0].sum())
    loss = published(torch.stack(logps), torch.stack([b.sum() for b in before]), [(0, 3), (1, 3), (2, 3)], .02)
    loss.backward()
    same(seen[1], {k:p.grad for k,p in m.named_parameters() if p.grad is not None})
    m.unload(); tiny[0].eval()
    first, second = read_log(tmp_path/'train.jsonl')
    assert first['loss'] == pytest.approx(math.log(2), abs=1e-4)
    assert second['loss'] == pytest.approx(loss.item(), abs=1e-4)

# -- a divergence

def test_divergence():
    x = torch.tensor([-1., -2., -4.], requires_grad=True)
    d = divergence(x, torch.tensor([-1., -3., -2.]))
    assert d.tolist() == pytest.approx([0., math.exp(-1), math.exp(2) - 3]) # e^d − d − 1 with d = 0, −1, 2
    d.sum().backward()
    assert x.grad.tolist() == pytest.approx([0., 1 - math.exp(-1), 1 - math.exp(2)])

def test_divergence_estimates_the_kl():
    "The mean of k3 over tokens that the policy samples is KL(policy, start)"
    p, q = (torch.randn(7, generator=torch.Generator().manual_seed(s)).log_softmax(0) for s in (0, 1))
    torch.testing.assert_close((p.exp()*divergence(p, q)).sum(), (p.exp()*(p - q)).sum())

def test_the_trainer_adds_the_divergence(tiny, rows, start, tmp_path, monkeypatch):
    kw = dict(kl=.7, adapter=start, schedule='constant', warmup=0.)
    train(tiny[0], rows[:4], tmp_path, **FAST | kw)
    lines = read_log(tmp_path/'train.jsonl')
    assert lines[0]['kl'] == pytest.approx(0., abs=1e-6) and lines[1]['kl'] > 1e-4
    for l in lines: assert l['loss'] == pytest.approx(.7*l['kl'] - l['imitation'] - l['contrast'], abs=1e-4)
    held = mean_logprobs(load_model(tiny[0].name_or_path, device='cpu', adapter=tmp_path/'adapter')[0], rows)
    train(tiny[0], rows[:4], tmp_path/'free', **FAST | kw | dict(kl=0.))
    free = mean_logprobs(load_model(tiny[0].name_or_path, device='cpu', adapter=tmp_path/'free'/'adapter')[0], rows)
    assert free['lost'] < held['lost']

# -- killed and resumed, and as before

class Killed(BaseException): pass

@pytest.mark.parametrize('kw', [dict(loss='dpo', kl=.1), dict(kl=.5)])
def test_resume_is_identical(tiny, rows, start, tmp_path, monkeypatch, kw):
    kw = FAST | dict(adapter=start) | kw
    whole = train(tiny[0], rows, tmp_path/'a', **kw)
    was, computed = StepLog.on_step_end, []
    def on_step_end(self, args, state, control, **kw):
        was(self, args, state, control, **kw)
        if state.global_step == 3: raise Killed
    with monkeypatch.context() as m:
        m.setattr(StepLog, 'on_step_end', on_step_end)
        with pytest.raises(Killed): train(tiny[0], rows, tmp_path/'b', **kw)
    found, = (tmp_path/'b'/'checkpoints').glob('start-*.safetensors')
    before = found.read_bytes()
    monkeypatch.setattr('a3t.training.reference.row_logprobs', lambda *a: computed.append(a))
    again = train(tiny[0], rows, tmp_path/'b', **kw)
    assert not computed and not found.exists() and len(before) > 100 # computed once, and deleted in the end
    assert again['adapter_hash'] == whole['adapter_hash']
    strip = lambda l: {k:v for k,v in l.items() if k != 'seconds'}
    a, b = ([strip(l) for l in read_log(tmp_path/d/'train.jsonl')] for d in 'ab')
    assert a == b

def test_settings_of_earlier_trainings_are_the_same(tiny, rows, tmp_path):
    train(tiny[0], rows, tmp_path/'a', **FAST | dict(group=False, epochs=1))
    assert not LATER.keys() & read_json(tmp_path/'a'/'training.json')['settings'].keys()
    assert {k:v for k,v in vars(TrainingSettings()).items() if k in LATER} == LATER
    train(tiny[0], rows, tmp_path/'b', **FAST | dict(kl=.1, epochs=1))
    assert read_json(tmp_path/'b'/'training.json')['settings'].items() >= dict(kl=.1, group=True).items()

@pytest.mark.parametrize('kw,words', [
    (dict(loss='ppo'), 'choose'), (dict(kl=-1.), 'positive'), (dict(loss='dpo'), 'set kl to its β'),
    (dict(loss='dpo', kl=.1, group=False), 'and group'), (dict(kl=.1, lora_dropout=.1), 'lora_dropout = 0')])
def test_settings_that_do_not_fit(tiny, rows, tmp_path, kw, words):
    with pytest.raises(A3TError, match=words): train(tiny[0], rows, tmp_path/'x', **FAST | kw)
    assert not (tmp_path/'x').exists()

def test_dpo_needs_both_kinds(tiny, rows, tmp_path):
    with pytest.raises(A3TError, match='pen'): train(tiny[0], rows[:7], tmp_path, **FAST | dict(loss='dpo', kl=.1))

def test_row_logprobs_are_in_order(tiny, rows):
    with quiet(): found = row_logprobs(tiny[0], rows[::-1], Compute(True, 300))
    with torch.no_grad(), quiet(): alone = [token_logprobs(tiny[0], [r], False)[0] for r in rows[::-1]]
    for a,b in zip(found, alone): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    means = mean_logprobs(tiny[0], rows)
    lost = torch.cat([l for l,r in zip(alone, rows[::-1]) if not r.won])
    assert means['lost'] == pytest.approx(lost.mean().item(), abs=1e-4)
    assert mean_logprobs(tiny[0], rows[:3])['lost'] is None

# -- mistakes

HOUSE = ToyHouse()
TASK = HOUSE.tasks('train')[0]
SUCCESS = play(HOUSE, TASK, HOUSE.walkthrough(TASK))

def wrong(actions):
    t = play(HOUSE, TASK, actions)
    return mistakes(t, visited(HOUSE, t), known_states(HOUSE, [SUCCESS]))

def test_mistakes():
    a = SUCCESS.actions
    assert wrong(a[:2]) == [False, False]                         # cut short on the way: nothing was wrong
    assert wrong([a[0], 'fly', a[1]]) == [False, True, False]     # an invalid step, then back on the way
    elsewhere = next(f'go to {p}' for p in ('shelf', 'table') if f'go to {p}' not in a)
    # away and back: the states come back to a known one, so that only what follows the last of them is wrong
    assert wrong([a[0], elsewhere, a[0], a[1], elsewhere]) == [False, False, True, False, True]
    assert wrong([elsewhere]) == [True]

def test_a_replay_that_differs_is_an_error():
    other = replace(SUCCESS, steps=(replace(SUCCESS.steps[0], observation='At the moon.'),))
    with pytest.raises(A3TError, match='step 1 of the replay'): visited(HOUSE, other)

def test_only_marked_steps_bear_loss():
    tokenizer = toy_tokenizer()
    t = replace(SUCCESS, won=False)
    whole, part = (make_row(tokenizer, t, -1., 'mask', bears=b)
                   for b in (None, lambda t: [True, False, False, True]))
    first, last = (make_row(tokenizer, replace(t, steps=t.steps[i:i+1]), -1., 'mask').n_loss for i in (0, 3))
    assert part.input_ids == whole.input_ids and part.n_loss == first + last < whole.n_loss
    rows, _ = make_rows(tokenizer, [SUCCESS, t], bears=lambda t: [t.won or i == 1 for i in range(len(t))])
    assert rows[0].n_loss == make_row(tokenizer, SUCCESS).n_loss and rows[1].n_loss < rows[0].n_loss

import random
import pytest, torch
from a3t.core import A3TError
from a3t.data import Row
from a3t.models.logprobs import LoraUpdate, Norm, SiluProduct, TokenLogprobs, lay_out, lean, can_pack, token_logprobs
from a3t.losses import term_weights
from a3t.models.weights import load_model, quiet, tiny_model
from a3t.train import lora
from a3t.training.batches import rows_loss

torch.set_num_threads(1)

def row(ids, mask=None): return Row(tuple(ids), tuple(mask or [False]+[True]*(len(ids)-1)), 1., 't', True)

@pytest.fixture(scope='module', params=['mistral', 'qwen2'])
def model(request, tmp_path_factory):
    return load_model(tiny_model(tmp_path_factory.mktemp('m')/'tiny', request.param), device='cpu',
                      dtype=torch.float32)[0]

def family(seed, n=6, vocabulary=200):
    "Random rows that branch from each other, some equal, some a prefix of another"
    rng = random.Random(seed)
    rows = [[rng.randrange(vocabulary) for _ in range(60)]]
    while len(rows) < n:
        r = rng.choice(rows)
        k = rng.choice([0, 3, 17, 30, 45, len(r)])
        rows.append(r[:k] + [rng.randrange(vocabulary) for _ in range(rng.choice([0, 5, 40]) if k > 1 else 30)])
    return [row(r, [False]+[rng.random() < .5 for _ in r[2:]]+[True]) for r in rows]

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('block', [0, 16])
def test_layout_shows_each_token_its_own_past(seed, block):
    rows = family(seed)
    ids, positions, blocks, places = lay_out(rows, block)
    sees = {}
    for a,b,path in blocks:
        assert path[-1][1] == b and not block or b-a <= block
        for i in range(a, b): sees[i] = [j for s,e in path for j in range(s, e) if j <= i or e <= a]
    assert sorted(sees) == list(range(len(ids))) and len(ids) < sum(map(len, rows))
    for r,place in zip(rows, places):
        assert [ids[i] for i in place] == list(r.input_ids) and [positions[i] for i in place] == list(range(len(r)))
        for t,i in enumerate(place): assert sees[i] == place[:t+1]

def test_nothing_shared():
    rows = [row([1]*9), row([2]*5)]
    ids, positions, blocks, _ = lay_out(rows)
    assert len(ids) == 14 and [len(p) for _,_,p in blocks] == [1, 1]

def gradients(model, rows, groups, attention=None):
    "LoRA gradients with rows in these groups, by the lean functions; or by plain transformers and PEFT"
    m = lora(model, 4, target_modules='all-linear', seed=1)
    for k,p in m.named_parameters():
        if 'lora_B' in k: torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(len(k)))
    m.train()
    terms = term_weights([r.won for r in rows], range(len(rows)))
    losses = []
    with lean(m), quiet():
        for g in groups:
            sub = [rows[i] for i in g]
            loss, _ = rows_loss(*token_logprobs(m.get_base_model(), sub), sub, terms[g], len(rows))
            loss.backward(); losses.append(loss.item())
    res = {k:p.grad.clone() for k,p in m.named_parameters() if p.grad is not None}
    m.unload(); model.eval()
    return sum(losses), res

@pytest.mark.parametrize('seed', range(3))
def test_shared_prefixes_give_the_gradient_of_separate_rows(model, seed):
    rows = family(seed)
    a, ga = gradients(model, rows, [list(range(len(rows)))])
    b, gb = gradients(model, rows, [[i] for i in range(len(rows))])
    assert abs(a-b) < 1e-5 and len(ga) == 28 and all(g.abs().max() > 1e-6 for g in ga.values())
    for k in ga: torch.testing.assert_close(ga[k], gb[k], atol=1e-5*gb[k].abs().max().item(), rtol=1e-4)

def test_the_gradient_of_plain_transformers_and_peft(model):
    rows = family(0)
    _, got = gradients(model, rows, [list(range(len(rows)))])
    m = lora(model, 4, target_modules='all-linear', seed=1)
    for k,p in m.named_parameters():
        if 'lora_B' in k: torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(len(k)))
    m.train()
    for r in rows:
        ids = torch.tensor([r.input_ids])
        labels = torch.where(torch.tensor([r.loss_mask]), ids, -100)
        (m(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss/len(rows)).backward()
    for k,p in m.named_parameters():
        if p.grad is not None: torch.testing.assert_close(p.grad, got[k], atol=2e-6, rtol=1e-3)
    m.unload(); model.eval()

def test_bf16_is_as_near_to_fp32_as_plain_bf16(tmp_path):
    "Rounding errors of the gradient: no more than one and a half times those of transformers and PEFT under autocast"
    folder = tiny_model(tmp_path/'tiny', initializer_range=.05)
    rows, g = family(3, 24), {}
    for name, dtype in (('exact', torch.float32), ('ours', torch.bfloat16), ('plain', torch.bfloat16)):
        model = load_model(folder, device='cpu', dtype=dtype)[0]
        if name != 'plain': g[name] = gradients(model, rows, [[i] for i in range(len(rows))])[1]; continue
        m = lora(model, 4, target_modules='all-linear', seed=1)
        for k,p in m.named_parameters():
            if 'lora_B' in k: torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(len(k)))
        for r in m.train() and rows:
            ids = torch.tensor([r.input_ids])
            with torch.autocast('cpu', torch.bfloat16):
                (m(input_ids=ids, labels=torch.where(torch.tensor([r.loss_mask]), ids, -100)).loss/len(rows)).backward()
        g[name] = {k:p.grad for k,p in m.named_parameters() if p.grad is not None}
    error = lambda name: sum((g[name][k]-g['exact'][k]).norm()**2 for k in g['exact'])**.5 / sum(x.norm()**2
        for x in g['exact'].values())**.5
    assert 0 < error('ours') < 1.5*error('plain') < .2, (error('ours'), error('plain'))

def test_functions_by_finite_differences():
    r = lambda *s: torch.randn(*s, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    w, target = torch.randn(11, 5, dtype=torch.float64), torch.tensor([3, 0, 10])
    x, y, h = r(2, 3, 5), r(2, 3, 7), r(3, 5)
    A, B = r(4, 5), r(7, 4)
    def close(f, g, *args):
        a, b = f(*args), g(*args)
        d = torch.randn_like(b)
        for p,q in zip((a, *torch.autograd.grad(a, args, d.to(a.dtype))), (b, *torch.autograd.grad(b, args, d))):
            torch.testing.assert_close(p.double(), q, atol=1e-6, rtol=1e-5)
    close(lambda x, y, A, B: LoraUpdate.apply(x, y.clone(), A, B, .5), lambda x, y, A, B: y + .5*x@A.T@B.T, x, y, A, B)
    close(lambda h: TokenLogprobs.apply(h, w, target, 2), lambda h: (h@w.T).log_softmax(-1)[range(3), target], h)
    close(SiluProduct.apply, lambda a, b: torch.nn.functional.silu(a)*b, x, r(2, 3, 5))
    close(lambda x: Norm.apply(x, w[0], 1e-3), lambda x: x*(x.square().mean(-1, keepdim=True)+1e-3).rsqrt()*w[0], x)

@pytest.mark.parametrize('packed', [True, False])
def test_rows_longer_than_the_context_are_refused(tmp_path, packed):
    model, _ = load_model(tiny_model(tmp_path/'m', max_position_embeddings=32), device='cpu')
    some = [row(range(5, 37)), row(range(5, 38))]
    assert len(token_logprobs(model, some[:1], packed)[0]) == 31
    with pytest.raises(A3TError, match='has 33 tokens, but MistralForCausalLM reads only 32: lower max_length'):
        token_logprobs(model, some, packed)

def test_lean_leaves_no_trace(model):
    m = lora(model, 4)
    with lean(m): assert any('forward' in vars(x) for x in m.modules())
    assert not any('forward' in vars(x) for x in m.modules())
    m.unload()

def test_rows_longer_than_the_window_are_read_apart(tmp_path):
    "Up to the window rows share prefixes; beyond it they are read one by one"
    model = load_model(tiny_model(tmp_path/'tiny', sliding_window=16), device='cpu', dtype=torch.float32)[0]
    for n in (16, 40):
        rows = [row([*range(5, n), last]) for last in (1, 2, 3, 4, 5)]
        assert can_pack(model, rows) == (n < 17)
        with torch.no_grad(), quiet():
            logp, which = token_logprobs(model, rows)
            want = [model(torch.tensor([r.input_ids])).logits[0, :-1].log_softmax(-1)[range(n - 5), r.input_ids[1:]]
                    for r in rows]
        assert torch.allclose(logp, torch.cat(want),
                              atol=1e-4) and which.tolist() == [i for i in range(5) for _ in range(n - 5)]

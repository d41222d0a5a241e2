"Parts that attend together, padded, give what each gives alone; copies that wait give what copies at once give"
import random
import pytest, torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForCausalLM, MistralConfig
from a3t.models.base import gather, toy_tokenizer
from a3t.models.forward import SlotCache, forward
from a3t.models.local import LocalModel
from a3t.models.packed import Packed, Part
from a3t.models.slots import Request, Slots, Tree

SLOTS, LIMIT, VOCABULARY = 5, 128, 64

def model(window=None, vocabulary=VOCABULARY):
    "A tiny model in fp32"
    config = MistralConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, vocab_size=vocabulary, max_position_embeddings=LIMIT,
                           sliding_window=window, initializer_range=.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

MODELS = {w:model(w) for w in (None, 7)}

def cache(net, together):
    "An empty cache that works as on a GPU, or as on a CPU"
    res = SlotCache(net, SLOTS)
    res.together = together
    return res

def tree(rng, slot, start):
    "Candidates that share beginnings"
    res = Tree(rng.randrange(VOCABULARY))
    for _ in range(3): res.add([rng.randrange(3) for _ in range(rng.randint(1, 3))])
    return res.part(slot, start)

def some_parts(rng, lengths, held):
    "New tokens for some slots: prompts, single tokens, drafts, trees"
    res = []
    for slot,n in lengths.items():
        if not n: res.append(tree(rng, slot, held[slot]))
        else: res.append(Part(slot, held[slot], [rng.randrange(VOCABULARY) for _ in range(n)], list(range(n))))
        if n: held[slot] += n
    return res

PASS = st.dictionaries(st.integers(0, SLOTS - 1), st.integers(0, 19), min_size=1)

@settings(max_examples=20, deadline=None)
@given(st.sampled_from([None, 7]), st.lists(PASS, min_size=1, max_size=4), st.integers(0, 99))
def test_together_or_alone(window, passes, seed):
    "Every pass over parts of any lengths has the same logits, to rounding"
    net, rng = MODELS[window], random.Random(seed)
    alone, together = cache(net, False), cache(net, True)
    held = [0]*SLOTS
    for lengths in passes:
        parts = some_parts(rng, lengths, held)
        a, b = forward(net, alone, parts), forward(net, together, parts)
        assert a.keys() == b.keys()
        for slot in a: torch.testing.assert_close(a[slot], b[slot], atol=2e-5, rtol=1e-4)

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_groups(lengths):
    "Each long part is in one group; few groups, and more than half of each is real"
    parts = [Part(i, 0, [0]*n, []) for i,n in enumerate(lengths)]
    batch = Packed(parts, 'cpu', together=True)
    assert sorted(p.slot for g in batch.groups for p in g.parts) == [i for i,n in enumerate(lengths) if n > 1]
    assert len(batch.groups) <= 6 and len(Packed(parts, 'cpu').groups) == sum(n > 1 for n in lengths)
    query = torch.arange(sum(lengths), dtype=torch.float32)[None,None,:,None]
    out = query.transpose(1, 2).clone()
    for g in batch.groups:
        assert sum(len(p.tokens) for p in g.parts) > g.rows*g.longest/2
        g.put(out, g.take(query).transpose(1, 2))
    assert torch.equal(out, query.transpose(1, 2))

REQUESTS = st.lists(st.tuples(st.integers(0, 2), st.integers(2, 30), st.booleans()), min_size=1, max_size=12)

@settings(max_examples=25, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=4))
def test_copies_that_wait(steps):
    "Requests are placed, several before a pass; every slot then holds the tokens that it should"
    net = MODELS[None]
    slots, caches = Slots(SLOTS), [cache(net, t) for t in (False, True)]
    def copy(*args):
        for c in caches: c.copy(*args)
    for step in steps:
        for first,n,release in step:
            request = Request(ids=[first] + list(range(3, 2 + n)), adapter='', future=None)
            if not slots.place(request, copy): continue
            if release: slots.release(request.slot) # cancelled before the pass
        parts = [Part(s, int(slots.held[s]), r.todo, [len(r.todo) - 1]) for s,r in enumerate(slots.owner) if r]
        if not parts: continue
        a, b = (forward(net, c, parts) for c in caches)
        for p in parts:
            torch.testing.assert_close(a[p.slot], b[p.slot], atol=2e-5, rtol=1e-4)
            with torch.no_grad(): want = net(torch.tensor([slots.owner[p.slot].ids])).logits[0, -1]
            torch.testing.assert_close(b[p.slot][0], want, atol=1e-4, rtol=1e-3)
            slots.held[p.slot] += len(p.tokens)
            slots.release(p.slot)
        assert not caches[1].copies

def test_a_copy_whose_source_is_a_target():
    "A slot that is overwritten in the same step still passes on what it held"
    both = [cache(MODELS[None], t) for t in (False, True)]
    for c in both:
        for t in c.keys + c.values: t[:, :, :4] = torch.arange(SLOTS)[:,None,None,None]
        for source,target,n in ((0, 1, 4), (2, 0, 3), (0, 3, 3), (1, 4, 2)): c.copy(source, target, n)
        c.finish_copies()
    assert all(torch.equal(x[s, :, :n], y[s, :, :n]) for x,y in zip(both[0].keys, both[1].keys)
               for s,n in enumerate((3, 4, 4, 3, 2)))
    assert [both[1].keys[0][s, 0, 0, 0].item() for s in range(SLOTS)] == [2, 0, 2, 2, 0]

@pytest.mark.parametrize('window', [None, 7])
def test_the_engine_answers_alike(window):
    "Greedy answers and scores of episodes that grow, with drafts"
    tokenizer = toy_tokenizer()
    net, answers = model(window, len(tokenizer)), []
    for together in (False, True):
        lm = LocalModel(net, tokenizer, slots=4)
        lm.engine.cache.together = together
        prompts = ['go to desk 1. go to desk 1.'[:9 + 3*i] for i in range(6)]
        for _ in range(2):
            done = gather([lm.complete(p, max_tokens=8) for p in prompts])
            answers.append([d.token_ids for d in done])
            prompts = [p + d.text for p,d in zip(prompts, done)]
        scores = gather([lm.score(p, ['go to desk 1', 'go to shelf', 'take']) for p in prompts])
        answers.append([round(x, 3) for s in scores for x in s])
    assert answers[:3] == answers[3:]

"The engines of the benchmark do the same work and, in the same number format, generate the same tokens"
import pytest, torch
from a3t.bench import acting as bench
from a3t.bench.processes import run_apart
from a3t.models.weights import load_model, tiny_model

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    made = load_model(tiny_model(tmp_path/'tiny', vocab_size=40_000, max_position_embeddings=2048), dtype=torch.float32)
    monkeypatch.setattr(bench, 'load_model', lambda *a, **kw: made)
    return made

def test_episodes_are_the_same_each_time_and_share_nothing():
    a = bench.workload(4, 3)
    assert a == bench.workload(4, 3) and {len(p) for p,_ in a} == {bench.PROMPT_TOKENS}
    assert {len(o) for _,obs in a for o in obs} == {bench.OBSERVATION_TOKENS}
    assert len({p[0] for p,_ in a}) == 4

def test_local_and_generate_agree(tiny):
    here = bench.act_local(3, 2, processes=1)
    there = bench.act_generate(here['generated'], [0, 1])
    assert bench.agreement(here['generated'], [list(e) for e in zip(*there['generated'])]) == (1., 1.)
    assert {len(t) for e in here['generated'] for t in e} == {bench.NEW_TOKENS}
    ends = bench.turn_seconds(here)
    assert 0 < ends[0] < ends[1]

def test_agreement():
    assert bench.agreement([[[1, 2]], [[3, 4]]], [[[1, 2]], [[3, 5]]]) == (1., .5)
    assert bench.agreement([[[1]]], [[[2]]]) == (0., 0.)

def test_needed_work_grows(tiny):
    model, _ = tiny
    one, two = bench.needed_work(model, 1, 1, 1), bench.needed_work(model, 1, 2, 1)
    weights = 2*sum(p.numel() for p in model.parameters())
    cached = 2*2*2*16*2 # keys and values, layers, heads, head size, bytes
    new = bench.NEW_TOKENS
    assert one['bytes'] == new*weights + cached*sum(bench.PROMPT_TOKENS + i for i in range(new))
    assert two['flops'] > 1.1*one['flops']
    assert bench.needed_work(model, 1, 1, 2)['bytes'] - one['bytes'] == new*weights

def test_scores_of_both_ways_are_equal(tiny):
    res = bench.score_both(1)
    assert res['difference'] < 1e-2 and res['tree'] > 0 < res['rows'] and res['tokens'] == bench.PROMPT_TOKENS

@pytest.mark.slow
def test_targets():
    apart = lambda f, **kw: run_apart(f, threads=2, family=True, **kw)
    here = apart(bench.act_local, episodes=16, turns=2)
    generate = apart(bench.act_generate, generated=here['generated'], turns=[0, 1])
    llama = apart(bench.act_llama, episodes=16, turns=2)
    seconds = bench.turn_seconds(here)[-1]
    assert seconds < sum(generate['seconds']) and seconds < bench.turn_seconds(llama)[-1]
    s = apart(bench.score_both)
    assert s['rows'] > 2*s['tree']

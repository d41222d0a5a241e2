"The engines of the benchmark do the same work and, in the same number format, say the same"
import pytest, torch
from a3t.bench import acting as bench
from a3t.models.weights import load_model, tiny_model

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    made = load_model(tiny_model(tmp_path/'tiny', vocab_size=40_000, max_position_embeddings=2048), dtype=torch.float32)
    monkeypatch.setattr(bench, 'load_model', lambda *a, **kw: made)
    return made

def test_episodes_are_the_same_each_time_and_share_nothing():
    a = bench.workload(4, 3)
    assert a == bench.workload(4, 3) and {len(p) for p,_ in a} == {bench.PROMPT} and {len(o) for _,obs in a
                                                                                      for o in obs} == {bench.SEEN}
    assert len({p[0] for p,_ in a}) == 4

def test_local_and_generate_say_the_same(tiny):
    here = bench.act_local(3, 2, processes=1)
    there = bench.act_generate(here['said'], [0, 1])
    assert bench.same_share(here['said'], [list(e) for e in zip(*there['said'])]) == (1., 1.)
    assert {len(t) for e in here['said'] for t in e} == {bench.NEW}
    ends = bench.turn_seconds(here)
    assert 0 < ends[0] < ends[1]

def test_shares_of_what_is_the_same():
    assert bench.same_share([[[1, 2]], [[3, 4]]], [[[1, 2]], [[3, 5]]]) == (1., .5)
    assert bench.same_share([[[1]]], [[[2]]]) == (0., 0.)

def test_what_is_needed_grows_as_it_must(tiny):
    model, _ = tiny
    one, two = bench.needed(model, 1, 1, 1), bench.needed(model, 1, 2, 1)
    weights = 2*sum(p.numel() for p in model.parameters())
    cached = 2*2*2*16*2 # keys and values, layers, heads, head size, bytes
    assert one['bytes'] == bench.NEW*weights + cached*sum(bench.PROMPT + i for i in range(bench.NEW))
    assert two['flops'] > 1.1*one['flops'] and bench.needed(model, 1, 1, 2)['bytes'] - one['bytes'] == bench.NEW*weights

def test_scores_of_both_ways_are_equal(tiny): assert bench.score_both(1)['difference'] < 1e-2

@pytest.mark.slow
def test_targets():
    said = (here := bench.measure('act_local', episodes=16, turns=2))['said']
    generate = bench.measure('act_generate', said=said, turns=[0, 1])
    llama = bench.measure('act_llama', episodes=16, turns=2)
    seconds = bench.turn_seconds(here)[-1]
    assert seconds < sum(generate['seconds']) and seconds < bench.turn_seconds(llama)[-1]
    s = bench.measure('score_both')
    assert s['rows'] > 2*s['tree']

"The benchmark of a GPU does the same work in all its ways; here on the CPU, with small models"
from dataclasses import replace
import pytest
from a3t.bench import gpu as bench
from a3t.bench.acting import NEW_TOKENS, agreement
from a3t.files import read_json

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return bench.random_model(tmp_path_factory.mktemp('m')/'small', vocab_size=2000, max_position_embeddings=4096)

@pytest.fixture(scope='module')
def rows():
    return [replace(r, input_ids=r.input_ids[:120], loss_mask=r.loss_mask[:120])
            for r in bench.random_rows(32, 2000, 60)]

def test_lengths_of_rows():
    rows = bench.random_rows(20, 500)
    assert rows == bench.random_rows(20, 500) != bench.random_rows(20, 500, seed=1)
    assert all(r.input_ids[:608] == rows[0].input_ids[:608] and 853 <= len(r) <= 3353
               and sum(r.loss_mask) == len(r) - 608 for r in rows)

def test_size_of_heads(): assert bench.MISTRAL_7B['hidden_size']//bench.MISTRAL_7B['num_attention_heads'] == 128

def test_losses_are_those_of_trl(model, rows):
    pytest.importorskip('trl')
    ours, theirs = bench.learn(rows, model, 'cpu'), bench.learn_trl(rows, model, 'cpu')
    assert len(ours['loss']) == len(theirs['loss']) == 2 and ours['rate'] > 0 < theirs['rate'] and ours['predicted'] > 0
    assert max(abs(a - b) for a,b in zip(ours['loss'], theirs['loss'])) < .02

def test_generate_agrees(tmp_path):
    model = bench.random_model(tmp_path/'m', vocab_size=2000, max_position_embeddings=2048)
    here = bench.act(2, 2, model, 'none', 'cpu')
    there = bench.act_transformers(here['generated'], model, 'none', 'cpu')
    assert len(here['seconds']) == len(there['seconds']) == 2
    assert {len(t) for e in here['generated'] for t in e} == {NEW_TOKENS}
    assert agreement(here['generated'], there['generated'])[0] == 1.

def test_a_device_equals_itself():
    res = bench.compare_devices('cpu')
    assert res.keys() == {'none', 'nf4'}
    for r in res.values():
        assert r['logprobs'] == r['adapter'] == 0 < r['largest'] and r['same_answers'] == r['answers'] == 8

def test_acting_before_and_after(tmp_path):
    "Computed together or one by one, the same tokens"
    model = bench.random_model(tmp_path/'m', vocab_size=2000, max_position_embeddings=2048)
    a, b = (bench.act(3, 2, model, 'none', 'cpu', together) for together in (True, False))
    assert agreement(a['generated'], b['generated'])[0] == 1.

@pytest.mark.slow
def test_measure_acting(tmp_path):
    "The command for a GPU, here on the CPU with a small model"
    model = bench.random_model(tmp_path/'m', vocab_size=2000, max_position_embeddings=2048)
    bench.measure_acting(tmp_path/'f.json', 2, 2, 'cpu', {'small':(model, 'none')})
    found = read_json(tmp_path/'f.json')
    assert found['device'] == 'cpu' and found['small']['same'] == 1.
    assert all(len(found['small'][k]['seconds']) == 2 for k in ('together', 'alone', 'generate'))

"The training benchmark compares like with like"
from dataclasses import replace
import pytest, torch
from a3t.bench.training import CountBytes, by_tokens, tokens_a_second, train_ours, train_trl, trl_settings
from a3t.data import make_rows
from a3t.envs.base import ToyHouse
from a3t.models.weights import load_model, tiny_model

WON = ToyHouse.exemplar

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp('m')/'tiny')

@pytest.fixture(scope='module')
def rows(folder):
    return make_rows(load_model(folder, device='cpu')[1],
                     [replace(WON, task=str(i), steps=WON.steps[:1+i%3]) for i in range(8)])[0]

@pytest.mark.parametrize('name', trl_settings([(0,)]))
def test_trl_has_our_loss(folder, rows, name):
    "The first step changes nothing yet: the same rows have the same loss, whatever TRL's settings"
    pytest.importorskip('trl')
    ours = train_ours(by_tokens(rows), folder, normalise='none')
    theirs = train_trl(rows, folder, **trl_settings(rows)[name])
    assert ours['rate'] > 0 < theirs['rate'] and len(ours['loss']) == 2
    # packing changes the order
    if name != 'packed': assert abs(ours['loss'][0] - theirs['loss'][0]) < .02 and len(theirs['loss']) == 2

def test_by_tokens(rows):
    "The loss of a row is its tokens' sum over the mean number of tokens"
    assert sum(r.weight*r.n_loss for r in by_tokens(rows)) == pytest.approx(len(rows))

def test_rate(): assert tokens_a_second([100, 30, 50], [5., 6., 9.]) == 20

def test_bytes():
    x, y = torch.ones(10, 10), torch.ones(10, 10)
    with CountBytes() as b: (x.view(100) + y.view(100)).view(10, 10)
    assert b.total == 3*400

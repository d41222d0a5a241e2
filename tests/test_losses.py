import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from a3t.core import A3TError
from a3t.losses import binarise, check_loss, floored, normalised, policy_gradient, term_weights, three_terms

groups = st.lists(st.tuples(st.booleans(), st.sampled_from('abc'), st.floats(-300, -.01)), min_size=1, max_size=12)

@settings(max_examples=60, deadline=None)
@given(groups, st.floats(-1, 1))
def test_equation_1_equals_equation_2(ms, rf):
    won, tasks = [m[0] for m in ms], [m[1] for m in ms]
    logp = torch.tensor([m[2] for m in ms], dtype=torch.float64, requires_grad=True)
    R = torch.tensor([1. if w else rf for w in won], dtype=torch.float64)
    one, terms = policy_gradient(logp, R), three_terms(logp, won, tasks, rf)
    torch.testing.assert_close(one, sum(terms.values()))
    g1, = torch.autograd.grad(one, logp)
    g2, = torch.autograd.grad(sum(terms.values()), logp)
    torch.testing.assert_close(g1, g2)
    # the weights are the same split, trajectory by trajectory
    W = term_weights(won, tasks, rf).double()
    torch.testing.assert_close(W.sum(1), R, atol=1e-6, rtol=0)
    if all(any(w and t == g for w,t in zip(won, tasks)) for g in set(tasks)):
        for k,name in enumerate(('imitation', 'both', 'contrast')):
            torch.testing.assert_close((W[:,k]*logp).mean(), terms[name], atol=1e-4, rtol=1e-5)

def test_paper_form_for_one_failure():
    K, rf = 4, -.3
    w = term_weights([True]*K+[False], ['t']*(K+1), rf)
    assert torch.allclose(w[0], torch.tensor([(K-1)/K, (1+rf)/(2*K), (1-rf)/(2*K)]))
    assert torch.allclose(w[-1], torch.tensor([0., (1+rf)/2, -(1-rf)/2]))

def test_special_values():
    assert term_weights([True, False], ['t', 't'])[:, 0].tolist() == [0, 0]      # K = 1, R_f = -1: contrast alone
    assert (term_weights([True]*3+[False], ['t']*4)[:, 1] == 0).all()            # R_f = -1: no middle term
    assert term_weights([True]*3+[False], ['t']*4, 0.)[-1].sum() == 0            # R_f = 0: supervised
    with pytest.raises(A3TError): term_weights([True], ['a', 'b'])

def test_binarise():
    assert binarise([1., .99, 0.]).tolist() == [1, -1, -1]
    assert binarise([1., .99, 0.], .5, .1).tolist() == pytest.approx([1, 1, .1])

def test_normalised():
    logp = torch.tensor([-10., -30.])
    assert normalised(logp, [10, 10]).tolist() == [-1, -3] and normalised(logp, [10, 10], 'none') is logp
    with pytest.raises(A3TError, match='tokens'): normalised(logp, [1, 1], 'words')

def test_floor_ends_the_gradient():
    x = torch.tensor([-1., -6.], requires_grad=True)
    floored(x, -5.).sum().backward()
    assert x.grad.tolist() == [1, 0]
    assert floored(x) is floored(x, 0.) is x # the paper has no floor
    with pytest.raises(A3TError, match='negative'): floored(x, 5.)

@pytest.mark.parametrize('loss,logp,word', [
    (math.nan, -1., 'learning_rate'), (math.inf, math.nan, 'learning_rate'), (1., -30., 'contrast_floor')])
def test_check_loss(loss, logp, word):
    with pytest.raises(A3TError, match=word): check_loss(loss, logp, 1000)
    check_loss(1., math.nan, 1000)
    check_loss(-5., -10., 1000)

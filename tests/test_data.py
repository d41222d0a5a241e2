from dataclasses import replace
import pytest
from hypothesis import given, settings, strategies as st
from a3t.core import A3TError, Step, Trajectory
from a3t.data import by_task, check_row, count_tokens, make_actre_rows, make_row, make_rows, own_steps, row_html
from a3t.envs.base import ToyHouse
from a3t.models.base import encode_segments, toy_tokenizer
from a3t.prompts import actre_segments, one_line, segments

won = ToyHouse.exemplar
lost = replace(won, won=False, reward=.4, steps=won.steps[:2])

@pytest.fixture(scope='module', params=[False, True])
def tok(request): return toy_tokenizer(llama=request.param)

@pytest.mark.parametrize('observations', ['keep', 'mask'])
@pytest.mark.parametrize('prompt', [{}, dict(instruction='Do it.', exemplar=won)])
def test_row_is_what_is_acted(tok, observations, prompt):
    row = make_row(tok, won, observations=observations, **prompt)
    segs = segments(won, **prompt)
    assert list(row.input_ids) == encode_segments(tok, [s.text for s in segs])
    assert [k for *_,k in row.spans] == [s.kind for s in segs] and row.spans[-1][1] == len(row)
    bears = {'reason', 'action'} | ({'observation'} if observations == 'keep' else set())
    for s,e,k in row.spans: assert set(row.loss_mask[s:e]) == {k in bears}
    # the tokens that bear loss are the text of exactly those segments, no token more or less
    assert row.n_loss == sum(len(encode_segments(tok, [s.text])) - len(encode_segments(tok, [])) for s in segs
                             if s.kind in bears)
    first = row.loss_mask.index(True)
    assert row.input_ids[:first] == tuple(encode_segments(tok, [s.text for s in segs if s.kind == 'prompt']))

def test_prefix_property(tok):
    "A shorter trajectory's tokens are a prefix of the longer one's"
    a, b = make_row(tok, lost), make_row(tok, won)
    assert b.input_ids[:len(a)] == a.input_ids and b.loss_mask[:len(a)] == a.loss_mask

def test_an_invalid_step_of_a_success_is_not_imitated(tok):
    slip = replace(won, steps=(replace(won.steps[0], valid=False), *won.steps[1:]))
    n = lambda traj, how: make_row(tok, traj, observations=how).n_loss
    assert n(slip, 'mask') < n(won, 'mask') and n(slip, 'keep') == n(won, 'keep')
    assert n(replace(slip, won=False), 'mask') == n(replace(won, won=False), 'mask')

def test_bad_masks(tok):
    row = make_row(tok, won)
    for mask, word in ((row.loss_mask[:-1], 'entries'), ((False,)*len(row), 'no token'),
                       ((True,)+row.loss_mask[1:], 'first token'),
                       (row.loss_mask[:-1]+(False,), 'does not lie')):
        with pytest.raises(A3TError, match=word): check_row(replace(row, loss_mask=mask))
    with pytest.raises(A3TError, match='no token'): make_row(tok, replace(won, steps=()))
    with pytest.raises(A3TError, match='observations'): make_row(tok, won, observations='x')

def test_weights(tok):
    w = lambda **kw: [r.weight for r in make_rows(tok, [won, lost], **kw)[0]]
    assert w() == [1, -1] and w(failure_reward=.1) == [1, .1]
    assert w(threshold=.4) == [1, 1] and w(rewards='raw') == [1, .4]
    assert [r.won for r in make_rows(tok, [won, lost], threshold=.4)[0]] == [True, True]
    with pytest.raises(A3TError, match='binary'): w(rewards='cooked')

def test_too_long(tok):
    n = len(make_row(tok, lost))
    rows, too_long = make_rows(tok, [won, lost], max_length=n)
    assert len(rows) == 1 and too_long == 1 and not rows[0].won
    with pytest.raises(A3TError, match='max_length'): make_rows(tok, [won], max_length=n)
    with pytest.raises(A3TError, match='explore'): make_rows(tok, [])

def test_failures_stay_outnumbered(tok):
    "Also where a success of their task is too long, or bears no loss; the latest failures stay"
    fails = [replace(lost, steps=lost.steps[:n]) for n in (2, 1)]
    long, short = replace(won, steps=won.steps*3), replace(won, steps=won.steps[:1])
    n = len(make_row(tok, won))
    made = lambda some, **kw: make_rows(tok, some, max_length=n, margin=1, **kw)
    rows, too_long = made([won, *fails, long, short])
    assert [(r.won, r.n_loss) for r in rows] == [(r.won, r.n_loss) for r in make_rows(tok, [won, fails[1], short])[0]]
    assert too_long == 1 and len(made([won, *fails, won, won])[0]) == 5
    assert [r.won for r in made([won, fails[0], short], bears=lambda t: [len(t) > 1]*len(t))[0]] == [True]
    assert [r.won for r in make_rows(tok, [won, fails[0], long], max_length=n, margin=0)[0]] == [True, False]
    with pytest.raises(A3TError, match='1 trajectories are longer than max_length'): made([long, *fails])

def test_groups_and_counts(tok):
    rows, _ = make_rows(tok, [won, lost, won, replace(won, task='other')])
    g = by_task(rows)
    assert [(len(s), len(f)) for s,f in g.values()] == [(2, 1), (1, 0)]
    c = count_tokens(rows)
    assert c['loss'] == c['reason']+c['action']+c['observation'] == sum(r.n_loss for r in rows)

def test_html_escapes(tok):
    evil = Trajectory('<b>', 'x', '<script>', 'obs', (Step('<i>', 'a', 'ü🦉'),))
    h = row_html(make_row(tok, evil), tok)
    assert '<script>' not in h and '<i>' not in h

def test_rows_share_their_numbers(tok):
    "Else a training set of 100,000 rows would hold 100 million int objects"
    a, b = make_row(tok, won).input_ids, make_row(tok, replace(won, task='other')).input_ids
    assert a == b and all(x is y for x,y in zip(a, b)) and all(type(x) is int for x in a)

def test_trajectories_may_be_a_stream(tok):
    assert make_rows(tok, iter([won, lost])) == make_rows(tok, [won, lost])

# -- ActRe's rows

text = st.text('ab ]\n[I', max_size=8)
steps = st.lists(st.builds(Step, action=text, observation=text, reason=text, valid=st.booleans(), cut=st.booleans()),
                 min_size=1, max_size=4)

@pytest.mark.parametrize('llama', [False, True])
@given(steps=steps)
@settings(max_examples=40, deadline=None)
def test_actre_is_trained_on_what_it_is_asked(llama, steps):
    """Before each reason that bears loss stands exactly the prompt of the ActRe that writes it, and after it ends the
    line"""
    tok, traj = toy_tokenizer(llama=llama), replace(won, steps=tuple(steps))
    taught = [i for i,s in enumerate(steps) if s.reason and s.valid and not s.cut]
    if not taught:
        with pytest.raises(A3TError, match='nothing to train ActRe on'):
            make_actre_rows(tok, [traj], observations='mask')
        return
    (row,), _ = make_actre_rows(tok, [traj], observations='mask')
    asked = set()
    for i in taught:
        asked_with = actre_segments(replace(traj, steps=traj.steps[:i]), steps[i].action, '')
        prompt = encode_segments(tok, [s.text for s in asked_with])
        line = encode_segments(tok, [one_line(steps[i].reason) + ']\n'])[len(encode_segments(tok, [])):]
        asked |= set(range(len(prompt), len(prompt) + len(line)))
        assert list(row.input_ids[:len(prompt) + len(line)]) == prompt + line
    assert {i for i,m in enumerate(row.loss_mask) if m} == asked

def test_failures_teach_actre_nothing(tok):
    rows, too_long = make_actre_rows(tok, [lost, won, replace(won, task='other')])
    assert len(rows) == 2 and too_long == 0 and all(r.won and r.weight == 1 for r in rows)
    assert len(make_actre_rows(tok, [lost], threshold=.4)[0]) == 1
    # the policy's rows of the same task form another group of equation 2
    assert {r.task for r in rows}.isdisjoint(r.task for r in make_rows(tok, [won, lost])[0])
    n = len(make_actre_rows(tok, [won])[0][0])
    assert make_actre_rows(tok, [won, replace(won, steps=won.steps[:2])], max_length=n - 1)[1] == 1
    bare = replace(won, steps=tuple(replace(s, reason='') for s in won.steps))
    assert len(make_actre_rows(tok, [won, bare])[0]) == 1
    for some in ([], [lost], [bare]):
        with pytest.raises(A3TError, match='nothing to train ActRe on'): make_actre_rows(tok, some)

@pytest.mark.parametrize('rows_of', [make_rows, make_actre_rows])
@pytest.mark.parametrize('observations', ['keep', 'mask'])
def test_sampled_steps_without_loss(tok, rows_of, observations):
    "They count as prompt in a composed trajectory alone; the tokens stay the same"
    mixed = replace(won, source='composed', steps=tuple(replace(s, actor='sampled' if i == 1 else 'policy')
                                                        for i,s in enumerate(won.steps)))
    make = lambda t, **kw: rows_of(tok, [t], observations=observations, **kw)[0][0]
    with_loss, without = make(mixed), make(mixed, bears=own_steps)
    assert with_loss.input_ids == without.input_ids and with_loss.n_loss > without.n_loss
    step = [mixed.steps[1].reason, mixed.steps[1].action][:2 if rows_of is make_rows else 1]
    grey = tok.decode([i for i,a,b in zip(without.input_ids, with_loss.loss_mask, without.loss_mask) if a and not b])
    assert all(s in grey for s in step) and mixed.steps[2].reason not in grey
    explored = replace(mixed, source='explored')
    assert make(explored) == make(explored, bears=own_steps)
    sampled = replace(mixed, steps=tuple(replace(s, actor='sampled') for s in mixed.steps))
    assert len(rows_of(tok, [sampled, mixed], bears=own_steps)[0]) == 1

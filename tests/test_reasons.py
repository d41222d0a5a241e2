"The diagnosis tells good reasons from bad ones that are made for the purpose"
from dataclasses import replace
import pytest
from a3t.core import Step, Trajectory
from a3t.quality.reasons import (command_logprobs, diagnose, diagnosis_table, examples_html, explained,
                                 kinds_of_things, near_duplicates, other_reasons, points, rank_of, seen_so_far,
                                 template, unseen_names)
from a3t.envs.base import ToyHouse
from a3t.opening import first_successes
from a3t.models.scripted import ScriptedModel
from a3t.models.base import gather

house = ToyHouse()
won = [t for task in house.tasks('train')[:8] for t in first_successes(house, task, looks=2)]
kinds = kinds_of_things(house, won)
reader = ScriptedModel([], scores=lambda prompt, c: 0 if c.strip()[4:-1] in prompt.split('think[')[-1] else -2)

async def honest(traj, action, seed=0): return f'I want to {action}.'
async def elsewhere(traj, action, seed=0): return 'I want to look around.'
async def liar(traj, action, seed=0): return f'I want to {action}, the dragon 7 is there.'

def rows(actre, n=12):
    return diagnose(reader, explained(points(house, won, n), actre), kinds | {'dragon'}, 'toy house')

def test_kinds_of_actions():
    ms = points(house, won, 12)
    assert {m.kind for m in ms} == {'sensible', 'random', 'absurd'} and ms == points(house, won, 12)
    for m in ms:
        assert (m.action in m.commands) == (m.kind != 'absurd')
        assert m.action in m.later or m.kind != 'sensible'

def test_honest_reasons_pass():
    r = rows(honest)
    assert (r.grounded.all() and not r.leak.any() and (r['rank'] == 1).all() and (r.lift >= 0).all()
            and (r.lift > 0).mean() > .9)

def test_reasons_that_fit_anything_recover_nothing():
    r = rows(elsewhere)
    assert (r['rank'] == 1).mean() < .2 and abs(r.lift.mean()) < .2*rows(honest).lift.mean()
    assert r.repeats.mean() > .9 and r.template.nunique() == 1

def test_made_up_things_are_found():
    r = rows(liar)
    assert not r.grounded.any() and set(r.unseen) == {'dragon 7'}

def test_leaks_are_what_is_seen_later():
    t = Trajectory('t', 'put', 'put a pen in a drawer', 'You see a desk 1.',
                   steps=(Step('', 'go to desk 1', 'You see a pen 1.', 'sampled', True),))
    seen = seen_so_far(replace(t, steps=()), 'go to desk 1')
    assert unseen_names('The pen 1 is on the desk 1.', seen, {'pen', 'desk'}) == ['pen 1']
    assert unseen_names('The pen 1 is on the desk 1.', seen_so_far(t), {'pen', 'desk'}) == []
    assert unseen_names('A pen may be in the drawers.', seen, {'pen', 'desk', 'drawer'}) == []

@pytest.mark.parametrize('scores,rank', [([0, -1], 1), ([-1, 0], 2), ([0, 0, 0], 2), ([0, 0], 1.5)])
def test_ranks(scores, rank): assert rank_of(0, scores) == rank

def test_probabilities_sum_to_one():
    import math
    m = points(house, won, 1)[0]
    assert sum(map(math.exp, gather([command_logprobs(reader, m.history, m.commands, 'look')])[0])) == pytest.approx(1)

def test_other_reasons_belong_to_another_action():
    ms = explained(points(house, won, 8), honest)
    for m, s in zip(ms, other_reasons(ms)): assert s != m.reason

def test_repetition():
    assert near_duplicates(['a b c', 'a b c', 'something else']) == [False, True, False]
    assert template('Take the mug 3 from the shelf.', {'mug', 'shelf'}) == 'Take the _ from the _.'

def test_page_escapes():
    r = rows(liar, 4).assign(reason='<b>dragon 7</b>', unseen='dragon 7')
    page = examples_html(r)
    assert '&lt;b&gt;' in page and '<b>dragon' not in page
    assert list(diagnosis_table(r).columns)[0] == ('toy house', 'sensible')

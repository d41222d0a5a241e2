"What reasons claim is judged by the environment, at the moment of their step"
import random
from dataclasses import replace
import pytest
from hypothesis import given, settings, strategies as st
from a3t.agents import Script, Wording
from a3t.compose import annotate, compose
from a3t.core import Step, Trajectory
from a3t.envs.alfworld.claims import house_claims, moment, together
from a3t.envs.alfworld.engine import EXEMPLAR, AlfWorld
from a3t.envs.alfworld.games import mini_games
from a3t.envs.alfworld.generator import generate_games
from a3t.envs.alfworld.house import bits
from a3t.envs.alfworld.simulator import AlfSim
from a3t.envs.base import TextEnv, ToyHouse, play
from a3t.envs.claims import clauses, says, truth, verdict
from a3t.envs.cooking import EXEMPLAR_GAME, Cooking
from a3t.envs.webshop.env import MiniShop, WebShop, exemplar
from a3t.models.base import gather
from a3t.quality.alarms import false_reasons, false_steps
from a3t.quality.reasons import near_points, points, quality_table, reason_quality
from a3t.models.scripted import ScriptedModel

mini = AlfSim(mini_games())
shop = WebShop.__new__(WebShop)
shop.shop = MiniShop()
kitchen = Cooking({Cooking.exemplar.task:EXEMPLAR_GAME})

def at(traj, n): return replace(traj, steps=traj.steps[:n])

# -- claims

def test_possibilities_and_intentions_claim_nothing():
    assert clauses('The pen may be in the drawer, so I open it.') == []
    assert clauses('I see none and need a mug.') == ['I see none', 'need a mug']
    assert clauses('The task says 4.25 ounce, so I choose 4.25 ounce.') == ['The task says 4.25 ounce']

@given(st.text(max_size=60))
def test_any_text_is_judged(text):
    assert set(TextEnv().claims(text, EXEMPLAR).values()) <= {None}
    for env, ex in ((mini, EXEMPLAR), (ToyHouse(), ToyHouse.exemplar), (kitchen, Cooking.exemplar), (shop, exemplar())):
        assert truth(env, text, at(ex, 3), 'look') in (True, False, None)

@pytest.mark.parametrize('claims,true', [({}, None), ({'a':True}, True), ({'a':True, 'b':None}, None),
                                         ({'a':None, 'b':False}, False)])
def test_one_false_claim_makes_a_reason_false(claims, true): assert verdict(claims) is true

def test_words_are_whole():
    assert says('put a mug on desk 1.', 'desk 1') and not says('put a mug on desk 12.', 'desk 1') and not says('x', '')

@pytest.mark.parametrize('env,ex', [(mini, EXEMPLAR), (ToyHouse(), ToyHouse.exemplar), (kitchen, Cooking.exemplar),
                                    (shop, exemplar())], ids=['alfworld', 'toy house', 'cooking', 'webshop'])
def test_exemplars_say_nothing_false(env, ex):
    found = [truth(env, s.reason, at(ex, i), s.action) for i,s in enumerate(ex.steps)]
    assert False not in found and found.count(True) > len(found)/2

# -- AlfWorld

@pytest.mark.parametrize('n,reason,true', [
    (0, 'I need a mug and see none.', True), (3, 'I need a mug and see none.', False),
    (3, 'I need a mug and see mug 1.', True), (2, 'I need a mug and see mug 1.', False),
    (0, 'I need a coffeemachine and see none.', False), (1, 'I need a coffeemachine and see none.', True),
    (4, 'I hold mug 1 and the task says clean.', True), (4, 'I hold mug 1 and the task says hot.', False),
    (4, 'I hold mug 12 and the task says clean.', False), (8, 'I hold mug 1.', False), (4, 'I hold mug.', True),
    (5, 'I hold mug 1 at sinkbasin 1 and the task says clean.', True), (5, 'I hold mug 1 at fridge 1.', False),
    (4, 'I need a mug and see none.', False), (3, 'I need a spoon and see none.', False),
    (2, 'I need a mug and see cabinet 1, which may hold one.', True), (3, 'Cabinet 1 may hold a mug.', None),
    (3, 'The mug is in cabinet 1.', True), (3, 'The mug is blue.', None),
    (0, 'I hold  and the task says clean.', None)])
def test_household_reasons(n, reason, true):
    assert truth(mini, reason, at(EXEMPLAR, n)) is true
    assert truth(AlfWorld(mini_games()), reason, at(EXEMPLAR, n)) is true # without playing, as the other engine

def test_what_a_task_for_two_has_in_place_is_not_needed():
    t = Trajectory('t', 'two', 'put two mug in shelf.', 'You see a shelf 1, and a desk 1.', (
        Step('', 'go to desk 1', 'On the desk 1, you see a mug 1.'), Step('', 'take mug 1 from desk 1', 'ok'),
        Step('', 'go to shelf 1', 'On the shelf 1, you see nothing.'), Step('', 'move mug 1 to shelf 1', 'ok')))
    assert house_claims('I need a mug and see none.', t) == {'I need a mug':True, 'see none':True}
    one = replace(t, goal='put a clean mug in shelf.')
    assert house_claims('I need a mug and see none.', one)['see none'] is False

@pytest.fixture(scope='module')
def rooms(): return AlfSim(generate_games(5, train=6, seen=0, unseen=0))

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_moment_is_the_simulators_state(rooms, seed):
    "Hand and place always; things in view as far as texts have shown them"
    rng = random.Random(seed)
    task = rng.choice(rooms.tasks('train'))
    def act(obs, info): return rng.choice(info['admissible_actions'] + ['go to shelf 1', 'take mug 1 from shelf 1'])
    t = play(rooms, task, act)
    m, sim, h = moment(t, together(rooms.games[task].problem)), rooms.sim, rooms.sim.house
    here = [r for r in h.here[sim.loc] if not (h.openable >> r & 1 and not sim.opened >> r & 1)]
    there = {h.objects[o] for r in here for o in bits(sim.inside[r])}
    assert m.held == (h.objects[sim.held] if sim.held >= 0 else '')
    assert m.near == {h.receptacles[r] for r in h.here[sim.loc]}
    assert m.things <= there

# -- other worlds

@pytest.mark.parametrize('n,reason,true', [
    (0, 'I have chosen what the task says, so I buy it.', False), (7, 'I have chosen what the task says.', False),
    (8, 'I have chosen what the task says, so I buy it.', True),
    (1, 'The task says purple, so I choose purple.', False),
    (7, 'The task says 60x84 inches, and that is 60 x 84 inch.', True),
    (7, 'The task says green, and that is 60 x 84 inch.', False),
    (2, 'The task says 60x84 inches, and that is not offered here, so I go back.', True),
    (2, 'The task says green, and that is not offered here, so I go back.', False), # its title says so
    (4, 'The task says 60x84 inches, and that is not offered here, so I go back.', False),
    (3, 'The task says 60x84 inches, and that is not offered here, so I go back.', False), # no product is open
    (1, 'mini000002 costs $18.0, and the limit is 60.00, so I look at it.', True),
    (1, 'mini000002 costs $17.0, and the limit is 60.00, so I look at it.', False),
    (1, 'mini000002 costs $18.0, and the limit is 50.00, so I look at it.', False)])
def test_shopping_reasons(n, reason, true): assert truth(shop, reason, at(exemplar(), n)) is true

@pytest.mark.parametrize('n,reason,action,true', [
    (0, 'I have not gone north from the hall, so I go north.', 'go north', True),
    (0, 'I have gone every way from the hall, so I go north.', 'go north', False),
    (1, 'I have gone every way from the pantry, so I go east.', 'go east', True),
    (1, 'I have not gone east from the pantry, so I go east.', 'go east', False),
    (2, 'I have not gone west from the hall, so I go west.', 'go west', False),
    (2, 'I have gone every way from the pantry, so I go west.', 'go west', False), # it is elsewhere
    (5, 'I have not tried this yet.', 'examine stove', False), (4, 'I have not tried this yet.', 'examine stove', True),
    (9, 'I have done what the task says.', 'prepare meal', False), (10, 'I have done what the task says.', '', True),
    (10, 'The meal is ready, so I eat it.', 'eat meal', False),
    (11, 'The meal is ready, so I eat it.', 'eat meal', True)])
def test_cooking_reasons(n, reason, action, true):
    assert truth(kitchen, reason, at(Cooking.exemplar, n), action) is true

# -- what is done about it

def test_bound_reasons_prefer_a_sentence_that_holds():
    "At the start every receptacle is in view, so none of the task's receptacles can be missed"
    t = at(EXEMPLAR, 0)
    said = Wording(EXEMPLAR, mini).sentences(t, 'go to fridge 1')
    assert said and all(truth(mini, s, t) is not False for s in said)

def test_actions_with_false_reasons_are_not_taken():
    house, task = ToyHouse(), ToyHouse().tasks('train')[0]
    async def mostly_lies(traj, action, seed=0): return 'I have the pen.' if action != 'go to desk' else 'I go there.'
    made = gather([compose(house, task, Script([]), mostly_lies, p=1, seed=s) for s in range(8)])
    sampled = [s for t in made for s in t.steps if s.actor == 'sampled']
    assert sampled and {s.action for s in sampled} == {'go to desk'}
    assert not any(false for _,false in false_steps(made, house))

def test_false_reasons_of_successes_are_left_out():
    ex = replace(ToyHouse.exemplar, steps=tuple(replace(s, actor='sampled') for s in ToyHouse.exemplar.steps))
    async def liar(traj, action, seed=0): return 'I have the pen.'
    judged_, plain = gather([annotate(ex, liar, env=ToyHouse()), annotate(ex, liar)])
    assert [s.reason for s in judged_.steps] == ['', '', 'I have the pen.', 'I have the pen.']
    assert {s.reason for s in plain.steps} == {'I have the pen.'}

def lying(actor, n, of):
    steps = lambda k: tuple(replace(s, actor=actor, reason='I have the pen.' if k else s.reason)
                            for s in ToyHouse.exemplar.steps[:1])
    return [replace(ToyHouse.exemplar, steps=steps(i < n)) for i in range(of)]

@pytest.mark.parametrize('actor,n,fires', [('sampled', 100, True), ('sampled', 30, True), ('sampled', 10, False),
                                           ('policy', 30, False), ('policy', 60, True), ('policy', 0, False)])
def test_the_alarm_for_false_reasons(actor, n, fires):
    found = false_reasons(lying(actor, n, 100), ToyHouse())
    assert [a['name'] for a in found] == ['false reasons']*fires and not false_reasons(lying(actor, n, 100))

# -- the table

def test_the_table_tells_a_liar_from_an_honest_actre(tmp_path):
    house, asked = ToyHouse(), []
    reader = ScriptedModel([], scores=lambda prompt, c: 0 if c.strip()[4:-1] in prompt.split('think[')[-1] else -2)
    ex = play(house, house.tasks('train')[0], house.walkthrough(house.tasks('train')[0]))
    places = points(house, [ex], 4)
    places += near_points(reader, places)
    assert {p.kind for p in places} == {'sensible', 'policy-near', 'random', 'absurd'}
    def honest(traj, action, seed=0):
        asked.append(action)
        held = next((s.action.split()[1] for s in reversed(traj.steps) if s.action.startswith('take')), '')
        return f'I have the {held}, so I {action}.' if held else f'I need the book, so I {action}.'
    def liar(traj, action, seed=0): return 'I have the dragon.'
    of = lambda **actres: reason_quality(house, places, actres, reader, {'dragon'}, 'toy', tmp_path/'rows.json', wave=3)
    rows, n = of(honest=honest, liar=liar), len(asked)
    again = of(honest=honest, liar=liar)
    assert len(asked) == n == len(places) and again.equals(rows) # kept rows are not asked again
    table = quality_table(rows)
    assert (table.loc[('toy', 'liar'), 'true'].str.startswith('0/')).all()
    assert (table.loc[('toy', 'liar'), 'grounded'].str.startswith('0/')).all()
    assert rows[rows.actre == 'honest'].true.eq(True).all()

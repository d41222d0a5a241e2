"Prompts, agents, composition and exploration: the edges that the notebooks do not dwell on"
import random
from dataclasses import replace
import pytest
from hypothesis import given, strategies as st
from a3t.agents import ActRe, OneOf, ReAct, Sampler, Script, Wording, episode, held_thing, invalid_run, rollout, sample_action
from a3t.compose import annotate, compose, compose_all
from a3t.core import A3TError, Step, Trajectory
from a3t.envs.alfgen import generate_games
from a3t.envs.alfsim import AlfSim
from a3t.envs.alfworld import EXEMPLAR, AlfWorld
from a3t.envs.base import TextEnv, ToyHouse, check_environment, play
from a3t.explore import Habits, Whereabouts, add_search, clairvoyant, explore, first_successes, habit, imitate, settle, shrink, wins
from a3t.models.base import ScriptedModel, gather, toy_tokenizer
from a3t.prompts import actre_brief_segments, actre_segments, one_line, parse_step, render_step, segments, steps_of

words = st.text(st.characters(blacklist_categories=('Cs', 'Cc')), max_size=40).map(one_line)

# -- prompts

@given(words, words)
def test_render_and_parse_are_inverses(reason, action):
    assert parse_step(render_step(reason, action)) == (reason, action)

@given(st.text(max_size=80))
def test_any_text_is_an_action(text): assert len(parse_step(text)) == 2

@given(st.lists(st.tuples(words, words, words), max_size=4))
def test_segments_and_steps_are_inverses(steps):
    traj = Trajectory('t', 'put', 'goal', 'room', tuple(Step(r, a, o) for r,a,o in steps))
    assert steps_of(segments(traj)) == tuple(steps)

def test_the_prompt_only_grows():
    for i in range(len(EXEMPLAR)):
        short = segments(replace(EXEMPLAR, steps=EXEMPLAR.steps[:i]), AlfWorld.instruction, EXEMPLAR)
        assert segments(EXEMPLAR, AlfWorld.instruction, EXEMPLAR)[:len(short)] == short

def test_actre_sees_nothing_that_follows():
    history = replace(EXEMPLAR, steps=EXEMPLAR.steps[:2])
    for prompt in (actre_segments, actre_brief_segments):
        text = ''.join(prompt(history, EXEMPLAR.steps[2].action))
        assert EXEMPLAR.steps[2].observation not in text and text.endswith('think[')

# -- grounded reasons

NAMES = TextEnv() # names as in AlfWorld
NAMES.instruction = AlfWorld.instruction

def sentences(goal, before, action):
    steps = tuple(Step('', a, 'You see nothing.') for a in before)
    return Wording(EXEMPLAR, NAMES).sentences(replace(EXEMPLAR, goal=goal, steps=steps), action)

def test_the_exemplar_explains_itself():
    w = Wording(EXEMPLAR, NAMES)
    for i,s in enumerate(EXEMPLAR.steps): assert s.reason in w.sentences(replace(EXEMPLAR, steps=EXEMPLAR.steps[:i]), s.action)

@pytest.mark.parametrize('goal,before,action,there,never', [
    ('clean some fork and put it in shelf.', [], 'go to desk 1', 'I need a fork and see none.', 'need a clean'),
    ('clean some fork and put it in shelf.', ['take fork 2 from desk 1'], 'go to sinkbasin 1', 'I hold fork 2 and the task says clean.', 'shelf'),
    ('clean some fork and put it in shelf.', ['take fork 2 from desk 1', 'clean fork 2 with sinkbasin 1'], 'go to shelf 3', 'I hold fork 2 and the task says shelf.', 'clean'),
    ('heat some cup and put it in shelf.', ['take cup 2 from desk 1'], 'heat cup 2 with microwave 1', 'I hold cup 2 at microwave 1 and the task says heat.', 'mug'),
    ('put two bowl in shelf.', ['take bowl 2 from desk 1', 'move bowl 2 to shelf 1'], 'go to desk 1', 'I need a bowl and see none.', 'hold'),
    ('find two bowl and put them in shelf.', [], 'take bowl 2 from desk 1', 'I need a bowl and see bowl 2.', 'see none')])
def test_names_keep_their_roles(goal, before, action, there, never):
    found = sentences(goal, before, action)
    assert there in found and not any(never in s for s in found), found

def test_held():
    assert held_thing(NAMES, ['take mug 1 from desk 1', 'go to shelf 1'], {'move'}) == ['mug 1']
    assert held_thing(NAMES, ['take mug 1 from desk 1', 'move mug 1 to shelf 1'], {'move'}) == held_thing(NAMES, [], {'move'}) == []

def test_what_was_not_taken_is_not_held():
    steps = (Step('', 'take mug 1 from desk 1', 'Nothing happens.', valid=False),)
    assert all('hold' not in s for s in Wording(EXEMPLAR, NAMES).sentences(replace(EXEMPLAR, steps=steps), 'go to desk 1'))

def test_an_exemplar_without_reasons_is_refused():
    with pytest.raises(A3TError, match='no reasons'): Wording(replace(EXEMPLAR, steps=tuple(replace(s, reason='') for s in EXEMPLAR.steps)), NAMES)

def test_one_of():
    tok = toy_tokenizer()
    c = OneOf(tok, ['mug 1]\n', 'mug 2]\n'])
    start = c.forced([])
    assert tok.decode(start).strip() == 'mug' and len(c.next(start)) == 2
    assert tok.decode([*start, c.next(start)[0], *c.forced([*start, c.next(start)[0]])]) in ('mug 1]\n', 'mug 2]\n')
    assert c.next([10**6]) == []

# -- episodes

def test_patience_gives_up():
    traj = gather([episode(ToyHouse(), ToyHouse().tasks('train')[0], Script([('', 'dance')]*10), patience=3)])[0]
    assert len(traj) == invalid_run(traj) == 3 and not traj.won

def test_a_rollout_does_not_depend_on_its_company():
    tasks = ToyHouse().tasks('unseen')
    assert rollout(ToyHouse, tasks, Sampler(), limit=3)[5] == rollout(ToyHouse, tasks[5:6], Sampler())[0]

def test_sampling_is_by_verb():
    rng, actions = random.Random(0), [f'go to {i}' for i in range(99)] + ['heat it']
    assert 30 < sum(sample_action(rng, actions, NAMES.verb) == 'heat it' for _ in range(100)) < 70

def test_the_toy_house(): check_environment(ToyHouse())

# -- composition

actre = ActRe(ScriptedModel(lambda prompt: 'Because.]\n'), ToyHouse.exemplar)
deaf = ReAct(ScriptedModel(lambda prompt: 'what?'))
TASK = ToyHouse().tasks('train')[3]

def test_after_three_invalid_actions_one_is_sampled():
    traj = gather([compose(ToyHouse(), TASK, deaf, actre, p=0)])[0]
    assert [s.actor for s in traj.steps] == (['policy']*3 + ['sampled'])*2 + ['policy']*2 and traj.source == 'composed'
    assert all(s.valid and s.reason == 'Because.' for s in traj.steps if s.actor == 'sampled')

def test_budgets():
    made = compose_all(ToyHouse, [TASK], deaf, actre, most=5, p=0)
    assert len(made) == 5 and not any(t.won for t in made)
    made = compose_all(ToyHouse, [TASK], deaf, actre, most=60, least=3, stop_successes=1, p=1)
    assert 3 <= len(made) <= 60 and sum(t.won for t in made[3:-1]) == 0
    assert made == compose_all(ToyHouse, [TASK], deaf, actre, most=60, least=3, stop_successes=1, p=1)

def test_annotate_keeps_the_policys_reasons():
    traj = replace(ToyHouse.exemplar, steps=tuple(replace(s, actor=a) for s,a in zip(ToyHouse.exemplar.steps, ('policy', 'sampled')*2)))
    done = gather([annotate(traj, actre)])[0]
    assert [s.reason for s in done.steps] == [traj.steps[0].reason, 'Because.', traj.steps[2].reason, 'Because.']

# -- exploration

@pytest.fixture(scope='module')
def house(): return AlfSim(generate_games(3, train=12, seen=0, unseen=0, receptacles=(5, 7), objects=(6, 8)), max_steps=10**9)

def test_what_is_found_wins_and_is_short(house):
    solved = 0
    for task in house.tasks('train'):
        actions, n = explore(house, task, 20_000)
        assert n <= 20_000 + 20
        if not actions: continue
        solved += 1
        best = shrink(house, task, actions)
        assert wins(house, task, best) == len(best) <= len(actions)
        for i in range(len(best)): assert not wins(house, task, best[:i] + best[i+1:])
        searched = add_search(house, play(house, task, best), looks=3)
        assert searched.won and all(s.valid for s in searched.steps)
        settled = settle(house, task, best)
        assert wins(house, task, settled) == len(settled) and (settled == best or not clairvoyant(play(house, task, settled)))
    assert solved >= 8

def test_search_goes_where_things_were_found(house):
    successes = [t for task in house.tasks('train') for t in first_successes(house, task, looks=0)]
    where = Whereabouts(house, successes)
    kind = max(where.found, key=lambda k: (k != '') * sum(where.found[k].values()))
    _, info = house.reset(options={'task':successes[0].task})
    order = where.order(kind, info['admissible_actions'], '', house.reset(options={'task':successes[0].task})[0])
    chances = [where.chance(kind, a) for a in order]
    assert order and chances == sorted(chances, reverse=True) and all(chances) and set(order) <= set(info['admissible_actions'])
    assert not any(where.chance(kind, a) for a in info['admissible_actions'] if a not in order)
    for t in successes:
        found = add_search(house, t, looks=20, where=where)
        assert found == add_search(house, t, looks=20, where=where) and found.won and all(s.valid for s in found.steps)
        assert add_search(house, t, looks=0, where=where).won

def test_what_was_come_upon_is_taken_instead():
    env = AlfSim(generate_games(5, train=6, seen=0, unseen=0, types=('pick',), receptacles=(6, 8), objects=(14, 18)), max_steps=10**9)
    for task in env.tasks('train'):
        for t in first_successes(env, task, variants=3, looks=20):
            n, taken = next((i, env.things(a)[0]) for i,a in enumerate(t.actions) if a.startswith('take'))
            seen = [s for s in t.steps[:n] if f'{env.kind(taken)} ' in s.observation]
            assert seen and (taken in seen[0].observation or t.goal.rstrip('.').endswith(env.kind(env.things(seen[0].action)[0])))

def test_exploring_is_repeatable(house):
    task = house.tasks('train')[0]
    assert first_successes(house, task, variants=2, seed=1) == first_successes(house, task, variants=2, seed=1)
    assert house.max_steps == 10**9

def test_no_budget_no_success(house): assert first_successes(house, house.tasks('train')[0], budget=1) == []

# -- imitation

def test_habits_are_without_names():
    actions = ['go to fridge 1', 'go to cabinet 2', 'open cabinet 2', 'take mug 1 from cabinet 2', 'go to sinkbasin 1', 'clean mug 1 with sinkbasin 1', 'go to shelf 3', 'move mug 1 to shelf 3']
    what, kinds, enabling = habit(NAMES, actions)
    assert what == ((('go to {}', (0,)), ('take {} from {}', (1, 2)), ('clean {} with {}', (1, 3)), ('move {} to {}', (1, 4))), (0, 1, 2, 3, 4))
    assert kinds == ('fridge', 'mug', 'cabinet', 'sinkbasin', 'shelf') and enabling['take {} from {}'] == ['go to {}', 'open {}']
    two = habit(NAMES, ['take mug 1 from desk 1', 'move mug 1 to shelf 1', 'take mug 2 from desk 1', 'move mug 2 to shelf 1'])[0]
    assert two[0] == (('take {} from {}', (0, 1)), ('move {} to {}', (0, 2)), ('take {} from {}', (3, 1)), ('move {} to {}', (3, 2))) and two[1] == (0, 1, 2, 0)

def test_imitation_wins_by_the_reward_alone(house):
    found = {t:shrink(house, t, a) for t in house.tasks('train') if (a := explore(house, t, 20_000)[0])}
    won = 0
    for t in found:
        way, n = imitate(house, t, Habits(house, [('', a) for u,a in found.items() if u != t]), 20_000)
        assert way is None or wins(house, t, way) == len(way) <= n
        won += way is not None
    assert won >= len(found)/3
    assert imitate(house, t, Habits(house, []), 20_000)[0] is None and imitate(house, t, Habits(house, [('', a) for a in found.values()]), 1)[0] is None

def test_kinds_that_never_change_are_fixed():
    h = Habits(NAMES, [('', [f'take mug 1 from desk {i}', 'clean mug 1 with sinkbasin 1', f'move mug 1 to shelf {i}']) for i in (1, 2, 3)] + [('', ['take pan 1 from desk 1', 'clean pan 1 with sinkbasin 2', 'move pan 1 to bed 1'])])
    (what,) = h.kinds
    assert h.fixed(what) == {1:'desk', 2:'sinkbasin'}

def test_a_thought_is_not_the_step():
    "Any text model may think first: the policy's action and ActRe's reason are what comes after the thought"
    def reply(prompt):
        if prompt.endswith('</think>\n\n'): return 'I need a mug.]\nact' if '] think[<think>' in prompt else 'think[A mug.] act[look]\nYou see'
        return 'Which?\nact[no]\n</think>\nact[no]' if prompt.endswith('<think>\n') else '<think>\nWhich?\n'
    at_once = lambda p: '<think>Which?</think> ' + ('I need a mug.]' if p.endswith('think[') else 'think[A mug.] act[look]')
    for said in (reply, at_once):
        lm, env = ScriptedModel(said), ToyHouse()
        traj = Trajectory('task', 'pick', 'put the mug on the desk.', 'You see a desk.')
        assert gather([ReAct(lm, env.instruction, env.exemplar)(traj, {})]) == [('A mug.', 'look')]
        assert gather([ActRe(lm, env.exemplar)(traj, 'go to desk')]) == ['I need a mug.']

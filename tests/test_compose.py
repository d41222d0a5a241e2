"Samplers: which action is sampled, whatever the environment, the model and the order of the work"
import asyncio, random
import pytest
from a3t.agents import ActRe, ReAct, sample_action
from a3t.compose import SAMPLERS, Visits, busy, check_sampler, compose, compose_all
from a3t.core import A3TError, seed_for, to_row
from a3t.envs.base import ToyHouse, load_environment
from a3t.envs.contract import check_environment
from a3t.models.api import language_model
from a3t.models.base import LanguageModel, gather
from a3t.models.journal import Journal
from a3t.models.scripted import ScriptedModel
from a3t.settings import ALLOWED, load_settings, setting_faults

TASKS = ToyHouse().tasks('train')[:6]
reason = lambda traj, action, seed: f'I have not tried to {action}.'
stubborn = lambda traj, info, seed: ('', 'go to table')

class Hall(ToyHouse):
    "A toy house where one may also look"
    def _info(self, valid):
        info = ToyHouse._info(self, valid)
        return info | dict(admissible_actions=[*info['admissible_actions'], 'look'])
    def step(self, action):
        if action != 'look': return super().step(action)
        self.n += 1
        return 'You see what you saw.', 0., False, self.n >= self.max_steps, self._info(True)
    def idle(self, action): return action == 'look'

def sampled(made): return [s.action for t in made for s in t.steps if s.actor == 'sampled']

def test_settings_and_samplers_agree():
    faults = [ALLOWED['sampler'].fault(s) for s in SAMPLERS]
    assert faults == ['']*len(SAMPLERS) and 'novel' in ALLOWED['sampler'].fault('novle')
    assert load_settings('paper-alfworld')['sampler'] == 'verb'

def test_idle_actions_are_left_out():
    by = {s:sampled(compose_all(Hall, TASKS, stubborn, reason, most=10, p=.5, sampler=s))
          for s in ('verb', 'acts', 'novel')}
    assert 'look' in by['verb'] and all('look' not in by[s] and by[s] for s in ('acts', 'novel'))

def test_an_idle_action_is_taken_where_nothing_else_is_possible():
    assert busy(Hall(), ['look', 'look']) == ['look', 'look']
    with pytest.raises(A3TError, match='lists no admissible actions'): busy(Hall(), None)

def test_verb_is_what_it_was():
    "The plain sampler draws the same action for the same seed as `sample_action` on the full list"
    env = ToyHouse()
    first = gather([compose(env, TASKS[0], stubborn, reason, p=1, seed=3)])[0].steps[0].action
    rng = random.Random(seed_for(3, 0))
    rng.random()
    _, info = env.reset(options={'task':TASKS[0]})
    assert first == sample_action(rng, info['admissible_actions'], lambda a: env.verb(a, info['goal']))

def test_policy_samples_its_second_to_fifth_choice():
    scores, asked = lambda prompt, candidate: -len(candidate) - candidate.count('m')/10, []
    class Asked(ReAct):
        async def scores(self, traj, actions, reason=''):
            asked.append((actions, got := await super().scores(traj, actions, reason)))
            return got
    policy = Asked(ScriptedModel(lambda p: 'act[go to table]', scores=scores))
    made = compose_all(Hall, TASKS, policy, reason, most=5, p=1, sampler='policy')
    choices = []
    for actions, got in asked:
        ranked = [a for _,a in sorted(zip([-s for s in got], actions), key=lambda x: x[0])]
        choices.append(set(ranked[1:5] or ranked))
    assert all('look' not in actions for actions,_ in asked) and sum(a == 'go to desk' for a in sampled(made))
    assert len(choices) == len(sampled(made)) and set(sampled(made)) <= set.union(*choices)
    best = {actions[got.index(max(got))] for actions, got in asked if len(actions) > 1 and got.count(max(got)) == 1}
    assert best, 'a best action exists, and it is left out'

@pytest.mark.parametrize('policy', [ReAct(ScriptedModel([])), stubborn])
def test_a_policy_without_scores_is_refused_in_one_line(policy):
    with pytest.raises(A3TError, match='sampler = policy needs') as e: check_sampler('policy', policy)
    assert '\n' not in str(e.value)
    for s in ('verb', 'acts', 'novel'): check_sampler(s, policy)

def test_a_chat_model_is_refused_before_a_request():
    address = 'http://127.0.0.1:9/v1/chat/completions#name'
    fault, = setting_faults(dict(load_settings('paper-alfworld', dict(model=address, sampler='policy')), device='cpu'))
    assert fault.startswith('setting sampler = policy needs scores') and '\n' not in fault
    assert not setting_faults(dict(load_settings('paper-alfworld', dict(model=address, sampler='novel')), device='cpu'))
    with pytest.raises(A3TError, match='sampler = policy needs scores of actions: a chat model returns no scores'):
        check_sampler('policy', ReAct(language_model(address)))

class Slow(LanguageModel):
    "Answers after a random number of turns"
    def __init__(self, seed): self.rng = random.Random(seed)
    async def complete(self, prompt, **kwargs):
        for _ in range(self.rng.randrange(5)): await asyncio.sleep(0)
        return await ScriptedModel(lambda p: 'This has not been tried yet.]').complete(prompt, **kwargs)

def test_novel_does_not_depend_on_the_order_of_the_work():
    def made(seed, limit):
        actre = ActRe(Slow(seed), ToyHouse.exemplar)
        res = compose_all(ToyHouse, TASKS, stubborn, actre, most=8, p=.5, sampler='novel', limit=limit)
        return [to_row(t) for t in res]
    assert made(0, 64) == made(1, 64) == made(2, 1)

@pytest.mark.parametrize('threshold, made', [(None, 6), (.5, 1), (.6, 6)])
def test_a_success_is_what_the_threshold_says(threshold, made):
    class Half(ToyHouse):
        "Nothing is won, and every step pays a half"
        def step(self, action):
            obs, _, over, cut, info = super().step(action)
            return obs, .5, over, cut, dict(info, won=False)
    found = compose_all(Half, TASKS[:1], stubborn, reason, most=6, least=1, stop_successes=1, threshold=threshold)
    assert len(found) == made

def test_visits_prefer_what_was_seen_least():
    visits, env = Visits(), ToyHouse()
    made = compose_all(ToyHouse, TASKS[:1], stubborn, reason, most=3, p=0)
    obs, info = env.reset(options={'task':TASKS[0]})
    start = visits.arrive(made[0].__class__(TASKS[0], 'put', info['goal'], obs), info)
    for t in made:
        cell = start
        for n,s in enumerate(t.steps[:2]):
            env.reset(options={'task':TASKS[0]})
            for a in t.actions[:n+1]: *_, info = env.step(a)
            cell = visits.arrive(t.__class__(t.task, 'put', t.goal, t.observation, t.steps[:n+1]), info, cell)
    assert visits.seldom(start, ['go to table', 'go to desk']) == ['go to desk']
    assert visits.seldom(start, ['go to table']) == ['go to table']

def test_scores_are_saved_in_the_journal(tmp_path):
    "A resumed wave asks for no score again, and ends the same"
    def made(folder, calls):
        def scores(prompt, candidate):
            calls.append(candidate)
            return -len(candidate)
        journal = Journal(folder, 15)
        lm = journal.of(ScriptedModel(lambda p: 'act[go to table]', scores=scores), 'acting')
        lm.forget()
        res = compose_all(ToyHouse, TASKS, ReAct(lm), reason, most=4, p=.5, sampler='policy')
        journal.open_segment(['end'])
        return [to_row(t) for t in res]
    first, again = [], []
    assert made(tmp_path, first) == made(tmp_path, again) and first and not again

# -- the contract

def test_idle_is_part_of_the_contract():
    check_environment(Hall())
    class Word(Hall):
        def idle(self, action): return 'no'
    with pytest.raises(A3TError, match='make it a bool'): check_environment(Word())
    class Wrong(Hall):
        def idle(self, action): return True
    with pytest.raises(A3TError, match='but key changes with it'): check_environment(Wrong())

@pytest.mark.parametrize('name, kwargs', [
    ('alfworld', dict(games='generated', engine='sim',
                      generator=dict(train=2, seen=0, unseen=2, rooms=1, unseen_rooms=1))),
    ('cooking', dict(generator=dict(train=2, seen=1, unseen=1)))])
def test_idle_actions_change_nothing(name, kwargs):
    env, rng = load_environment(name, **kwargs), random.Random(0)
    idle = 0
    for task in env.tasks('train')[:2]:
        _, info = env.reset(options={'task':task})
        for _ in range(12):
            snapshot = env.save()
            for a in filter(env.idle, info['admissible_actions']):
                env.restore(snapshot)
                key = env.key()
                *_, info = env.step(a)
                idle += 1
                assert env.key() == key, a
            env.restore(snapshot)
            *_, terminated, truncated, info = env.step(rng.choice(busy(env, info['admissible_actions'])))
            if terminated or truncated: break
    assert idle > 10

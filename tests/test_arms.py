"Arms of an experiment: measured once, resumed, and compared task by task"
import json
import pytest
from a3t.agents import rollout
from a3t.core import A3TError
from a3t.envs.base import ToyHouse
from a3t.evaluate import paired, sign_test, wilson
from a3t.quality.arms import Arms, arms_table, compare, forest, in_waves, joined, outcomes, paired_p, rollout_record

TASKS = ToyHouse().tasks('train')[:5]
stubborn = lambda traj, info, seed: ('', 'go to table')

def test_a_stored_arm_is_not_measured_again(tmp_path):
    calls, path = [], tmp_path/'a'/'arms.json'
    work = lambda: calls.append(1) or dict(won={'a':True})
    first = Arms(path).measure('x', work)
    assert Arms(path).measure('x', work) == first and len(calls) == 1 and first['seconds'] == 0

def test_an_arm_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError): Arms(tmp_path/'arms.json').measure('x', lambda: 1/0)
    assert 'x' not in Arms(tmp_path/'arms.json')

def test_two_processes_share_a_file(tmp_path):
    one, two = Arms(tmp_path/'arms.json'), Arms(tmp_path/'arms.json')
    one.measure('x', lambda: dict(won={}))
    two.measure('y', lambda: dict(won={}))
    assert set(json.loads((tmp_path/'arms.json').read_text())) == {'x', 'y'} == set(two)

def test_the_first_rollouts_are_an_arm_of_their_own():
    record = dict(won={'a':'0011', 'b':'1000'})
    assert outcomes(record, 2) == {'a':[False, False], 'b':[True, False]}
    assert (compare(outcomes(record))['won'], compare(outcomes(record, 2))['won']) == (3, 1)
    assert compare(outcomes(record))['solved'] == 2 and compare(outcomes(record, 2))['solved'] == 1

def test_with_one_trial_it_is_mcnemar_and_wilson():
    class Trial:
        def __init__(self, task, won): self.task, self.won = task, won
    mine, other = ({t:w for t,w in zip('abcdefgh', ws)} for ws in ((1, 1, 1, 1, 0, 0, 1, 1), (0, 0, 1, 0, 1, 0, 0, 0)))
    c = compare(*(outcomes(dict(won=w)) for w in (mine, other)))
    assert c['p'] == c['p_solved'] == paired(*([Trial(t, bool(w)) for t,w in x.items()] for x in (mine, other)))['p']
    assert (c['low'], c['high']) == wilson(6, 8)

def test_tasks_are_the_unit_not_rollouts():
    "Forty rollouts of two tasks say no more than two tasks can"
    mine, plain = dict(won={'a':'1'*40, 'b':'0'*40}), dict(won={'a':'0'*40, 'b':'0'*40})
    c = compare(outcomes(mine), outcomes(plain))
    assert c['p'] == sign_test(1, 0) == 1 and (c['low'], c['high']) == (0, 1)

def test_only_shared_tasks_are_paired():
    assert paired_p({'a':1, 'b':1, 'c':1}, {'c':1, 'd':0}) == 1
    assert set(joined({0:dict(won={'a':True}), 1:dict(won={'a':False})})) == {'0 a', '1 a'}

def test_an_arm_without_trials_is_refused():
    with pytest.raises(A3TError, match='without trials'): compare({})

def test_a_killed_arm_repeats_one_wave(tmp_path):
    played = []
    def work(tasks):
        if len(played) == 2 and not (tmp_path/'killed').exists():
            (tmp_path/'killed').touch()
            raise KeyboardInterrupt
        played.append(tasks)
        return rollout(ToyHouse, tasks, stubborn)
    with pytest.raises(KeyboardInterrupt): in_waves(tmp_path/'work', TASKS, work, wave=2)
    made = in_waves(tmp_path/'work', TASKS, work, wave=2)
    assert played == [TASKS[:2], TASKS[2:4], TASKS[4:]] and [t.task for t in made] == TASKS

def test_equal_trajectories_all_count(tmp_path):
    twice = lambda tasks: rollout(ToyHouse, [*tasks, *tasks], stubborn)
    for _ in range(2):
        made = in_waves(tmp_path/'work', TASKS, twice, wave=2)
        assert sorted(t.task for t in made) == sorted([*TASKS, *TASKS])
    assert in_waves(tmp_path/'none', TASKS, lambda tasks: []) == []
    assert [t.task for t in in_waves(tmp_path/'work', TASKS[::-1], lambda tasks: rollout(ToyHouse, tasks, stubborn))] \
        == TASKS[::-1], 'other tasks are other waves'

def test_models_forget_before_each_wave(tmp_path):
    class Lm:
        forgotten = 0
        def forget(self): self.forgotten += 1
    lm = Lm()
    for _ in range(2): in_waves(tmp_path, TASKS, lambda tasks: rollout(ToyHouse, tasks, stubborn), [lm], wave=2)
    assert lm.forgotten == 3

def test_a_table_and_a_forest():
    class Words:
        bos_token_id = None
        def __call__(self, text, **_): return type('Ids', (), dict(input_ids=text.split()))()
        def tokenize(self, text): return [text]
        def get_added_vocab(self): return {}
    record = rollout_record(Words(), rollout(ToyHouse, TASKS, stubborn))
    assert record['rollouts'] == 5 and record['sampled'] == 0 and set(record['won'].values()) == {'0'}
    c = compare(outcomes(record))
    table = arms_table({'plain':c, 'again':dict(c, p=.5, p_solved=1.)}, {'plain':record})
    assert list(table.loc['plain', ['n', 'rollouts']]) == [5, '5']
    fig = forest({'one':{'plain':c}, 'two':{'plain':c, 'again':c}}, high=.5)
    assert [len(a.get_yticks()) for a in fig.axes] == [1, 2]

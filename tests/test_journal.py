"A killed wave: saved answers stay, and the resumed result is identical to the byte"
import os, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from a3t.agents import ActRe, ReAct, rollout
from a3t.compose import compose_all
from a3t.core import A3TError, to_row
from a3t.envs.base import ToyHouse
from a3t.models.base import ContextFull, LanguageModel, gather
from a3t.models.journal import Journal
from a3t.models.scripted import ScriptedModel
from a3t.models.local import LocalModel
from a3t.models.weights import load_model
from a3t.runs.cluster import LoadedThere

torch.set_num_threads(1)
TASKS = ToyHouse().tasks('train')[:8]

class Counting:
    "A model that counts its requests"
    def __init__(self, lm): self.lm, self.calls = lm, 0
    def __getattr__(self, name): return getattr(self.lm, name)
    async def complete(self, *args, **kw):
        self.calls += 1
        return await self.lm.complete(*args, **kw)

def composed(lm, folder, answers=15, on_call=None):
    "Compose a wave with two models, policy and ActRe; (trajectories, number of computed answers)"
    lm, other, journal = Counting(lm), Counting(lm), Journal(folder, answers)
    acting, base = journal.of(lm, 'acting'), journal.of(other, 'base')
    if on_call: lm.complete, other.complete = (on_call(m.complete) for m in (lm, other))
    for m in (acting, base): m.forget()
    made = compose_all(lambda: ToyHouse(max_steps=6), TASKS, ReAct(acting, temperature=.7, max_tokens=8),
                       ActRe(base, ToyHouse.exemplar, grounded=ToyHouse(), temperature=.7), most=2, p=.6, limit=4)
    return [to_row(t) for t in made], lm.calls + other.calls

SCRIPT = '''
import sys
sys.path.insert(0, sys.argv[3])
from test_journal import *
def slowly(complete):
    async def f(*args, **kw):
        time.sleep(.02)
        return await complete(*args, **kw)
    return f
composed(LocalModel(*load_model(sys.argv[1], device='cpu'), slots=4), sys.argv[2], on_call=slowly)
'''

@pytest.fixture(scope='module')
def lm(folder): return LocalModel(*load_model(folder, device='cpu'), slots=4)

@pytest.fixture(scope='module')
def uninterrupted(lm, tmp_path_factory):
    "(trajectories, answers computed, segments written)"
    d = tmp_path_factory.mktemp('uninterrupted')
    return *composed(lm, d), len(list(d.glob('*.json')))

def test_killed_in_mid_wave(folder, lm, uninterrupted, tmp_path):
    "SIGKILL in the middle of a segment: earlier segments are not computed again"
    full, asked, segments = uninterrupted
    assert asked//15 - 1 <= segments <= asked//15 and segments > 3
    p = subprocess.Popen([sys.executable, '-c', SCRIPT, folder, str(tmp_path/'killed'), str(Path(__file__).parent)],
                         env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)))
    while p.poll() is None and len(list((tmp_path/'killed').glob('[0-9a-f]*.json'))) < 2: time.sleep(.01)
    assert p.poll() is None, 'it ended before it could be killed'
    p.send_signal(signal.SIGKILL); p.wait()
    kept = len(list((tmp_path/'killed').glob('[0-9a-f]*.json')))
    assert 2 <= kept < segments
    again, left = composed(lm, tmp_path/'killed')
    assert again == full and left == asked - 15*kept
    assert composed(lm, tmp_path/'killed')[1] == asked - 15*segments # those after the last segment

@pytest.mark.parametrize('at', [1, 15, 31])
def test_stopped_at_any_call(lm, uninterrupted, tmp_path, at):
    (full, asked, _), n = uninterrupted, [0]
    def dies(complete):
        async def f(*args, **kw):
            n[0] += 1
            if n[0] == at: raise A3TError('killed')
            return await complete(*args, **kw)
        return f
    with pytest.raises(A3TError, match='killed'): composed(lm, tmp_path/'killed', on_call=dies)
    again, left = composed(lm, tmp_path/'killed')
    assert again == full and asked - left in {15*((at - 1)//15), 15*max(0, (at - 1)//15 - 1)}

def test_two_processes_keep_their_own(lm, tmp_path):
    def play(answers):
        j = Journal(tmp_path/str(answers), answers).of(lm)
        j.forget()
        return rollout(ToyHouse, TASKS, ReAct(j, temperature=.7, max_tokens=8), processes=2)
    first = play(10)
    assert len(list((tmp_path/'10').glob('*.json'))) >= 4 and play(10) == first

def test_a_journal_can_be_pickled(tmp_path):
    "Ray pickles the models of a wave; on arrival they still share one journal"
    import cloudpickle
    journal = Journal(tmp_path, 7)
    a, b = cloudpickle.loads(cloudpickle.dumps([journal.of(LoadedThere('tiny'), n) for n in 'ab']))
    assert a.journal is b.journal and (a.journal.folder, a.journal.answers) == (tmp_path, 7)
    assert (a.name, b.name, a.lm.args) == ('a', 'b', ('tiny',))

def test_to_forget_loads_no_model(tmp_path):
    "A role that is never asked; a model that is loaded forgets"
    LoadedThere('no such model').forget()
    lm = LoadedThere('tiny', 'none', 'cpu', None, 2)
    slots = lm.engine.slots
    lm.forget()
    assert lm.engine.slots is not slots

def test_a_full_context_is_remembered(tmp_path):
    class Full(LanguageModel):
        calls = 0
        async def complete(self, prompt, **kw):
            Full.calls += 1
            raise ContextFull('full of it')
    async def ask(lm, i):
        try: await lm.complete(f'say {i}')
        except ContextFull as e: return str(e)
    for calls in (5, 6): # the sixth is in the last segment, which is never written
        lm = Journal(tmp_path, 5).of(Full())
        before, res = Full.calls, gather([ask(lm, i) for i in range(6)])
        assert res == ['full of it']*6
    assert Full.calls - before == 1

def test_the_same_request_is_asked_once(tmp_path):
    lm = ScriptedModel(lambda p: p.upper())
    kept = Journal(tmp_path).of(lm)
    async def ask(p, **kw): return (await kept.complete(p, **kw)).text
    assert gather([ask('a'), ask('a'), ask('b'), ask('a', seed=1)]) == ['A', 'A', 'B', 'A']
    assert sorted(lm.calls) == ['a', 'a', 'b']

def test_an_error_leaves_no_request_waiting(tmp_path):
    def broken(prompt):
        if prompt == '7': raise A3TError('broken')
        return 'x'
    kept = Journal(tmp_path, 4).of(ScriptedModel(broken))
    async def ask(i): return (await kept.complete(str(i))).text
    with pytest.raises(A3TError, match='broken'): gather([ask(i) for i in range(12)])
    assert gather([ask(i) for i in range(7)]) == ['x']*7 # in another loop, without `forget`

@pytest.mark.parametrize('spoil', ['not a folder', 'not JSON'])
def test_a_failing_disk_leaves_no_request_waiting(tmp_path, spoil):
    async def ask(lm, i): return (await lm.complete(str(i))).text
    play = lambda: gather([ask(Journal.of(journal, lm), i) for i in range(12)])
    lm, journal = ScriptedModel(lambda p: 'x'), Journal(tmp_path/'a', 4)
    if spoil == 'not a folder': (tmp_path/'a').write_text('')
    else:
        play()
        for f in (tmp_path/'a').glob('*.json'): f.write_text('{"')
    with pytest.raises(A3TError, match='cannot write|is not valid JSON'): play()

def test_segments_are_of_a_few_minutes(lm):
    assert LanguageModel.journal_every == lm.journal_every == Journal('x').of(LanguageModel()).journal_every == 320

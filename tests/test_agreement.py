"Acting and training give tokens the same probabilities; where they do not, an alarm says so"
import math
from dataclasses import replace
import pytest, torch
from a3t.agents import ReAct, rollout
from a3t.core import Step, Trajectory
from a3t.envs.base import ToyHouse
from a3t.models import engine, forward, logprobs
from a3t.models.local import LocalModel
from a3t.models.packed import Packed
from a3t.models.scripted import ScriptedModel
from a3t.models.weights import load_model, tiny_model
from a3t.models.server import ServerModel
from a3t.quality.agreement import EPISODES, STEPS, acted, agreement, moments, trainer_model
from a3t.quality.alarms import BOUNDS, disagreement, stage_alarms
from a3t.train import lora
from test_alarms import names

torch.set_num_threads(1)
HOUSE = ToyHouse()

@pytest.fixture(scope='module', params=['mistral', 'qwen2', 'gpt2'])
def policy(request, tmp_path_factory):
    "The engine, for Llama's and GPT's tokenizers, and the fallback"
    more = {} if request.param != 'gpt2' else dict(n_positions=1024, n_embd=64, n_layer=2, n_head=4)
    folder = tiny_model(tmp_path_factory.mktemp('m')/'m', request.param, **more)
    return ReAct(LocalModel(*load_model(folder, device='cpu', dtype=torch.float32)), temperature=.7, max_tokens=12)

@pytest.fixture(scope='module')
def some(policy): return moments(rollout(ToyHouse, HOUSE.tasks('train')[:3], policy))

def compared(policy, some): return agreement(acted(policy, some), lambda: policy.lm.engine.model)

def test_moments():
    step = lambda actor: Step('', 'look', 'room', actor)
    actors = 'sampled', 'policy', 'sampled', 'policy', 'sampled'
    mixed = Trajectory('t', 'put', 'goal', 'room', tuple(map(step, actors)))
    assert [len(t) for t in moments([mixed])] == [1, 3]
    assert not moments([]) and not moments([replace(mixed, steps=mixed.steps[:1]), replace(mixed, steps=())])
    many = [replace(mixed, task=str(i)) for i in range(40)]
    found = moments(many, 1)
    assert len(found) == EPISODES*STEPS and found == moments(many, 1) != moments(many, 2)

def test_they_agree(policy, some):
    found = compared(policy, some)
    assert found['tokens'] > 20 and found['largest'] < 1e-4 and found['format'] == 'float32'
    assert disagreement(found) == [] and found == compared(policy, some)

def test_a_wrong_engine_is_an_alarm(policy, some, monkeypatch):
    "Positions off by one, a scale forgotten, and a wrong sum: each is found"
    if policy.lm.engine.unsupported: pytest.skip('answers come from transformers itself')
    exact, attend, norm = Packed.__init__, forward.attend, engine.pick_tokens
    def shifted(self, *args, **kwargs):
        exact(self, *args, **kwargs)
        self.positions[1:] += 1
    def unscaled(query, key, value, bias, scale): return attend(query, key, value, bias, 1.)
    def warm(logits, *args): return norm(logits*.9, *args)
    errors = (Packed, '__init__', shifted), (forward, 'attend', unscaled), (engine, 'pick_tokens', warm)
    for place,name,wrong in errors:
        with monkeypatch.context() as m:
            m.setattr(place, name, wrong)
            found = compared(policy, some)
        assert names(disagreement(found)) == ['acting and training disagree'], name
    assert disagreement(compared(policy, some)) == []

def test_a_wrong_trainer_is_an_alarm(tmp_path, monkeypatch):
    "The trainer's attention, its output layer and its layers of LoRA, each wrong: the model as the trainer has it"
    folder = tiny_model(tmp_path/'m')
    model = lora(load_model(folder, device='cpu')[0])
    for k,p in model.named_parameters():
        if 'lora_B' in k: torch.nn.init.normal_(p, std=.2)
    model.save_pretrained(tmp_path/'a')
    policy = ReAct(LocalModel(*load_model(folder, device='cpu', adapter=tmp_path/'a')), max_tokens=12)
    answers, S = acted(policy, [HOUSE.exemplar]), dict(model=str(folder), quantize='none', device='cpu')
    found = lambda: names(disagreement(agreement(answers, lambda: trainer_model(S, tmp_path/'a'))))
    attend, picked, update = logprobs.tree_attention, logprobs.TokenLogprobs.apply, logprobs.LoraUpdate.apply
    def unscaled(*args, scaling=None, **kw): return attend(*args, scaling=1., **kw)
    errors = ((logprobs, 'tree_attention', unscaled),
              (logprobs.TokenLogprobs, 'apply', lambda h, *args: picked(h*.5, *args)),
              (logprobs.LoraUpdate, 'apply', lambda *args: update(*args[:-1], 9.)))
    assert found() == []
    for place,name,wrong in errors:
        with monkeypatch.context() as m:
            m.setattr(place, name, wrong)
            assert found() == ['acting and training disagree'], name

def test_a_lost_adapter_is_an_alarm(tmp_path):
    "The trainer's model has the adapter; the engine acts with it, with none, and with another one"
    folder = tiny_model(tmp_path/'m')
    S, made = dict(model=str(folder), quantize='none', device='cpu'), {}
    for seed in (1, 2):
        model = lora(load_model(folder, device='cpu')[0], seed=seed)
        torch.manual_seed(seed)
        for k,p in model.named_parameters():
            if 'lora_B' in k: torch.nn.init.normal_(p, std=.2)
        model.save_pretrained(tmp_path/str(seed))
        made[seed] = tmp_path/str(seed)
    for adapter,good in ((made[1], True), (None, False), (made[2], False)):
        policy = ReAct(LocalModel(*load_model(folder, device='cpu', adapter=adapter)), max_tokens=12)
        found = agreement(acted(policy, [HOUSE.exemplar]), lambda: trainer_model(S, made[1]))
        assert found['tokens'] > 5 and (disagreement(found) == []) == good, adapter

def test_what_tells_no_logprobs_is_not_compared():
    chat = ServerModel('http://127.0.0.1:9/v1/chat/completions#m')
    for lm in (ScriptedModel([]), chat, ServerModel('http://127.0.0.1:9/v1#m')):
        assert acted(ReAct(lm), [HOUSE.exemplar]) == []
    assert agreement([], None) == {} and disagreement({}) == disagreement(None) == []

def test_bounds():
    for kind,(mean, largest) in BOUNDS.items():
        found = dict(tokens=9, mean=mean/2, largest=largest/2, format=kind)
        assert disagreement(found) == []
        for worse in (dict(mean=2*mean), dict(largest=2*largest), dict(mean=math.nan), dict(largest=math.nan)):
            assert names(disagreement(found | worse)) == ['acting and training disagree']
    assert disagreement(dict(tokens=9, mean=.001, largest=.01, format='a new one')) == []

def test_in_a_stage(tmp_path):
    wrong = dict(tokens=9, mean=1., largest=3., format='nf4')
    assert 'acting and training disagree' in names(stage_alarms('evaluate', tmp_path, dict(agreement=wrong)))
    assert stage_alarms('evaluate', tmp_path, dict(agreement={})) == stage_alarms('evaluate', tmp_path) == []

"One command form scores anything that acts, and its file states the whole protocol"
import json
import pytest
from a3t.cli import main
from a3t.core import read_json
from a3t.models.toyserver import ToyServer
from a3t.scoring.styles import REACT, prompt_parts, read_answer
from conftest import ROOT

ADAPTER = ROOT/'data'/'results'/'cpu-alfworld'/'round_03'/'adapter'

@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('A3T_DATA', str(tmp_path/'data'))
    (tmp_path/'scored_agents.py').write_text(
        'def first(history, info): return info["admissible_actions"][0]\n'
        'async def why(history, info, seed): return "I look.", info["admissible_actions"][seed % 2]\n')
    return tmp_path

def scored(place, agent, *more):
    assert main(['evaluate', '--agent', agent, '--preset', 'smoke', '--json', 'score.json', *more, '--set',
                 'eval_tasks=2', 'max_steps=3']) == 0
    return read_json(place/'score.json')

@pytest.mark.parametrize('agent,kind', [('random', 'random'), ('tiny', 'embedded'), ('scored_agents:first', 'function'),
                                        ('scored_agents:why', 'function')])
def test_one_form_for_every_agent(place, agent, kind, capsys):
    s = scored(place, agent)
    p = s['protocol']
    assert (p['kind'], p['trials'], p['seed'], p['max_steps'], s['n']) == (kind, 1, 0, 3, 2)
    assert p['panels']['unseen']['hash'] == s['panel'] and p['commands_shown'] == (agent != 'tiny')
    assert p['versions']['a3t'] and s['panel'] in capsys.readouterr().out
    if agent == 'tiny': assert p['instruction_and_exemplar'] and p['prompt'] == 'a3t'

@pytest.mark.parametrize('chat', [False, True])
def test_a_model_on_a_server_in_the_form_of_react(place, chat):
    with ToyServer(lambda body: ' go to desk') as toy:
        s = scored(place, f"{toy.url}{'/chat/completions' * chat}#toy", '--prompt', 'react', '--exemplar', 'no')
        sent = json.dumps(toy.requests[-1][1])
    assert 'Your task is to' in sent and s['protocol']['prompt'] == 'react'
    assert not s['protocol']['instruction_and_exemplar'] and 'Here is an example' not in sent

def test_trials_have_names_of_their_own(place):
    s = scored(place, 'random', '--trials', '3')
    assert 'rate' not in s and s['pass@1']['episodes'] == 6 and s['best_of_3']['n'] == 2
    assert s['best_of_3']['rate'] >= s['pass@1']['rate']

def test_a_panel_is_played_exactly_or_refused(place, capsys):
    assert main(['evaluate', '--agent', 'random', '--preset', 'cpu', '--panel',
                 str(ADAPTER.parent.parent/'panels'/'unseen.json')]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and 'missing: valid_unseen' in lines[0]

def test_thoughts_and_actions():
    assert read_answer(REACT, ' think: why') == ('why', '') and read_answer(REACT, ' look') == ('', 'look')

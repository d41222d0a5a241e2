"One command form scores anything that acts, and its file states the whole protocol"
import json
from dataclasses import replace
import pytest
from a3t.cli import main
from a3t.files import read_json
from a3t.envs.base import ToyHouse
from a3t.models.chat import MESSAGES, messages_of
from a3t.models.toyserver import ToyServer
from a3t.scoring import score
from a3t.scoring.players import player
from a3t.scoring.styles import GO_ON, REACT, read_answer, styled_segments
from a3t.settings import load_settings
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

@pytest.mark.parametrize('path,format', [('', 'text'), ('/chat/completions', 'text'), ('/chat/completions', 'chat')])
def test_a_model_on_a_server_in_the_form_of_react(place, path, format):
    with ToyServer(lambda body: '> go to desk') as toy:
        s = scored(place, f'{toy.url}{path}#toy', '--prompt', 'react', '--exemplar', 'no', '--format', format)
        sent = toy.requests[-1][1]
    assert 'Your task is to' in json.dumps(sent) and 'Here is an example' not in json.dumps(sent)
    p = s['protocol']
    assert (p['prompt'], p['format'], p['instruction_and_exemplar']) == ('react', format, False)
    if format == 'chat':
        turns = [m['role'] for m in sent['messages']]
        assert turns == ['user', 'assistant']*(len(turns)//2) + ['user'] and len(turns) == 5
        assert sent['messages'][1]['content'] == '> go to desk'

def test_a_style_as_a_conversation():
    "The words at the start are the system turn, the exemplar is earlier turns, and nobody speaks twice in a row"
    house = ToyHouse.exemplar
    for style in (REACT, replace(REACT, thought='Thought: {reason}\n', action='Action: {action}\n')):
        text = ''.join(s.text for s in styled_segments(style, house, 'Tidy up.', house))
        segs = styled_segments(style, house, 'Tidy up.', house, thoughts=['I think.'], chat=True)
        turns = messages_of(''.join(s.text for s in MESSAGES(segs)))
        assert [m['role'] for m in turns] == ['system', *['user', 'assistant']*(len(turns)//2 - 1), 'user']
        assert all(line in text for m in turns[:-2] for line in m['content'].splitlines())
        assert 'I think.' in turns[-2]['content'] and turns[-1]['content'] in ('OK.', GO_ON)
    assert read_answer(REACT, '> look', chat=True) == ('', 'look')

def test_the_adapter_speaks_as_in_its_run(monkeypatch):
    "Outside of what its run says, a foreign model gets plain text, and ActRe's settings do not matter"
    run = dict(settings=dict(load_settings('cpu-alfworld'), format='chat'))
    monkeypatch.setattr(score, 'run_of', lambda path: run)
    assert score.evaluation_settings(player(str(ADAPTER)), 'cpu')[0]['format'] == 'chat'
    S, _ = score.evaluation_settings(player('http://127.0.0.1:1/v1#x'), 'smoke', given=dict(actre='bound'))
    assert (S['format'], S['actre']) == ('text', 'bound')

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

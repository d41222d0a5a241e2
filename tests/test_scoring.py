"One command form scores anything that acts, and its file states the whole protocol"
import asyncio, json, os, signal, threading, time
from dataclasses import replace
import pytest
from a3t.accumulate import read
from a3t.cli import main
from a3t.core import A3TError
from a3t.files import read_json
from a3t.envs.base import ToyHouse
from a3t.models.chat import MESSAGES, messages_of
from a3t.models.toyserver import ToyServer
from a3t.scoring import score
from a3t.runs.manifests import code_hashes
from a3t.scoring.players import Function, function_hash, import_function, player
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
    assert len(s['code']) == 16
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

def refusal(capsys, *words):
    "What a command that is refused prints"
    assert main(['evaluate', '--preset', 'smoke', *words]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    return err

@pytest.mark.parametrize('text', ['{}', '[]', 'no JSON', '{"protocol": {"trials": 1}}'])
def test_a_file_that_is_no_score_of_this_evaluation_stays(place, text, capsys):
    (place/'score.json').write_text(text)
    assert 'choose another --json' in refusal(capsys, '--agent', 'random', '--json', 'score.json')
    assert (place/'score.json').read_text() == text and not (place/'score.episodes').exists()

def test_fewer_trials_replace_no_score(place, capsys):
    s = scored(place, 'random', '--trials', '2')
    capsys.readouterr()
    assert 'pass --trials 2, or choose another --json' in refusal(
        capsys, '--agent', 'random', '--json', 'score.json', '--set', 'eval_tasks=2', 'max_steps=3')
    assert read_json(place/'score.json') == s
    assert scored(place, 'random', '--trials', '2') == s and 'stored before' in capsys.readouterr().out
    assert scored(place, 'random', '--trials', '3')['protocol']['trials'] == 3

def test_agents_share_no_answers(place, monkeypatch, capsys):
    "One that is stopped, and another that writes to the same file"
    folders = []
    def stopped(who, S, env, style, answers):
        folders.append(answers)
        raise A3TError('stopped')
    monkeypatch.setattr(score, 'policy_of', stopped)
    for agent in ('tiny', 'smollm2-135m', 'tiny'): refusal(capsys, '--agent', agent, '--json', 'score.json')
    assert folders[0] == folders[2] != folders[1] and {f.parent.name for f in folders} == {'score.answers'}

@pytest.mark.parametrize('words,contains', [
    (('--agent', 'tiny', '--set', 'model=smollm2-135m'), 'name the model with --agent'),
    (('--agent', 'full', '--model', 'tiny'), 'omit --model'),
    (('--agent', 'random', '--panel', 'p.json', '--splits', 'seen', '--games', 'x'), '--panel names the tasks'),
    (('--agent', 'random', '--panel', 'p.json', '--set', 'eval_tasks=2'), '--panel names the tasks')])
def test_no_option_is_ignored(place, capsys, words, contains):
    (place/'full').mkdir()
    (place/'full'/'config.json').write_text('{}')
    assert contains in refusal(capsys, *words)

def test_a_seed_is_passed_to_who_asks_for_it():
    def two(history, info): return 'a', str(0)
    def default(history, info, debug=False): return 'a', str(debug)
    def named(history, info, seed=5): return 'a', str(seed)
    def needed(history, info, number): return 'a', str(number)
    def any_(*words): return 'a', str(len(words))
    said = [asyncio.run(Function(f)(None, {}, 7))[1] for f in (two, default, named, needed, any_)]
    assert said == ['0', 'False', '7', '7', '2']

def test_a_panel_is_played_exactly_or_refused(place, capsys):
    assert main(['evaluate', '--agent', 'random', '--preset', 'cpu', '--panel',
                 str(ADAPTER.parent.parent/'panels'/'unseen.json')]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and 'missing: valid_unseen' in lines[0]

BLOCKS = """
import asyncio, os, time
from blocks_helper import first
seen = set()
def waits(history):
    seen.add(history.task)
    return len(seen) > 1 and 'A3T_BLOCKS' in os.environ
def block(history, info):
    if waits(history): time.sleep(60)
    return first(info)
async def thread(history, info):
    if waits(history): await asyncio.to_thread(time.sleep, 12)
    return first(info)
"""

@pytest.mark.parametrize('agent,number', [('block', signal.SIGINT), ('block', signal.SIGTERM),
                                          ('thread', signal.SIGINT)])
def test_a_blocked_agent_stops_at_once_and_loses_no_episode(place, agent, number, monkeypatch, capsys):
    name = f'blocks_{agent}_{number}'
    (place/f'{name}.py').write_text(BLOCKS)
    (place/'blocks_helper.py').write_text('def first(info): return info["admissible_actions"][0]\n')
    monkeypatch.setenv('A3T_BLOCKS', '1')
    before = signal.signal(signal.SIGINT, signal.default_int_handler) # tests in the background ignore it
    words = ['evaluate', '--agent', f'{name}:{agent}', '--preset', 'smoke', '--json', 's.json', '--set', 'eval_tasks=3']
    stopper = threading.Timer(1.5, os.kill, (os.getpid(), number))
    try:
        stopper.start()
        t0 = time.monotonic()
        assert main(words) == 130 and time.monotonic() - t0 < 10
    finally: signal.signal(signal.SIGINT, before)
    err = capsys.readouterr().err
    assert err.endswith('\na3t: stopped; the same command resumes from here\n') and 'Traceback' not in err
    kept, = read(place/'s.episodes'/'unseen')
    monkeypatch.delenv('A3T_BLOCKS')
    assert main(words) == 0 and read_json(place/'s.json')['n'] == 3
    assert read(place/'s.episodes'/'unseen')[0] == kept

def test_a_score_depends_on_the_agents_modules(place):
    (place/'agent_folder.py').write_text('import torch, a3t.core\ndef act(history, info):\n    import agent_part\n')
    (place/'agent_part.py').write_text('from agent_pack import words\n')
    (place/'agent_pack').mkdir()
    for n,text in {'__init__':'', 'words':'from .more import X\n', 'more':'X = 1\n'}.items():
        (place/'agent_pack'/f'{n}.py').write_text(text)
    import_function('agent_folder:act')
    of = lambda: function_hash('agent_folder:act')
    first = of()
    (place/'unrelated.py').write_text('X = 1\n')
    (place/'agent_part.py').write_text('# a comment\nfrom agent_pack import words\n')
    assert of() == first == player('agent_folder:act').hash
    (place/'agent_pack'/'more.py').write_text('X = 2\n')
    assert of() != first
    assert len(code_hashes(['fastcore.basics'])) < 10 # of an installed package, only its own modules

def test_thoughts_and_actions():
    assert read_answer(REACT, ' think: why') == ('why', '') and read_answer(REACT, ' look') == ('', 'look')

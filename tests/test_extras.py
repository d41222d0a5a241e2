"The core needs no torch, and a missing package is one line with the extra that brings it"
import re, subprocess, sys, tomllib
from pathlib import Path
from types import SimpleNamespace
import pytest
from a3t.extras import DISTRIBUTION, EXTRAS, extra_of, install_command, missing_package
from conftest import ROOT

PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']
HEAVY = ' '.join(EXTRAS.values()).split() # modules of extras
# modules of the core: they import without any extra
CORE = '''core files extras settings prompts agents compose data accumulate evaluate cli doctor envs.base envs.panel
    envs.trial envs.contract envs.alfworld envs.alfworld.batch envs.alfworld.generator
    envs.alfworld.parity envs.alfworld.simulator envs.cooking envs.scienceworld envs.webshop
    envs.webshop.browser envs.webshop.generator models.api models.base models.journal models.scripted
    models.server models.toyserver runs.cluster runs.folders runs.manifests view.serve web'''.split()
BLOCK = '''
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED: raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Block())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split('.')[0] in BLOCKED else find_spec(name, *args)
'''

def without_extras(code, blocked=HEAVY, **kw):
    "Run Python code in a process in which the modules of all extras are missing"
    return subprocess.run([sys.executable, '-c', f'BLOCKED = {blocked!r}\nimport importlib.util{BLOCK}\n{code}'],
                          capture_output=True, encoding='utf-8', **kw)

def test_the_core_imports_without_any_extra():
    p = without_extras(f"for m in {CORE!r}: importlib.import_module(f'a3t.{{m}}')")
    assert p.returncode == 0, p.stderr
    assert without_extras('import a3t.train').returncode # it can fail

def test_alfworld_and_webshop_play_without_any_extra(tmp_path):
    p = without_extras('''
from a3t.envs.base import load_environment, play
small = dict(train=1, seen=1, unseen=1, rooms=4, unseen_rooms=4)
for env in (load_environment('alfworld', games='generated', engine='sim', generator=small),
            load_environment('webshop', games='generated', generator=dict(products=60))):
    task = env.tasks('train')[0]
    print(bool(env.reset(options={'task':task})[1]['admissible_actions']))
''', cwd=tmp_path, env={'A3T_DATA':str(tmp_path/'data'), 'PYTHONPATH':str(ROOT), 'PATH':''})
    assert p.stdout.split() == ['True', 'True'], p.stderr

@pytest.mark.parametrize('code,extra', [
    ("from a3t.models.api import language_model; language_model('tiny')", 'train'),
    ("from a3t.envs.alfworld.engine import _textworld; _textworld()", 'alfworld'),
    ("from a3t.envs.cooking.games import textworld_game; textworld_game('both', 0)", 'alfworld'),
    ("from a3t.runs.cluster import cluster; cluster('local')", 'ray')])
def test_what_is_missing_names_its_extra(code, extra):
    p = without_extras(code)
    assert p.returncode and install_command(extra) in p.stderr.strip().split('\n')[-1], p.stderr

def test_the_command_line_names_the_extra(tmp_path):
    main = 'from a3t.cli import main; sys.exit(main(%r))'
    p = without_extras(main % ['run', 'smoke'], cwd=tmp_path)
    assert p.returncode == 1
    assert re.fullmatch(r'a3t: the package \w+ is missing: pip install "a3t-agents\[train\]"\n', p.stderr)
    p = without_extras(main % ['doctor', 'smoke'], cwd=tmp_path)
    assert p.returncode == 1 and install_command('train') in p.stdout and not p.stderr

def test_errors_texts_and_names_count_alike():
    try: import no_such_package  # noqa: F401
    except ImportError as e: said = str(missing_package(e))
    assert said == 'the package no_such_package is missing: pip install no_such_package'
    assert extra_of(ModuleNotFoundError("No module named 'ray.data'", name='ray.data')) == 'ray'
    assert extra_of("ModuleNotFoundError: No module named 'peft.tuners'") == extra_of('peft') == 'train'
    assert extra_of(SimpleNamespace(name=None)) == extra_of('numpy') == ''

def test_the_names_are_those_of_the_project():
    extras = PROJECT['optional-dependencies']
    assert PROJECT['name'] == DISTRIBUTION and EXTRAS.keys() | {'dev', 'docs'} == extras.keys()
    packages = {re.match(r'[\w-]+', r)[0] for rs in extras.values() for r in rs}
    core = {re.match(r'[\w-]+', r)[0] for r in PROJECT['dependencies']}
    assert not core & packages and not core & set(HEAVY)
    for extra,names in EXTRAS.items():
        have = {re.match(r'[\w-]+', r)[0] for r in extras[extra]}
        assert have <= set(names.split()), extra # the modules have their packages' names

def test_the_tables_are_those_of_alfworld():
    import importlib.util
    from a3t.envs.alfworld.rooms import official_tables
    source = importlib.util.find_spec('alfworld')
    if source is None: pytest.skip('alfworld is not installed')
    place, ours = Path(source.submodule_search_locations[0]), ROOT/'a3t'/'envs'/'alfworld'
    for f in ('alfred.pddl', 'alfred.twl2'): assert (place/'data'/f).read_bytes() == (ours/f).read_bytes()
    def table(name):
        res = {'__file__':str(place/'gen'/f'{name}.py')}
        exec((place/'gen'/f'{name}.py').read_text(encoding='utf-8'), res)
        return res
    K, G, T = table('constants'), table('goal_library'), official_tables()
    assert {k:set(v) for k,v in T['holds'].items()} == K['VAL_RECEPTACLE_OBJECTS']
    assert {k:set(v) for k,v in T['allows'].items()} == K['VAL_ACTION_OBJECTS']
    for name,key in dict(receptacles='RECEPTACLES', movable='MOVABLE_RECEPTACLES_SET', objects='OBJECTS_SET').items():
        assert set(T[name]) == set(K[key])
    assert all(G['gdict'][k] | g == G['gdict'][k] for k,g in T['goals'].items())

def test_no_message_names_another_package():
    texts = [p for place in ('a3t', 'nbs') for end in ('py', 'ipynb', 'md') for p in (ROOT/place).rglob(f'*.{end}')]
    wrong = [f'{p.relative_to(ROOT)}: {m}' for p in texts if '.ipynb_checkpoints' not in p.parts
             for m in re.findall(r'pip install [\\"\']*a3t(?!-agents)\S*', p.read_text(encoding='utf-8'))]
    assert not wrong, '\n'.join(wrong)

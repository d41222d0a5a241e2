"The wheel, installed into a fresh environment, works in an empty folder"
import json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
INI = '''[mine]
# a world of one's own
extends = smoke
environment = worlds.house
rounds = 1
train_tasks = 6
eval_tasks = 6
'''

def do(*words, **kw):
    p = subprocess.run([str(w) for w in words], capture_output=True, encoding='utf-8', **kw)
    assert p.returncode == 0, f'{words}\n{p.stdout[-2000:]}\n{p.stderr[-2000:]}'
    return p.stdout

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from the source distribution as a release is"
    out = tmp_path_factory.mktemp('dist')
    source = out/'source'
    files = do('git', '-C', ROOT, 'ls-files', '--cached', '--others', '--exclude-standard').split('\n')
    for f in filter(None, files):
        if f.startswith('data/results/') and not f.endswith('paper.json') or not (ROOT/f).is_file(): continue
        (source/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, source/f)
    do(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, source)
    return next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A function that runs `a3t` of the wheel in a folder. Its packages: those of this environment, or with
    A3T_FRESH=1 everything from the package index, as CI does"""
    home = tmp_path_factory.mktemp('venv')
    do(sys.executable, '-m', 'venv', *([] if os.environ.get('A3T_FRESH') else ['--without-pip']), home)
    if os.environ.get('A3T_FRESH'): do(home/'bin'/'python', '-m', 'pip', 'install', '-q', f'{wheel}[train]')
    else:
        pip = (sys.executable, '-m', 'pip', '--python', home/'bin'/'python')
        do(*pip, 'install', '-q', '--no-deps', '--no-index', wheel)
        site, = home.glob('lib/python3*/site-packages')
        (site/'others.pth').write_text(str(Path(pytest.__file__).parent.parent) + '\n') # without its editable installs
    outside = {k:v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'A3T_DATA', 'A3T_NOTEBOOKS')}
    env = {**outside, 'OMP_NUM_THREADS':'1', 'PATH':f"{home/'bin'}:{os.environ['PATH']}",
           'JUPYTER_PATH':str(Path(sys.prefix)/'share'/'jupyter')}
    return lambda at, *words, **more: do(*words, cwd=at, env={**env, **more})

def test_the_wheel_brings_what_the_code_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    stages = {f'a3t/project/nbs/stages/{p.name}' for p in (ROOT/'nbs'/'stages').glob('*.ipynb')}
    assert stages | {'a3t/project/settings.ini', 'a3t/project/data/results/paper.json'} <= names
    data = {f'a3t/{p.relative_to(ROOT/"a3t").as_posix()}' for p in (ROOT/'a3t').rglob('*.*')
            if p.suffix in ('.json', '.txt', '.css', '.html', '.xz', '.pddl', '.twl2')}
    assert data and data <= names and zipfile.ZipFile(wheel).read('a3t/project/settings.ini') == (
        ROOT/'settings.ini').read_bytes()

def test_it_is_the_wheel_that_runs(installed, tmp_path):
    where = installed(tmp_path, 'python', '-c', 'import a3t; print(*a3t.__path__)')
    assert 'site-packages' in where and not where.startswith(str(ROOT))

def test_commands_work_in_an_empty_folder(installed, tmp_path):
    assert 'smoke' in installed(tmp_path, 'a3t', 'presets')
    assert 'all' in installed(tmp_path, 'a3t', 'doctor', 'smoke')
    assert 'report: data/runs/smoke/report.html' in installed(tmp_path, 'a3t', 'run', 'smoke')
    assert {p.name for p in tmp_path.iterdir()} == {'data'}
    score = installed(tmp_path, 'a3t', 'evaluate', '--adapter', 'data/runs/smoke/round_01/adapter', '--preset', 'smoke')
    assert re.search(r'score: data/evaluations/\w+\.json', score)

def test_panels_and_episodes_are_checked_in_an_empty_folder(installed, tmp_path):
    games = ['--games', 'generated']
    assert 'panel: p.json' in installed(tmp_path, 'a3t', 'panel', 'unseen', *games, '--n', '1', '--json', 'p.json')
    task, = json.loads((tmp_path/'p.json').read_text())['games']
    (tmp_path/'x.jsonl').write_text(json.dumps(dict(task=task, actions=['look'], won=False)))
    assert 'every claim holds' in installed(tmp_path, 'a3t', 'verify', 'x.jsonl', *games, '--panel', 'p.json')

def test_data_goes_where_the_variable_points(installed, tmp_path):
    (tmp_path/'here').mkdir()
    code = "from a3t.models.weights import model_folder; print(model_folder('tiny'))"
    installed(tmp_path/'here', 'python', '-c', code, A3T_DATA=str(tmp_path/'there'))
    assert (tmp_path/'there').is_dir() and not list((tmp_path/'here').iterdir())

def test_ones_own_presets_and_environment(installed, tmp_path):
    (tmp_path/'settings.ini').write_text(INI)
    (tmp_path/'worlds').mkdir()
    (tmp_path/'worlds'/'house.py').write_text('from a3t.envs.base import ToyHouse\n\n'
                                              'def load(max_steps:int=10)->ToyHouse: return ToyHouse(max_steps)\n')
    assert "mine             a world of one's own" in installed(tmp_path, 'a3t', 'presets')
    assert 'report: data/runs/mine/report.html' in installed(tmp_path, 'a3t', 'run', 'mine')
    assert '../worlds/house.py' in (tmp_path/'data/runs/mine/round_00/explore.done.json').read_text()

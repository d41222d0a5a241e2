"Paths, locales, homes, code that changed, and what an operating system refuses: one line, and nothing is lost"
import ast, errno, hashlib, json, os, resource, shlex, shutil, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
import a3t
from a3t.cli import COMMANDS, main
from a3t.core import A3TError, content_hash
from a3t.files import (
    REMEDIES, data_folder, make_folder, project_path, project_root, read_json, read_text, write_atomic, write_json)
from a3t.runs.executor import _failed, execute, refusal, run_stage
from a3t.runs.manifests import (
    code_hashes, lock, notebook_imports, read_manifest, scripted_modules, set_aside, stage_state, unlock)
from a3t.runs.folders import open_run, plan, run_folder
from conftest import ROOT, one_line_error
from test_runs import by_hand, fake, fakes, gone, notebook  # noqa: F401 (fake is a fixture)

ODD = '{draft} {run} %41#\'"\n ü–☃$(x) [1]*?;&=\\'

# -- paths

@pytest.mark.parametrize('odd', [ODD, '{run}', '{', '-dash', 'x'*200], ids=['all', 'run', 'brace', 'dash', 'long'])
def test_a_stage_runs_in_any_folder(fake, monkeypatch, odd):
    monkeypatch.setenv('A3T_DATA', str(fake.path/odd))
    run, _ = open_run(run_folder('a'), 'smoke', {'rounds':1})
    run_stage(run, 'baselines')
    assert run == fake.path/odd/'runs'/'a' and read_manifest(run,
        'baselines') and (run/'baselines'/'baselines.ipynb').exists()
    assert sorted(p.name for p in fake.path.iterdir() if p.name not in ('data', 'settings.ini', 'fakes')) == [odd]

def test_a_path_that_is_not_utf8_is_refused(project):
    for name in ('A3T_DATA', 'A3T_NOTEBOOKS'):
        project.env[name] = os.fsdecode(os.fsencode(project.path) + b'/b\xffd')
        one_line_error(project.a3t('run', 'smoke'), 'b\\udcffd is not valid UTF-8: rename it')
        del project.env[name]
    one_line_error(project.a3t('evaluate', '--adapter', 'b\udcffd'), 'b\\udcffd')

@pytest.mark.parametrize('path,leads',
                         [('data/runs/x', 'DATA/runs/x'), ('data', 'DATA'), ('games/x', 'ROOT/games/x'),
                          ('/x/y', '/x/y'),
                                        ('./data/x', 'DATA/x'), ('../x', 'ROOT/../x')])
@pytest.mark.parametrize('told', [None, '/store', 'sub/store', '~/store'])
def test_one_rule_for_paths(fake, monkeypatch, told, path, leads):
    "Wherever the process stands, with and without A3T_DATA"
    (fake.path/'nbs'/'stages').mkdir(parents=True)
    monkeypatch.setenv('HOME', '/home/somebody')
    monkeypatch.setenv('A3T_DATA', told) if told else monkeypatch.delenv('A3T_DATA', raising=False)
    data = {None:fake.path/'data', '/store':Path('/store'), 'sub/store':fake.path/'sub'/'store',
            '~/store':Path('/home/somebody/store')}[told]
    for here in (fake.path, fake.path/'nbs'/'stages'):
        monkeypatch.chdir(here)
        assert data_folder() == data
        assert project_path(path) == Path(leads.replace('DATA', str(data)).replace('ROOT', str(fake.path)))

def test_papermill_and_the_command_mean_the_same_run(fake, monkeypatch):
    for store in (None, fake.path/'store'):
        if store: monkeypatch.setenv('A3T_DATA', str(store))
        run, _ = open_run('data/runs/mine', 'smoke')
        assert run == run_folder('mine') == (store or fake.path/'data')/'runs'/'mine' and (run/'run.json').exists()
        outside = store and not run.is_relative_to(fake.path)
        with pytest.raises(A3TError, match=f'delete {run if outside else run.relative_to(fake.path)}'):
            open_run('data/runs/mine', 'smoke', {'seed':1})

def test_outside_a_project_the_checkout_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('A3T_DATA', raising=False)
    assert project_root() == ROOT and data_folder() == ROOT/'data'
    (tmp_path/'mine.xz').touch()
    assert project_path('mine.xz') == tmp_path/'mine.xz' # as the shell completes it
    assert main(['presets']) == 0 and not (tmp_path/'data').exists()

def test_generated_games_lie_in_the_data_folder(tmp_path, monkeypatch):
    from a3t.envs.alfworld.generator import games_file
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('A3T_DATA', str(tmp_path/'store'))
    file = games_file(seed=1, train=6, seen=6, unseen=6)
    assert file.parent == tmp_path/'store'/'games' and [p.name for p in tmp_path.iterdir()] == ['store']
    from a3t.envs.alfworld import games_source
    assert games_source('data/games/'+file.name) == file == project_path(f'data/games/{file.name}')

# -- text

def calls_without_encoding(tree):
    "Calls that read or write text in the encoding of the locale"
    for n in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, 'id', '')
        given = {k.arg:k.value for k in n.keywords}
        mode = given.get('mode', n.args[1] if len(n.args) > 1 else ast.Constant('r'))
        text = isinstance(n.func, ast.Name) and name == 'open' or name in ('fdopen', 'NamedTemporaryFile')
        text = text and not (isinstance(mode, ast.Constant) and 'b' in str(mode.value)) or name in ('read_text',
                                                                                                    'write_text')
        text = text and not (name == 'read_text' and isinstance(n.func, ast.Name)) # `a3t.files.read_text`
        text = text or name in ('run', 'Popen', 'check_output', 'check_call') and {'text',
                                                                                   'universal_newlines'} & given.keys()
        if text and 'encoding' not in given: yield n

def sources():
    "(where, code) of the package, the notebooks and what tests share"
    for p in [*ROOT.glob('a3t/**/*.py'),
              *(ROOT/'tests'/f'{n}.py' for n in ('conftest', 'browser', 'check_notebooks', 'scale_webshop_search'))]:
        yield p.name, p.read_text(encoding='utf-8')
    for p in ROOT.glob('nbs/**/*.ipynb'):
        for c in read_json(p)['cells']:
            if c['cell_type'] == 'code':
                yield f"{p.name} {c['id']}", '\n'.join('pass' if l.startswith(('%', '!')) else l
                                                       for l in ''.join(c['source']).split('\n'))

def test_every_text_file_has_its_encoding():
    assert [ast.unparse(n) for n in calls_without_encoding(ast.parse("open(f)\nopen(f, "
                                                                     "'rb')\np.read_text()\nrun(text=True)\nopen(f, "
                                                                     "encoding='utf-8')"))] == ['open(f)',
                                                                     'p.read_text()', 'run(text=True)']
    assert [f'{where}: {ast.unparse(n)}' for where,code in sources()
            for n in calls_without_encoding(ast.parse(code))] == []

@pytest.mark.parametrize('env,said', [
    (dict(PYTHONIOENCODING='ascii'), b'round 0 - x -> 1-2 \\u2665 \\udcff\n'),
    (dict(PYTHONIOENCODING='latin-1'), b'round 0 \xb7 x -> 1-2 \\u2665 \\udcff\n'),
    (dict(PYTHONIOENCODING='cp437'), b'round 0 \xfa x -> 1-2 \\u2665 \\udcff\n'),
    (dict(PYTHONIOENCODING='utf-8'), 'round 0 · x → 1–2 ♥ \\udcff\n'.encode()),
    (dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0'), b'round 0 - x -> 1-2 \\u2665 \\udcff\n')])
def test_printing_never_fails(env, said):
    code = (r"import sys; from a3t.files import never_fail_output; never_fail_output(); t = 'round 0 \xb7 x \u2192 "
            r"1\u20132 \u2665 \udcff'; print(t); print(t, file=sys.stderr)")
    p = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH':str(ROOT), **env},
                       capture_output=True)
    assert (p.returncode, p.stdout, p.stderr) == (0, said, said)

def test_the_command_in_a_locale_without_utf8(fake):
    fakes(fake.path/'fakes', baselines="from a3t.core import A3TError\nopen(stage.work/'x', 'w').write('·')\nraise "
                                       "A3TError('the games · are missing – fetch them')")
    fake.env |= dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    p = fake.a3t('run', 'smoke', '--name', 'a')
    one_line_error(p, 'the games - are missing - fetch them')
    assert ('baselines - stopped after' in p.stdout
            and (fake.run('a')/'baselines'/'baselines.work'/'x').read_bytes() == '·'.encode())

def test_a_byte_order_mark_is_no_text(fake):
    from a3t.envs.alfworld.games import _read_game, mini_games
    from a3t.envs.webshop.catalogue import read_file, read_items
    ini = fake.path/'settings.ini'
    ini.write_bytes(b'\xef\xbb\xbf' + ini.read_bytes())
    assert fake.a3t('presets').stdout.startswith('smoke') and open_run('data/runs/a', 'smoke')[1]['seed'] == 0
    file = fake.path/'x.json'
    file.write_text('[{"a": "ü"}]', encoding='utf-8-sig')
    assert read_json(file) == read_file(file) == list(read_items(file)) == [{'a':'ü'}] and read_text(file)[0] == '['
    task, game = next(iter(mini_games().items()))
    file.write_text(json.dumps(game.data), encoding='utf-8-sig')
    assert _read_game(file, task) == game

def test_half_a_character_is_kept(tmp_path):
    "A server may cut an emoji in two"
    write_json(tmp_path/'x.json', ['\ud83d', 'ü\udcff'])
    assert read_json(tmp_path/'x.json') == ['\ud83d',
                                            'ü\udcff'] and len(content_hash('\ud83d')) == 64 and content_hash(
                                            'ü') == hashlib.sha256('ü'.encode()).hexdigest()

def test_other_encodings_are_said(project):
    (project.path/'settings.ini').write_text('[DEFAULT]\nseed = 0\n', encoding='utf-16')
    one_line_error(project.a3t('run', 'smoke'),
                   'settings.ini is not UTF-8 text (invalid start byte at byte 0): save it as UTF-8')

# -- a home folder

@pytest.mark.parametrize('home', ['/proc/nohome', '/dev/null', '', None])
def test_alfworld_needs_no_home(home):
    code = ("import os\nfrom a3t.envs.alfworld.engine import AlfWorld\nfrom a3t.envs.alfworld.games import "
            "mini_games\ne = AlfWorld(mini_games())\nprint(e.reset(options={'task':list(mini_games())[0]})[0][:30], "
            "os.environ.get('ALFWORLD_DATA'))")
    env = {k:v for k,v in os.environ.items() if k not in ('HOME', 'ALFWORLD_DATA', 'XDG_CACHE_HOME')} | ({}
        if home is None else {'HOME':home}) | {'PYTHONPATH':str(ROOT)}
    p = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, encoding='utf-8')
    assert p.stdout.strip() == 'You are in the middle of a roo None', p.stderr

def test_a_stage_leaves_nothing_in_the_home(tmp_path, monkeypatch):
    home = tmp_path/'home'
    home.mkdir()
    (tmp_path/'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path/'tmp'))
    for k in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR', 'XDG_CACHE_HOME', 'XDG_DATA_HOME', 'XDG_CONFIG_HOME'):
        monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('HOME', str(home))
    nb = notebook(tmp_path/'a.ipynb', 'x = 1', 'import matplotlib.pyplot as plt, transformers\nx')
    execute(nb, tmp_path/'out.ipynb', {})
    assert {p.relative_to(home).parts[:2] for p in home.rglob('*') if p.is_file()} <= {('.cache', 'matplotlib'),
                                                                                       ('.config', 'matplotlib')}
    for k in ('HOME', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'XDG_DATA_HOME', 'MPLCONFIGDIR', 'HF_HOME', 'TORCH_HOME',
              'TMPDIR', 'IPYTHONDIR', 'JUPYTER_CONFIG_DIR',
              'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR'): monkeypatch.setenv(k, '/proc/nohome')
    execute(nb, tmp_path/'out.ipynb', {})
    assert nbformat.read(tmp_path/'out.ipynb', 4).cells[-1].outputs[-1].data['text/plain'] == '1'
    assert not list((tmp_path/'tmp').iterdir()) # nor there

# -- code that changed

@pytest.fixture
def package(fake, monkeypatch):
    "A copy of the package that tests may edit, and a finished run; returns a function that edits a module"
    shutil.copytree(ROOT/'a3t', fake.path/'a3t', ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setattr(a3t, '__path__', [str(fake.path/'a3t')])
    by_hand(open_run('data/runs/a', 'smoke', {'rounds':1})[0], 5)
    def edit(name, old, new):
        file = fake.path/'a3t'/name
        text = read_text(file)
        assert old in text
        file.write_text(text.replace(old, new), encoding='utf-8')
    return edit

def states(): return {s:stage_state(run_folder('a'), *s) for s in plan(1)}

def test_another_environment_makes_a_stage_again(package):
    assert set(states().values()) == {'done'}
    package('envs/base.py', "You see", "You notice")
    assert set(states().values()) == {'its code changed: envs/base.py'}

def test_prose_of_the_code_does_not_count(package):
    package('files.py', '"The folder of the project"', '"Where the project lies"')
    package('core.py', '"""Trajectories,', '"""Episodes,')
    package('envs/base.py', '# task ids', '# ids of tasks')
    package('core.py', "__all__ = ['COLOURS', ", "__all__ = [")
    assert set(states().values()) == {'done'}

def test_code_that_a_stage_does_not_run_does_not_count(package, fake):
    package('envs/webshop/browser.py', 'import ', 'import json, ')
    package('envs/alfworld/games.py', "NO_GOAL = 'UNKNOWN", "NO_GOAL = 'ANOTHER") # the run plays the toy house
    assert set(states().values()) == {'done'}

def test_what_the_real_stages_import():
    used = {s:code_hashes(notebook_imports(ROOT/'nbs'/'stages'/f'{s}.ipynb'))
            for s in ('explore', 'train', 'evaluate', 'report')}
    assert {'opening/explore.py', 'compose.py', 'agents.py', 'models/local.py', 'models/api.py', 'prompts.py',
            'core.py', 'files.py'} <= used['explore'].keys()
    assert {'train.py', 'losses.py', 'data.py'} <= used['train'].keys() and not {'train.py',
                                                                                 'losses.py'} & used['explore'].keys()
    assert 'runs/report.py' in used['report'] and not any('runs/report.py' in used[s]
                                                          for s in ('explore', 'train', 'evaluate'))
    assert code_hashes(['a3t.envs.webshop']).keys() > {'envs/webshop/__init__.py', 'envs/webshop/shop.py',
                                                       'envs/webshop/search.py'}

@pytest.mark.parametrize('world, files', [
    ('a3t.envs.webshop', {'envs/webshop/scripts.py', 'envs/webshop/baselines.py'}),
    ('a3t.envs.cooking', {'envs/cooking/script.py'})])
def test_scripted_agents_are_code_of_the_baselines(world, files):
    assert files <= code_hashes(scripted_modules(world)).keys()

@pytest.mark.parametrize('world', ['a3t.envs.alfworld', '', 'no_such_world'])
def test_worlds_without_scripted_agents(world): assert scripted_modules(world) == []

def test_a_data_file_of_the_package_is_code(package, fake):
    file, name = fake.path/'a3t'/'envs'/'alfworld'/'alfworld_games.tsv.xz', 'envs/alfworld/alfworld_games.tsv.xz'
    before = code_hashes(['a3t.envs.alfworld'])
    file.write_bytes(file.read_bytes() + b'x')
    after = code_hashes(['a3t.envs.alfworld'])
    assert before[name] != after[name] and {**before, name:''} == {**after,
        name:''} and name not in code_hashes(['a3t.envs.base'])

def test_a_manifest_without_code_is_not_trusted(package):
    file = run_folder('a')/'round_00'/'explore.done.json'
    write_json(file, {k:v for k,v in read_json(file).items() if k != 'code'})
    assert states()['explore', 0] == 'its manifest lacks the hashes of its code'

# -- what the operating system refuses

def no(code): # stands for a call that is refused
    def call(*args, **kw): raise OSError(code, os.strerror(code))
    return call

@pytest.mark.parametrize('code', list(REMEDIES), ids=lambda c: errno.errorcode[c])
def test_every_refusal_is_one_line(tmp_path, monkeypatch, code):
    "A file that is there stays as it was, and nothing is left beside it"
    write_json(tmp_path/'x.json', 1)
    for call in ('tempfile.mkstemp', 'os.replace'):
        with monkeypatch.context() as m, pytest.raises(A3TError) as e:
            m.setattr(f'a3t.files.{call}', no(code))
            write_json(tmp_path/'x.json', 2)
        assert (str(e.value) == f"cannot write {tmp_path/'x.json'}: {os.strerror(code)}; {REMEDIES[code]}, then start "
                                f"again: finished work is kept")
    assert [p.name for p in tmp_path.iterdir()] == ['x.json'] and read_json(tmp_path/'x.json') == 1
    with monkeypatch.context() as m, pytest.raises(A3TError, match=r'^cannot write .*x: '):
        m.setattr('a3t.files.tempfile.mkdtemp', no(code))
        make_folder(tmp_path/'x', lambda tmp: None)

@pytest.mark.parametrize('call,codes',
                         [('fsync', (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)),
                          ('chmod', (errno.EPERM, errno.EOPNOTSUPP))])
def test_a_file_system_without_it_is_fine(tmp_path, monkeypatch, call, codes):
    for code in codes:
        with monkeypatch.context() as m:
            m.setattr(f'a3t.files.os.{call}', no(code))
            write_json(tmp_path/'x.json', code)
        assert read_json(tmp_path/'x.json') == code
    monkeypatch.setattr('a3t.files.os.fsync', no(errno.EIO))
    with pytest.raises(A3TError, match='Input/output error; check the disk'): write_json(tmp_path/'x.json', 0)

def test_real_refusals(tmp_path):
    (tmp_path/'file').touch()
    (tmp_path/'folder').mkdir()
    (tmp_path/'loop').symlink_to('loop')
    for path,why in (('file/x/y', 'Not a directory'), ('file/x', 'File exists|Not a directory'),
                     ('folder', 'Is a directory'), ('loop/x/y', 'Too many levels'), ('y'*300, 'File name too long'),
                     ('/proc/x', 'No such file'), ('/dev/null/x/y', 'Not a directory')):
        with pytest.raises(A3TError, match=why): write_atomic(tmp_path/path, 'x')
        if path != '/proc/x':
            with pytest.raises(A3TError, match=f'{why}|is missing'): read_text(tmp_path/path)
    write_atomic(tmp_path/('y'*255), 'x')
    assert read_text(tmp_path/('y'*255)) == 'x'

@pytest.mark.parametrize('args',
                         [('evaluate', '--adapter', 'y'*300), ('report', 'y'*300), ('evaluate', '--adapter', 'file/x'),
                          ('evaluate', '--adapter', 'loop'),
                                  ('shop', '--replay', 'y'*300), ('run', 'smoke', '--name', 'y'*300),
                                  ('parity', 'y'*300)])
def test_paths_that_cannot_be_on_the_command_line(fake, capsys, args):
    (fake.path/'file').touch()
    (fake.path/'loop').symlink_to('loop')
    assert main(list(args)) == 1
    err = capsys.readouterr().err
    assert err.startswith('a3t: ') and err.count('\n') == 1

def test_too_many_open_files(tmp_path):
    was = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, was[1]))
    try:
        with pytest.raises(A3TError, match=r'Too many open files; raise the limit of open files \(`ulimit -n 4096`\)'):
            write_json(tmp_path/'x', 1)
        with pytest.raises(A3TError, match='Too many open files'): lock(tmp_path/'l', 'it')
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, was)

@pytest.mark.parametrize('code', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_no_locks(tmp_path, monkeypatch, code):
    with monkeypatch.context() as m, pytest.raises(A3TError,
                                                   match='cannot lock .*l: .*set A3T_DATA to a folder on a local disk'):
        m.setattr('a3t.runs.manifests.fcntl.flock', no(code))
        lock(tmp_path/'l', 'it')
    lock(tmp_path/'l', 'it')
    unlock(tmp_path/'l')

def test_old_results_on_another_disk(fake, monkeypatch):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    by_hand(run, 2)
    monkeypatch.setattr('os.rename', no(errno.EXDEV))
    to = set_aside(run, 'explore', 0)
    assert (to/'trajectories'/'x.json').exists() and not (run/'round_00'/'trajectories').exists()

@pytest.mark.parametrize('name,text,says', [
    ('OSError', "[Errno 28] No space left on device: '/d/x'", 'cannot use /d/x: No space left on device; free some '
                                                              'space'),
    ('PermissionError', "[Errno 13] Permission denied: '/d/x'", 'cannot use /d/x: Permission denied; fix the '
                                                                'permissions'),
    ('BlockingIOError', '[Errno 11] Resource temporarily unavailable',
     'it: Resource temporarily unavailable; end other programs'),
    ('OSError', '[Errno 12] Cannot allocate memory', 'lower slots'), ('MemoryError', '', 'Cannot allocate memory'),
    ('ImportError', 'libgomp.so.1: failed to map segment from shared object', 'lower slots'),
    ('RuntimeError', "can't start new thread", 'raise the limit of processes'),
    ('RuntimeError', '[enforce fail] DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 8 bytes',
     'lower slots'),
    ('RuntimeError', 'PytorchStreamWriter failed writing file data/0: file write failed', 'check the disk'),
    ('SafetensorError', 'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on '
                        'device" })', 'free some space')])
def test_refusals_inside_a_stage(name, text, says):
    assert says in str(refusal(name, text, 'it')) and '\n' not in str(refusal(name, text, 'it'))
    assert refusal('ValueError', 'a wrong value') is None and refusal('KeyError', "'[Errno 28]'") is None

def test_a_library_that_ends_the_kernel(tmp_path):
    (tmp_path/'explore.log').write_text('Too many open files (src/ip_resolver.cpp:542)\n', encoding='utf-8')
    e = _failed(RuntimeError('Kernel died before replying to kernel_info'), 'explore', tmp_path/'explore.ipynb')
    assert isinstance(e, A3TError) and 'what explore needs: Too many open files; raise the limit' in str(e)

@pytest.mark.parametrize('error', [MemoryError(), ImportError('libXau.so.6: failed to map segment from shared object')])
def test_no_memory_for_the_command_itself(monkeypatch, capsys, error):
    def presets(): raise error
    monkeypatch.setitem(COMMANDS, 'presets', presets)
    assert main(['presets']) == 1
    assert (capsys.readouterr().err == 'a3t: Cannot allocate memory; end other programs, or lower slots, batch_size '
                                       'and micro_tokens, then start again: finished work is kept\n')

def test_a_killed_command_leaves_no_temporary_folder(fake):
    tmp, there = fake.path/'tmp', fake.run('a')/'baselines'/'baselines.work'/'there'
    tmp.mkdir()
    fake.env['TMPDIR'] = str(tmp)
    fakes(fake.path/'fakes', baselines="(stage.work/'there').touch()\nimport time; time.sleep(60)")
    p, end = fake.start('run', 'smoke', '--name', 'a'), time.monotonic() + 60
    while not there.exists() and time.monotonic() < end: time.sleep(.1)
    assert len(list(tmp.iterdir())) == 2 # of the kernel, and of the server that forked it
    p.kill(); p.communicate()
    while list(tmp.iterdir()) and time.monotonic() < end: time.sleep(.1)
    assert not list(tmp.iterdir())

def test_no_port_for_the_kernel_and_no_temporary_folder(tmp_path, monkeypatch):
    e = _failed(OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)), 'explore', tmp_path/'explore.ipynb')
    assert isinstance(e, A3TError) and 'bring the loopback network up' in str(e)
    monkeypatch.setattr('a3t.runs.executor.tempfile.mkdtemp', lambda **kw: (_
        for _ in ()).throw(FileNotFoundError(errno.ENOENT, 'No usable temporary directory found in []')))
    with pytest.raises(A3TError, match='set TMPDIR to a folder that can be written'):
        execute(notebook(tmp_path/'a.ipynb', 'x = 1'), tmp_path/'out.ipynb', {})

def test_a_stage_that_the_system_refuses_is_one_line(fake):
    fakes(fake.path/'fakes', baselines="import errno, os\nraise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "
                                       "'/d/x')")
    one_line_error(fake.a3t('run', 'smoke', '--name', 'a'),
                   'cannot use /d/x: Disk quota exceeded; free some space, or ask for a larger quota')

def test_a_folder_that_was_deleted(project):
    (project.path/'gone').mkdir()
    p = subprocess.run(['bash', '-c', 'cd gone; rmdir ../gone; exec "$0" -c "import sys; from a3t.cli import main; '
                                      'sys.exit(main())" presets', sys.executable],
                       cwd=project.path, env=project.env, capture_output=True, encoding='utf-8')
    one_line_error(p, 'the current folder was deleted: change to another one (cd)')

@pytest.mark.parametrize('to,status,said',
                         [('>/dev/full', 1, 'No space left on device; free some space'), ('>&-', 0, ''),
                          ('2>&-', 0, ''), ('>&- 2>&- <&-', 0, '')])
def test_output_that_nobody_takes(project, to, status, said):
    p = subprocess.run(['bash', '-c', f'"$0" -c "import sys; from a3t.cli import main; sys.exit(main())" presets {to}',
                        sys.executable],
                       cwd=project.path, env=project.env, capture_output=True, encoding='utf-8')
    assert p.returncode == status and said in p.stderr and p.stderr.count('\n') == bool(said)

def test_without_pidfd_the_parent_is_polled(tmp_path):
    "The process that follows ends soon after its parent"
    follow = ("import os\nos.setpgid(0, 0)\ndel os.pidfd_open\nos.environ['A3T_EXECUTOR'] = str(os.getppid())\nfrom "
              "a3t.runs.stage import follow_executor\nfollow_executor()\nprint(os.getpid(), flush=True)\nimport time; "
              "time.sleep(60)")
    code = (f"import subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', {follow!r}], "
            f"stdout=subprocess.PIPE)\nprint(int(p.stdout.readline()), flush=True)\ntime.sleep(60)")
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE,
                         env={**os.environ, 'PYTHONPATH':str(ROOT)})
    pid = int(p.stdout.readline())
    p.kill(); p.wait()
    assert gone(pid)

# -- make setup

PYTHON = '''#!/bin/bash
case "$*" in
  --version) echo "Python 3.11.7" ;;
  -m\\ venv*) [ -z "$NO_VENV" ] || { echo "Error: [Errno 28] No space left on device: '.venv'"; exit 1; }
    rm -rf .venv; mkdir -p .venv/bin; touch .venv/pyvenv.cfg; cp "$FAKE" .venv/bin/python ;;
  -m\\ pip*)
    echo "$* user=$PIP_USER target=$PIP_TARGET home=$PYTHONHOME path=$PYTHONPATH index=$PIP_INDEX_URL" >>calls
    eval "$PIP_SAYS" ;;
  -c*find_spec*) exit ${LACKS:-0} ;;
  -c*) ;;
esac
'''

@pytest.fixture
def setup(tmp_path):
    """A function that runs `make setup` in a copy of what it needs, with a Python that does nothing; it returns what
    the command said"""
    place = tmp_path/'a project'
    place.mkdir()
    for f in ('Makefile', 'setup.sh', 'requirements.lock', 'pyproject.toml'): shutil.copy(ROOT/f, place/f)
    fake = tmp_path/'bin'/'python3.11'
    fake.parent.mkdir()
    fake.write_text(PYTHON, encoding='utf-8')
    fake.chmod(0o755)
    def run(says='echo Collecting x', at=place, **env):
        # of `make test`
        outside = {k: v for k, v in os.environ.items() if k not in ('MAKELEVEL', 'MAKEFLAGS', 'MFLAGS')}
        env = {**outside, 'PATH':f"{fake.parent}:{os.environ['PATH']}", 'FAKE':str(fake), 'PIP_SAYS':says, **env}
        return subprocess.run(['make', '-s', 'setup'], cwd=at, env=env, capture_output=True, encoding='utf-8')
    run.place = place
    return run

def setup_error(p):
    "The one line that says why"
    lines = [l for l in p.stderr.strip().split('\n') if not l.startswith('make: ***')]
    assert p.returncode and len(lines) == 1 and lines[0].startswith('setup: '), (p.stdout, p.stderr)
    return lines[0]

def test_setup_shows_what_it_does(setup):
    p = setup('for i in $(seq 60); do echo "Collecting p$i"; done')
    packages = sum(l[:1].isalpha() for l in read_text(ROOT/'requirements.lock').split('\n'))
    assert (p.returncode, p.stderr) == (0, '') and p.stdout.split('\n') == [
        'making .venv with Python 3.11.7',
        "1 of 3: torch, with what it needs on this machine (the longest step, some minutes)", '  50 packages',
        f'2 of 3: the {packages} packages of requirements.lock', '  50 packages', '3 of 3: a3t itself', '  50 packages',
        'done: .venv is complete', '']
    calls = read_text(setup.place/'calls').strip().split('\n')
    assert [c.split('progress-bar off ')[1].split(' user=')[0] for c in calls] == [
        f"-c requirements.lock "
        f"{next(l for l in read_text(ROOT/'requirements.lock').split() if l.startswith('torch=='))}",
        '--no-deps -r requirements.lock', '--no-deps -e .']
    assert setup().stdout == '' # there is nothing to do

def test_setup_shows_progress_on_a_terminal(setup):
    pytest.importorskip('pty')
    code = (f"import os, pty, "
            f"sys\nos.chdir({str(setup.place)!r})\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(['make', '-s', "
            f"'setup'])))")
    env = {**os.environ, 'PATH':f"{setup.place.parent/'bin'}:{os.environ['PATH']}",
           'FAKE':str(setup.place.parent/'bin'/'python3.11'), 'PIP_SAYS':'echo "Downloading torch (900 MB)"',
           'TERM':'xterm'}
    p = subprocess.run([sys.executable, '-c', code], env=env, stdin=subprocess.DEVNULL, capture_output=True)
    assert '\r\x1b[K  0 packages · Downloading torch (900 MB)'.encode() in p.stdout, p.stdout + p.stderr

def test_setup_keeps_its_own_place(setup):
    "Settings that send packages elsewhere, or break Python, do not count; the index does"
    p = setup(PIP_USER='1', PIP_TARGET='/x', PIP_REQUIRE_VIRTUALENV='1', PYTHONHOME='/x', PYTHONPATH='/x',
              PIP_INDEX_URL='https://index.example')
    assert p.returncode == 0
    assert all(c.endswith('user=0 target= home= path= index=https://index.example')
               for c in read_text(setup.place/'calls').strip().split('\n'))

@pytest.mark.parametrize('says,env,contains', [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", {},
     'the disk is full: free about 8 GB'),
    ("File contains no section headers.\nfile: '/etc/pip.conf', line: 1\n'[glob", {},
     "configuration (File contains no section headers. file: '/etc/pip.conf', line: 1 '[glob): fix that"),
    ("An error occurred during configuration: option timeout: invalid floating-point value: 'abc'", {},
     "option timeout: invalid floating-point value: 'abc'): fix that file or variable"),
    ('Configuration file contains invalid UTF-8 characters in /etc/pip.conf.', {},
     'invalid UTF-8 characters in /etc/pip.conf.): fix that'),
    ("ERROR: Can not perform a '--user' install. User site-packages are not visible in this virtualenv.", {},
     'the settings of pip name another place'),
    ("WARNING: Retrying: NewConnectionError: Temporary failure in name resolution\nERROR: No matching distribution "
     "found for x", {}, 'the package index cannot be reached'),
    ('ERROR: No matching distribution found for torch==2.9.1', {'PIP_NO_INDEX':'1'},
     'pip may not use a package index (PIP_NO_INDEX'),
    ('ERROR: No matching distribution found for torch==2.9.1', {}, 'no package for this machine and Python (No '
                                                                   'matching distribution found for torch==2.9.1)'),
    ("error: command 'gcc' failed: No such file or directory", {}, 'install a C compiler'),
    ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'", {},
     'cannot be written: fix the permissions'),
    ('ERROR: something new', {}, 'pip failed (ERROR: something new): read .venv/setup.log')])
def test_setup_says_why_it_failed(setup, says, env, contains):
    said = setup_error(setup(f"printf '%s\\n' {shlex.quote(says)}; exit 1", **env))
    assert contains in said and 'run `make setup` again' in said
    assert not (setup.place/'.venv'/'.complete').exists() and setup().returncode == 0 # it goes on from there

def test_setup_where_it_cannot_begin(setup, tmp_path):
    assert 'a colon in its name' in setup_error(setup(at=shutil.copytree(setup.place, tmp_path/'a:b')))
    assert 'Python 3.11, 3.12 or 3.13' in setup_error(setup(PATH='/nowhere:' + str(without_python(tmp_path))))
    assert 'cannot make .venv (Error: [Errno 28] No space' in setup_error(setup(NO_VENV='1'))
    assert 'pip reports success, but .venv lacks the packages' in setup_error(setup(LACKS='1'))

def without_python(tmp_path):
    "A folder with the programs that the set-up calls, and no Python"
    bin = tmp_path/'tools'
    bin.mkdir()
    for t in ('bash', 'make', 'grep', 'tee', 'tput', 'tr', 'tail', 'ls', 'touch', 'dirname', 'cat', 'sed'):
        if path := shutil.which(t): (bin/t).symlink_to(path)
    return bin

def test_setup_of_a_half_made_environment(setup):
    (setup.place/'.venv').write_text('', encoding='utf-8')
    assert '.venv is a file' in setup_error(setup())
    (setup.place/'.venv').unlink()
    (setup.place/'.venv'/'notes').mkdir(parents=True)
    assert '.venv holds something else' in setup_error(setup())
    (setup.place/'.venv'/'notes').rmdir()
    assert setup().returncode == 0
    (setup.place/'.venv'/'.complete').unlink()
    # of a Python that is gone
    (setup.place/'.venv'/'bin'/'python').write_text('#!/bin/bash\nexit 1\n', encoding='utf-8')
    p = setup()
    assert p.returncode == 0 and p.stdout.startswith('rebuilding .venv, which is not complete\n')

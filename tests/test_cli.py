"The command line: it answers at once, guesses what was meant, and whatever is wrong is one line"
import io, os, random, re, signal, subprocess, sys, tempfile
from contextlib import redirect_stdout
import pytest
import a3t
from a3t.cli import COMMANDS, command_parser, main
from a3t.core import A3TError
from a3t.files import check_output
from a3t.settings import preset_names, read_settings
from conftest import A3T, ROOT

# -- start-up

HEAVY = 'torch pandas matplotlib transformers pyarrow scipy gymnasium textworld numpy'.split()
LIGHT = [('--help',), ('--version',), ('presets',), ('settings', 'cpu-webshop', '--set', 'seed=1'), ('presset',),
         ('run', 'smok', '--nam', 'x'),
         *((name, '--help') for name in COMMANDS)]

def test_light_commands_import_nothing_heavy(project):
    "All in one process, since none may import it"
    code = f"""if True:
        import sys
        from a3t.cli import main
        for words in {LIGHT!r}:
            main(list(words))
            print('HEAVY', *(m for m in {HEAVY!r} if m in sys.modules))"""
    p = subprocess.run([sys.executable, '-c', code], cwd=project.path, env=project.env, capture_output=True, text=True)
    assert p.returncode == 0 and [l for l in p.stdout.splitlines()
                                  if l.startswith('HEAVY')] == ['HEAVY']*len(LIGHT), p.stderr

# -- help and guesses

def output(*words):
    with redirect_stdout(io.StringIO()) as f: status = main(list(words))
    return status, f.getvalue()

def test_version(): assert output('--version') == (0, f'a3t {a3t.__version__}\n')

@pytest.mark.parametrize('name', COMMANDS)
def test_help_says_all(name):
    "Each argument has an example and says its default, and types are not shown"
    status, text = output(name, '--help')
    assert status == 0 and COMMANDS[name].__doc__.splitlines()[0] in ' '.join(text.split()) and '(str)' not in text
    for a in command_parser(COMMANDS[name])._actions:
        if a.dest == 'help': continue
        assert 'e.g. ' in a.help, f'{name} {a.dest} has no example'
        assert a.required or 'default' in a.help or '0: all' in a.help, f'{name} {a.dest} does not say its default'

def test_every_command_is_listed():
    status, text = output('--help')
    assert status == 0 and all(f'\n  {n} ' in text for n in COMMANDS)

@pytest.mark.parametrize('words,contains', [
    (('pressets',), "unknown command 'pressets' (did you mean presets?): choose from run"),
    (('Run',), 'did you mean run?'), (('xyz',), 'choose from run'), (('--versoin',), 'did you mean --version?'),
    (('help',), 'did you mean --help?'),
    (('run', 'smoke', '--nmae', 'x'), "'--nmae' is not an argument of a3t run (did you mean --name?)"),
    (('run', 'smoke', 'x'), "'x' is not an argument"),
    (('run', '--prest=smoke', 'smoke'), 'is not an argument'),
    (('evaluate', '--adaptor=x', '--adapter', 'x'), 'did you mean --adapter?'),
    (('run',), 'required: preset'),
    (('shop', '--port', 'http'), "invalid int value: 'http'"),
    (('run', 'smoke', '--set'), 'expected at least one argument'),
    (('settings', 'cpu', '--nam', 'x'), "'--nam' is not an argument")])
def test_words_that_are_not_known(words, contains, capsys):
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('a3t: ') and contains in lines[0], lines

@pytest.mark.parametrize('words,contains', [
    (('run', 'webshop-cpu'), 'did you mean cpu-webshop?'), (('settings', 'Smoke'), 'did you mean smoke?'),
    (('doctor', 'cpu_alfworld'), 'did you mean cpu-alfworld?'),
    (('run', 'smoke', '--set', 'round=1'), 'did you mean rounds?'),
    (('run', 'smoke', '--set', 'opening=smapled'), 'did you mean sampled?'),
    (('shop', '--port', '99999'), '--port 99999 is not a port'),
    (('shop', '--port', '-1'), '--port -1 is not a port'),
    (('parity', 'x', '--n', '-2'), '--n -2 is negative'),
    (('run', 'smoke', '--set', 'a\nb'), 'write key=value'),
    (('doctor', '--set', 'seed=1', 'smoke'),
     "--set 'smoke': write key=value, and put all other arguments before --set"),
    (('evaluate',), 'pass one agent: --agent'),
    (('evaluate', '--agent', 'random', '--exemplar', 'x'), 'choose yes or no'),
    (('evaluate', '--adapter', 'a\nb'), 'is not a LoRA adapter')])
def test_values_that_are_wrong(words, contains, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(list(words)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('a3t: ') and contains in lines[0], lines

def test_no_command_shows_the_usage(capsys):
    assert main([]) == 2 and capsys.readouterr().err.startswith('usage: a3t COMMAND')

def test_presets_are_named_alike():
    names = preset_names(read_settings(ROOT/'settings.ini'))
    assert all(re.fullmatch(r'smoke|small-model|(cpu|paper)(-[a-z]+)*', name) for name in names)

# -- where output goes, and how it ends

@pytest.mark.parametrize('words', [('presets',), ('--help',), ('run', '--help'), ('settings', 'cpu')])
def test_a_full_disk_behind_the_output(project, words):
    with open('/dev/full', 'w') as full:
        p = subprocess.run([*A3T, *words], cwd=project.path, env=project.env, stdout=full, stderr=subprocess.PIPE,
                           text=True)
    assert (p.returncode == 1 and p.stderr.count('\n') == 1 and p.stderr.startswith('a3t: ')
            and 'No space left' in p.stderr)

def test_closed_output_is_no_traceback(project):
    p = subprocess.run(['sh', '-c', '"$@" >&-', 'sh', *A3T, 'presets'], cwd=project.path, env=project.env,
                       stderr=subprocess.PIPE, text=True)
    assert 'Traceback' not in p.stderr and p.returncode in (0, 1)

def test_a_home_folder_that_is_a_loop(project):
    (project.path/'loop').symlink_to('loop')
    project.env['HOME'] = str(project.path/'loop')
    p = project.a3t('doctor', 'smoke')  # where libraries look into it, at least in one line
    assert 'Traceback' not in p.stderr and p.returncode in (0,
        1) and (p.returncode == 0 or 'BAD' in p.stdout or p.stderr.startswith('a3t: the system refuses'))

def test_an_interrupt_is_130(monkeypatch, capsys):
    def stop(): os.kill(os.getpid(), signal.SIGTERM)
    for name,resumes in dict(presets='', run='; the same command resumes from here').items():
        monkeypatch.setitem(COMMANDS, name, stop)
        assert main([name]) == 130 and capsys.readouterr().err == f'\na3t: stopped{resumes}\n'

@pytest.mark.parametrize('words', (
    ['verify', 'e.jsonl', '--games', 'nowhere', '--json'], ['panel', 'seen', '--games', 'nowhere', '--json'],
    ['parity', 'nowhere', '--json'], ['view', 'nowhere', '--html'], ['evaluate', '--agent', 'random', '--json'],
    ['export', 'e.jsonl', '--to'], ['export', '--weights', 'nowhere', '--to'], ['import', 'e.jsonl', '--to']))
def test_an_output_that_cannot_be_written_is_told_before_the_work(words, project, monkeypatch, capsys):
    monkeypatch.chdir(project.path)
    (project.path/'e.jsonl').write_text('no episode')
    if words[0] == 'evaluate': words = [words[0], '--preset', 'smoke', *words[1:]]
    assert main([*words, '/proc/x.html']) == 1
    got = capsys.readouterr()
    assert got.err.startswith('a3t: cannot write /proc/x.html: ') and got.err.count('\n') == 1 and not got.out

def test_an_output_is_a_file(tmp_path):
    assert check_output(tmp_path/'new'/'x.json') and not list(tmp_path.iterdir())
    for path in ('/dev/null', '/dev/null/x', tmp_path/('x'*300)):
        with pytest.raises(A3TError, match='not a regular file|cannot write'): check_output(path)

# -- 300 random command lines in broken surroundings

CASES = int(os.environ.get('A3T_FUZZ_CASES', 300))
LONG = 'x'*300
PATHS = ('{t}/new', '{t}/file', '{t}/dangling', '{t}/loop', '{t}/ä {b} %s', '/proc/none', '/dev/null', '/dev/full',
         '/dev/null/x', '{t}/'+LONG, '~nobody/x',
         '', '.', 'relative', '/proc/self/mem', '{t}/new\nline')
RIGHT = ('seed=3', 'rounds=1e2', 'model=tiny', 'p=0', 'device=cpu', 'eval_tasks=0', 'launch=',
         'server={}' if 'server' in read_settings(ROOT/'settings.ini')['DEFAULT'] else 'slots=2')
FALSE = ('sead=1', 'p=7', 'opening=smapled', 'rounds=', 'rounds=nan', 'seed', '=3', 'device=cuda:77', 'device=gpu',
         "eval_splits=['x']", 'slots=0',
         'generator=[', 'environment=../x', 'schedule=lineer', 'launch=nope', 'quantize=int8', 'learning_rate=-1',
         'ray=x', 'model=', 'rounds=' + '('*999,
         'Seed=1', 'observations=masked', '--', 'p="1"', 'target_modules=[]', 'model=\udcff', '%s={0}')
SMALL = ('smoke', 'paper-alfworld', 'cpu-alfworld', 'paper-webshop')
NONE = ('smok', '', ' ', 'default', '../smoke', '[smoke]', LONG, 'smoke\n', '\udcff', '%(x)s')
FILES = ('{t}/empty', '{t}/half', '{t}/broken', '{t}/list', '{t}/file', 'nowhere', '', LONG, '/dev/null', '/proc/none',
         '{t}/loop')

def make_place(t):
    "Folders and files that are broken in many ways"
    (t/'file').write_text('x')
    (t/'dangling').symlink_to(t/'nowhere')
    (t/'loop').symlink_to(t/'loop')
    for name in ('empty', 'half', 'broken', 'list', 'none', 'below'): (t/name).mkdir()
    (t/'half'/'adapter_config.json').write_text('{}')
    for name,config in dict(broken='{"base_model_name_or_path": "tiny"}', list='[1]').items():
        (t/name/'adapter_config.json').write_text(config)
        (t/name/'adapter_model.safetensors').write_bytes(b'\0'*100)
    (t/'notebooks').mkdir()
    for name in ('baselines', 'report'): (t/'notebooks'/f'{name}.ipynb').write_text('{"cells": []}')
    text = (ROOT/'settings.ini').read_text()
    inis = dict(good=text, bom='\ufeff' + text, binary=bytes(range(256)), empty='', section='[smoke]\nrounds = 1\n',
                text='hello', doubled=text + '\n[smoke]\nrounds = 1\n',
                strange=text.replace('rounds = 4', 'rounds = four'), lacking=text.replace('\npatience = 0\n', '\n', 1),
                nul=text + '\0', latin='# \xe4\n'.encode('latin-1'))
    for name,ini in inis.items():
        (t/'cwd'/name).mkdir(parents=True)
        (t/'cwd'/name/'settings.ini').write_bytes(ini if isinstance(ini, bytes) else ini.encode())
    for name,target in dict(dangling=t/'nowhere', loop='settings.ini', device='/dev/null').items():
        (t/'cwd'/name).mkdir()
        (t/'cwd'/name/'settings.ini').symlink_to(target)
    (t/'cwd'/'folder'/'settings.ini').mkdir(parents=True)
    for name in ('none', 'gone'): (t/'cwd'/name).mkdir()

UNUSABLE = ('binary', 'empty', 'text', 'doubled', 'nul', 'latin', 'dangling', 'loop', 'device', 'folder')
GOOD_INI = ('good', 'bom')

def surroundings(rng):
    "Environment variables and the folder to stand in; are they all right?"
    env = {k:rng.choice(PATHS) for k in ('A3T_DATA', 'HOME', 'TMPDIR', 'ALFWORLD_DATA', 'WEBSHOP_DATA')
           if rng.random() < .4}
    cwd = 'good' if rng.random() < .5 else rng.choice(('bom', 'binary', 'empty', 'section', 'text', 'doubled',
                                                       'strange', 'lacking', 'nul', 'latin', 'dangling', 'loop',
                                                       'device', 'folder', 'none', 'gone'))
    return env, cwd

def command_line(rng):
    "Words of a command, and 'usage', 'wrong' or '' for what is the matter with them"
    name = rng.choice(('presets', 'settings', 'settings', 'run', 'run', 'doctor', 'report', 'evaluate', 'shop',
                       '--help', '--version', 'none'))
    if name == 'none': return [rng.choice(('', 'presset', '-x', '--', 'settings.ini', LONG, 'RUN', '\udcff'))], 'usage'
    if rng.random() < .08: return [name, '--no-such-option'], '' if name.startswith('--') else 'usage'
    if rng.random() < .08 and not name.startswith('--'): return [name, '--help'], ''
    false, preset = False, []
    if name in ('settings', 'run', 'doctor', 'evaluate'):
        false = rng.random() < .4
        preset = [rng.choice(NONE if false else SMALL)]
    words = {'evaluate':['evaluate', '--adapter', rng.choice(FILES), '--preset', *preset],
             'report':['report', rng.choice(('never', '..', LONG, '', 'a b', 'a/b', '\udcff'))],
             'shop':['shop', '--port', rng.choice(('-1', '70000', '99999999999'))]}.get(name, [name, *preset])
    false |= name in ('evaluate', 'report', 'shop')
    if name == 'run': words += ['--name', rng.choice(('a', 'b.c', '../x', '', LONG, 'a b', 'ä'))]
    if preset and rng.random() < .6:
        sets = [rng.choice(RIGHT if rng.random() < .5 else FALSE) for _ in range(rng.randint(1, 3))]
        words += ['--set', *sets]
        false |= any(s in FALSE for s in sets)
        if '--' in sets: return words, 'any'
    return words, 'wrong' if false else ''

def answer(words, env, cwd, t, out, err):
    "The exit status of a command line in its surroundings, in a process of its own"
    if pid := os.fork(): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 99
    try:
        signal.alarm(300)
        for n,path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY|os.O_CREAT|os.O_TRUNC), n)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, 'wb', 0), errors=e, write_through=True)
                                  for n,e in ((1, 'surrogateescape'), (2, 'backslashreplace')))
        tempfile.tempdir = None
        for k,v in env.items(): os.environ[k] = v.replace('{t}', str(t)).replace('{b}', '{run}')
        os.environ['A3T_NOTEBOOKS'] = str(t/'notebooks')
        os.chdir(t/'cwd'/cwd)
        if cwd == 'gone': os.rmdir(t/'cwd'/cwd)
        status = main([w.replace('{t}', str(t)) for w in words])
    except BaseException:
        import traceback
        traceback.print_exc()
    finally: os._exit(status)

def check_answer(words, fault, cwd, status, out, err):
    "Does the exit status fit, and is what went wrong one line?"
    assert 'Traceback' not in err + out and status in (0, 1, 2)
    lines = err.splitlines()
    if status == 0: assert not lines and out
    elif words[0] == 'doctor' and 'BAD' in out: assert status == 1 and not lines
    elif words == ['']: assert status == 2 and err.startswith('usage: ')
    else: assert len(lines) == 1 and lines[0].startswith('a3t: '), lines
    if fault == 'usage': assert status == 2
    if fault == 'wrong': assert status == 1
    if fault == '' and words[0] in ('--help', '--version') or words[1:] == ['--help']: assert status == 0
    if fault == '' and words[0] in ('presets', 'settings') and cwd in GOOD_INI: assert status == 0
    if fault == '' and words[0] in ('presets', 'settings') and words[1:] != ['--help'] and cwd in UNUSABLE:
        assert status == 1

def test_random_command_lines(tmp_path, monkeypatch):
    make_place(tmp_path)
    for k in ('A3T_DATA', 'ALFWORLD_DATA', 'WEBSHOP_DATA'): monkeypatch.delenv(k, raising=False)
    rng, seen = random.Random(int(os.environ.get('A3T_FUZZ_SEED', 0))), []
    for n in range(CASES):
        words, fault = command_line(rng)
        env, cwd = surroundings(rng)
        (tmp_path/'cwd'/'gone').mkdir(exist_ok=True)
        status = answer(words, env, cwd, tmp_path, tmp_path/'out', tmp_path/'err')
        out, err = ((tmp_path/f).read_text(errors='replace') for f in ('out', 'err'))
        try: check_answer(words, fault, cwd, status, out, err)
        except AssertionError as e:
            raise AssertionError(
                f'case {n}: {words} {env} in {cwd} ended with {status}\n{out[-1500:]}\n{err[-3000:]}') from e
        seen.append((words[0], status))
    assert {s for _,s in seen} == {0, 1, 2} and {('settings', 0), ('settings', 1), ('run', 1), ('doctor', 1),
                                                 ('evaluate', 1)} <= set(seen)

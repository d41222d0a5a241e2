"Manifests, locks, kernels and signals, on stages that do next to nothing"
import os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from a3t.accumulate import read
from a3t.core import A3TError
from a3t.envs.base import ToyHouse
from a3t.files import project_root, read_json, write_json
from a3t.models.usage import Meter
from a3t.runs.kernel import ForkServer
from a3t.runs.executor import clock, StageError, Watch, check_parameters, execute, progress_line, run_stage
from a3t.runs.folders import ONCE, OUTPUTS, needs, open_run, plan, run_folder
from a3t.runs.manifests import lock, notebook_hash, stage_state, unlock
from a3t.runs.cluster import LoadedThere, _loaded
from a3t.runs.stage import open_stage
from conftest import Project, ROOT, one_line_error

PARAMS = "run = 'data/runs/toy'\nround = 0\npreset = ''\noverrides = {}"

def notebook(path, *cells, tags=('parameters',)):
    nb = new_notebook(cells=[new_code_cell(c) for c in cells],
                      metadata={'kernelspec':{'name':'python3', 'display_name':'python3', 'language':'python'}})
    nb.cells[0].metadata['tags'] = list(tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path

def fakes(folder, **extra):
    "Notebooks in the frame of the real ones; `extra` puts code before the writing of a stage's results"
    for name,outs in OUTPUTS.items():
        write = '\n'.join(f"(stage.path({o!r})/'x.txt').parent.mkdir(exist_ok=True); "
                          f"(stage.path({o!r})/'x.txt').write_text(f'{{stage.seed()}}')" if '.' not in o else
                          f"stage.path({o!r}).write_text('{{}}')" for o in outs)
        notebook(folder/f'{name}.ipynb', PARAMS,
                 f"from a3t.runs.stage import open_stage\nstage = open_stage({name!r}, run, round, preset, overrides)",
                 extra.get(name, 'pass'), write, 'stage.done(tasks=2)')
    return folder

@pytest.fixture
def fake(tmp_path, monkeypatch):
    "A project with fake stages, and this process in it"
    p = Project(tmp_path, fakes(tmp_path/'fakes'))
    for k in ('A3T_NOTEBOOKS', 'PYTHONPATH'): monkeypatch.setenv(k, p.env[k])
    monkeypatch.setenv('A3T_EXECUTOR', '0')  # no bars
    monkeypatch.chdir(tmp_path)
    return p

def by_hand(run, upto):
    "Complete stages without a kernel"
    for s in plan(read_json(run/'run.json')['settings']['rounds'])[:upto]:
        stage = open_stage(s[0], run, s[1])
        for o in OUTPUTS[s[0]]:
            if '.' in o: stage.path(o).write_text('{}')
            else: write_json(stage.path(o)/'x.json', [s])
        stage.done()

# -- runs

def test_other_settings_are_refused_by_name(fake):
    run, S = open_run('data/runs/a', 'smoke', {'seed':3})
    assert open_run('data/runs/a') == open_run('data/runs/a', 'smoke', {'seed':3}) == (run, S)
    with pytest.raises(A3TError, match=r'seed = 0 \(was 3\).*--name.*delete data/runs/a'):
        open_run('data/runs/a', 'smoke')
    with pytest.raises(A3TError, match='environment = .alfworld. .was .base..*train_tasks'):
        open_run('data/runs/a', 'paper-alfworld')

def test_a_finished_run_goes_on_for_more_rounds(fake):
    run, S = open_run('data/runs/a', 'smoke', {'rounds':1, 'seed':3})
    by_hand(run, 5)
    assert open_run('data/runs/a', 'smoke', {'rounds':2, 'seed':3}) == (run,
                                                                        S | {'rounds':2}) == open_run('data/runs/a')
    # the report is made again when there is more to report
    assert [stage_state(run, *s) for s in plan(2)] == ['done']*4 + ['new']*3 + ['done']
    by_hand(run, 5)
    assert stage_state(run, 'report', 0) == 'what it reads changed'
    by_hand(run, 8)
    assert {stage_state(run, *s) for s in plan(2)} == {'done'}
    assert open_run('data/runs/a', 'smoke', {'rounds':1, 'seed':3})[1]['rounds'] == 2  # the first command goes on too
    with pytest.raises(A3TError, match=r'settings: seed = 0 \(was 3\);'): open_run('data/runs/a', 'smoke', {'rounds':3})
    assert open_run('data/runs/a')[1]['rounds'] == 2

def test_tuples_are_the_lists_that_were_written(fake):
    more = {'generator':{'objects':(6, 10)}}
    run, S = open_run('data/runs/a', 'smoke', more)
    assert open_run('data/runs/a', 'smoke', more)[1]['generator'] == {'objects':[6, 10]}

def test_a_changed_settings_file_is_noticed(fake):
    open_run('data/runs/a', 'smoke')
    ini = fake.path/'settings.ini'
    ini.write_text(ini.read_text().replace('\nmax_steps = 6\n', '\nmax_steps = 7\n'))
    with pytest.raises(A3TError, match=r'max_steps = 7 \(was 6\)'): open_run('data/runs/a', 'smoke')

def test_a_broken_run_json_is_said(fake):
    run, _ = open_run('data/runs/a', 'smoke')
    (run/'run.json').write_text('{"preset": "smo')
    with pytest.raises(A3TError, match='not valid JSON'): open_run('data/runs/a')

@pytest.mark.parametrize('name', ['', '..', '../x', 'a/b', '-x', '.hidden', 'a b'])
def test_run_names(name):
    with pytest.raises(A3TError, match='cannot name a run'): run_folder(name)

def test_project_root_is_found_from_inside(fake, monkeypatch):
    (fake.path/'nbs'/'stages').mkdir(parents=True)
    monkeypatch.chdir(fake.path/'nbs'/'stages')
    assert project_root() == fake.path

# -- stages and manifests

def test_needs_come_earlier():
    order = plan(3)
    for i,s in enumerate(order): assert all(n in order[:i] for n in needs(*s, rounds=3))

def test_all_done_by_hand(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':2})
    by_hand(run, 8)
    assert {stage_state(run, *s) for s in plan(2)} == {'done'}

@pytest.mark.parametrize('change,state', [
    (lambda f: f['evaluate_nb'].write_text(f['evaluate_nb'].read_text().replace('tasks=2', 'tasks=3')),
     'its notebook changed'),
    (lambda f: (f['run']/'round_00'/'scores.json').write_text('[]'), 'its results were changed or removed'),
    (lambda f: (f['run']/'round_00'/'scores.json').unlink(), 'its results were changed or removed'),
    (lambda f: write_json(f['run']/'round_00'/'train.done.json',
                          read_json(f['run']/'round_00'/'train.done.json') | {'outputs':{'adapter':'else'}}),
                          'what it reads changed')])
def test_what_makes_a_stage_stale(fake, change, state):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    by_hand(run, 4)
    change(dict(run=run, evaluate_nb=fake.path/'fakes'/'evaluate.ipynb'))
    assert stage_state(run, 'evaluate', 0) == state

def test_prose_and_outputs_do_not_count(tmp_path):
    p = notebook(tmp_path/'a.ipynb', PARAMS, 'x = 1')
    before, nb = notebook_hash(p), nbformat.read(p, 4)
    nb.cells.insert(0, new_markdown_cell('# Title'))
    nb.cells[-1].outputs, nb.cells[-1].execution_count = [nbformat.v4.new_output('stream', text='hello')], 7
    nbformat.write(nb, p)
    assert notebook_hash(p) == before
    nb.cells[1].metadata['tags'] = []
    nbformat.write(nb, p)
    assert notebook_hash(p) != before

def test_old_results_are_moved_not_mixed(fake, capsys, monkeypatch):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    by_hand(run, 3)
    stage = open_stage('evaluate', run)
    write_json(stage.work/'half.json', {})
    write_json(run/'round_00'/'train.done.json',
               read_json(run/'round_00'/'train.done.json') | {'outputs':{'adapter':'else'}})
    unlock(run/'round_00'/'.evaluate.lock')
    with pytest.raises(A3TError): open_stage('train', run, 5)
    monkeypatch.setattr('a3t.runs.stage.run_needed', lambda *a: None)  # it would repair the manifest spoilt above
    stage = open_stage('evaluate', run)
    assert 'are now in old/1' in capsys.readouterr().out
    assert (run/'old'/'1'/'round_00'/'evaluate.work'/'half.json').exists() and not list(stage.work.iterdir())
    unlock(run/'round_00'/'.evaluate.lock')

def test_a_begun_stage_finds_its_work_and_its_time(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    stage = open_stage('baselines', run)
    write_json(stage.work/'half.json', {})
    write_json(run/'progress.json',
               dict(stage='baselines', round=0, label='x', done=1, total=2, note='', left=None, seconds=100., pid=1))
    stage = open_stage('baselines', run)
    assert (stage.work/'half.json').exists() and 100 <= stage.seconds < 101
    for o in OUTPUTS['baselines']: (stage.path(o).mkdir if '.' not in o else stage.path(o).touch)()
    stage.done()
    assert not stage.work.exists()
    assert open_stage('baselines', run).seconds >= 100 # nothing of it is repeated
    unlock(run/'baselines'/'.baselines.lock')

def test_a_complete_stage_that_is_opened_again_repeats_nothing(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    by_hand(run, 1)
    made = []
    def explore():
        stage = open_stage('explore', run)
        def work(tasks):
            made.extend(tasks)
            Meter(stage.work/'usage', 'model').add(dict(prompt_tokens=70))
            return [replace(ToyHouse().exemplar, task=t) for t in tasks]
        stage.keep('trial', ['a', 'b'], work)
        assert stage.attempts() == {'trial a':1, 'trial b':1}
        return stage.done()
    first, again = explore(), explore()
    assert made == ['a', 'b'] and len(read(run/'round_00'/'trajectories')) == 2
    assert first['outputs'] == again['outputs'] and first['seconds'] <= again['seconds']
    assert again['facts'] == first['facts'] and first['facts']['usage']['model']['prompt_tokens'] == 70

def test_an_open_kernel_drops_the_models_of_an_earlier_stage(fake):
    "An adapter may have been trained again since"
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    assert LoadedThere('tiny', 'none', 'cpu').tokenizer and _loaded.cache_info().currsize
    open_stage('baselines', run)
    assert not _loaded.cache_info().currsize
    unlock(run/'baselines'/'.baselines.lock')

def test_done_refuses_missing_results(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    stage = open_stage('baselines', run)
    with pytest.raises(A3TError, match='did not write episodes, scores.json'): stage.done()
    with pytest.raises(ValueError): stage.path('adapter')
    unlock(run/'baselines'/'.baselines.lock')

def test_no_such_round(fake):
    open_run('data/runs/a', 'smoke', {'rounds':2})
    with pytest.raises(A3TError, match='no round 2.*rounds=3'): open_stage('explore', 'data/runs/a', 2)

def test_panels_are_held(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    stage = open_stage('baselines', run)
    env = stage.environment()
    assert stage.panel(env, 'seen', 5) == stage.panel(env, 'seen', 5) and env.max_steps == stage.settings['max_steps']
    panel, tasks, manifest = stage.panel(env, 'seen', 5), env.tasks, env.manifest
    env.manifest = lambda tasks: {**manifest(tasks), list(panel)[2]:'0'*64}
    with pytest.raises(A3TError, match=f'changed: {list(panel)[2]};'): stage.panel(env, 'seen', 5)
    env.manifest, env.tasks = manifest, lambda split: [t for t in tasks(split) if t != list(panel)[1]]
    with pytest.raises(A3TError, match=f'missing: {list(panel)[1]};'): stage.panel(env, 'seen', 5)
    env.tasks = lambda split: [f'{split}/book-desk-00', *tasks(split)]
    with pytest.raises(A3TError, match='are not those'): stage.panel(env, 'seen', 5)
    unlock(run/'baselines'/'.baselines.lock')

def test_a_run_that_trains_on_validation_tasks_is_refused(fake):
    "Also one that an earlier version began"
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    stage = open_stage('baselines', run)
    env = stage.environment()
    env.splits = (*env.splits, 'valid')
    tasks, bad = env.tasks, env.tasks('train')[3]
    env.tasks = lambda split: [bad] if split == 'valid' else tasks(split)
    with pytest.raises(A3TError, match=f'trains on tasks of the split valid .{bad}.: start a new run'):
        stage.panel(env, 'train')
    assert not (run/'panels'/'train.json').exists()
    env.tasks = tasks
    env.splits, panel = env.splits[:3], stage.panel(env, 'train')
    env.splits = (*env.splits, 'valid')
    env.tasks = lambda split: [bad] if split == 'valid' else [t for t in tasks(split) if t != bad]
    with pytest.raises(A3TError, match='trains on tasks of the split valid'): stage.panel(env, 'train')
    assert len(panel) and stage.panel(env, 'seen')
    unlock(run/'baselines'/'.baselines.lock')

# -- locks

def test_lock_is_seen_by_others_and_ends_with_its_process(tmp_path):
    code = (f"import sys, time; from a3t.runs.manifests import lock; lock({str(tmp_path/'l')!r}, 'it'); print('held', "
            f"flush=True); time.sleep(60)")
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True,
                         env={**os.environ, 'PYTHONPATH':str(ROOT)})
    assert p.stdout.readline() == 'held\n'
    with pytest.raises(A3TError, match='another process is working on it'): lock(tmp_path/'l', 'it')
    p.kill(); p.wait()
    lock(tmp_path/'l', 'it', wait=5)
    lock(tmp_path/'l', 'it')  # again in the same process is no matter
    unlock(tmp_path/'l'); unlock(tmp_path/'l')

def test_unlock_counts_although_a_worker_lives(tmp_path):
    lock(tmp_path/'l', 'it')
    pid = os.fork()
    if pid == 0: time.sleep(60); os._exit(0)
    try:
        unlock(tmp_path/'l')
        code = f"from a3t.runs.manifests import lock; lock({str(tmp_path/'l')!r}, 'it')"
        assert subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH':str(ROOT)}).returncode == 0
    finally: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)

# -- progress

@pytest.mark.parametrize('seconds,want', [
    (0, '0 s'), (.4, '0 s'), (.6, '1 s'), (59, '59 s'), (59.4, '59 s'), (59.6, '1:00'), (60, '1:00'), (3599, '59:59'),
    (3599.7, '1:00:00'),
    (3600, '1:00:00'), (86_399, '23:59:59'), (86_399.6, '1 d 00:00:00'), (86_400, '1 d 00:00:00'),
    (90_061, '1 d 01:01:01'), (10_000_000, '115 d 17:46:40'),
    (-.3, '0 s'), (-90, '0 s'), (float('nan'), '?'), (float('inf'), '?'), (-float('inf'), '?'), (None, '?')])
def test_clock(seconds, want): assert clock(seconds) == want

def test_progress_lines_of_days_and_without_an_estimate():
    at = dict(stage='train', round=0, label='steps', done=30, total=60, note='', left=90_061.)
    assert progress_line('train', 0, at,
                         86_400) == 'round 0 · train · steps 30/60 · 1 d 00:00:00 · about 1 d 01:01:01 left'
    for unknown in (None, float('nan'), float('inf')):
        assert progress_line('train', 0, at | dict(left=unknown), 5) == 'round 0 · train · steps 30/60 · 5 s'

def test_progress_lines(capsys, tmp_path):
    at = dict(stage='train', round=0, label='steps', done=30, total=60, note='loss 0.31', left=3700.)
    assert progress_line('train', 0, at, 65) == 'round 0 · train · steps 30/60 loss 0.31 · 1:05 · about 1:01:40 left'
    assert progress_line('train', 1, at, 5) == 'round 1 · train · 5 s'
    assert progress_line('report', 0, None, 5) == 'report · 5 s'
    write_json(tmp_path/'progress.json', at)
    with Watch(tmp_path, 'train', 0, every=.1): time.sleep(1.2)
    lines = capsys.readouterr().out.strip().split('\n')
    assert 'steps 30/60' in lines[0] and lines[-1].startswith('round 0 · train · done in')

def test_every_bar_reaches_the_progress_file(fake, capfd):
    from tqdm import tqdm
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    open_stage('baselines', run)
    seen = set()
    with tqdm(total=1000, desc='games') as bar:
        for _ in range(1000):
            bar.update()
            seen.add(read_json(run/'progress.json')['done'])
    at = read_json(run/'progress.json')
    assert len(seen) < 20 and (at['label'], at['done'], at['total'], at['stage']) == ('games', 1000, 1000, 'baselines')
    for i in tqdm(range(100), desc='steps'):
        time.sleep(.02)
        if i == 80: assert 0 < read_json(run/'progress.json')['left'] < 10
    unlock(run/'baselines'/'.baselines.lock')
    assert 'games' not in capfd.readouterr().err  # under the command nothing else is written

# -- notebooks and kernels

@pytest.mark.parametrize('name', list(OUTPUTS))
def test_round_notebooks_keep_their_parameters(name):
    "A lost tag would make papermill inject above the defaults: all parameters ignored, silently"
    check_parameters(ROOT/'nbs'/'stages'/f'{name}.ipynb',
                     dict(run='', preset='', overrides={}, **({} if name in ONCE else {'round':0})))
    nb = nbformat.read(ROOT/'nbs'/'stages'/f'{name}.ipynb', 4)
    tagged = [i for i,c in enumerate(nb.cells) if 'parameters' in c.metadata.get('tags', [])]
    first_code = next(i for i,c in enumerate(nb.cells) if c.cell_type == 'code')
    assert tagged == [first_code]
    assert not any('#| eval: false' in c.source or 'nbdev_export' in c.source
                   for c in nb.cells), 'papermill ignores directives'

def test_lost_tag_and_unknown_parameter_are_errors(tmp_path):
    with pytest.raises(A3TError, match='has 0 cells tagged'):
        check_parameters(notebook(tmp_path/'a.ipynb', 'x = 1', tags=()), {})
    with pytest.raises(A3TError, match='no parameter y: it has x'):
        execute(notebook(tmp_path/'b.ipynb', 'x = 1'), tmp_path/'out.ipynb', {'y':1})

def test_the_kernel_is_this_python_whatever_is_installed(tmp_path, monkeypatch):
    spec = tmp_path/'jupyter'/'kernels'/'python3'
    spec.mkdir(parents=True)
    write_json(spec/'kernel.json',
               dict(argv=['/bin/false', '{connection_file}'], display_name='other', language='python'))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    from jupyter_client.kernelspec import KernelSpecManager
    assert KernelSpecManager().get_kernel_spec('python3').argv[0] == '/bin/false'  # what would be started otherwise
    execute(notebook(tmp_path/'a.ipynb', 'x = 1', 'import sys; print(sys.executable, x)'), tmp_path/'out.ipynb',
            {'x':5})
    assert nbformat.read(tmp_path/'out.ipynb', 4).cells[-1].outputs[0].text.split() == [sys.executable, '5']

def test_a_failing_stage_keeps_its_traceback(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    fakes(fake.path/'fakes', baselines='1/0')
    with pytest.raises(StageError,
                       match=r'ZeroDivisionError.*\n.*baselines failed; everything is in .*baselines.ipynb'):
        run_stage(run, 'baselines')
    nb = nbformat.read(run/'baselines'/'baselines.ipynb', 4)
    assert any(o.get('ename') == 'ZeroDivisionError' for c in nb.cells for o in c.get('outputs', []))
    assert stage_state(run, 'baselines') == 'new'

def test_a_notebook_without_done_is_said(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    notebook(fake.path/'fakes'/'baselines.ipynb', PARAMS)
    with pytest.raises(A3TError, match='call it in the last cell'): run_stage(run, 'baselines')

def test_a_stage_alone_runs_what_it_needs(fake):
    run, _ = open_run('data/runs/a', 'smoke', {'rounds':1})
    run_stage(run, 'evaluate', 0)
    assert {s:stage_state(run, *s) for s in plan(1)[:-1]} == {('baselines', 0):'new', ('explore', 0):'done',
                                                              ('train', 0):'done', ('evaluate', 0):'done'}

# -- the command

def gone(pid, seconds=10):
    "Has a process ended?"
    for _ in range(int(seconds*20)):
        try:
            if Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z': return True
        except (FileNotFoundError, ProcessLookupError): return True
        time.sleep(.05)
    return False

def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists(): assert time.monotonic() < end, f'{path} never came'; time.sleep(.02)

SLEEP = ("import multiprocessing, time\nw = multiprocessing.get_context('fork').Process(target=time.sleep, "
         "args=(600,)); w.start()\n(stage.work/'pids').write_text(f'{__import__(\"os\").getpid()} "
         "{w.pid}')\ntime.sleep(600)")

@pytest.mark.parametrize('sig,status', [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_no_orphans(fake, sig, status):
    "However the command ends, its kernel and the kernel's workers end too"
    fakes(fake.path/'fakes', baselines=SLEEP)
    # tests in the background ignore it
    p = fake.start('run', 'smoke', '--name', 'a', preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    pids = fake.run('a')/'baselines'/'baselines.work'/'pids'
    wait_for(pids)
    time.sleep(.2)
    p.send_signal(sig)
    out, err = p.communicate(timeout=30)
    assert p.returncode == status
    if sig != signal.SIGKILL: assert err.strip() == 'a3t: stopped; the same command resumes from here'
    assert all(gone(int(pid)) for pid in pids.read_text().split())

def test_one_command_at_a_time(fake):
    fakes(fake.path/'fakes', baselines=SLEEP)
    p = fake.start('run', 'smoke', '--name', 'a')
    try:
        wait_for(fake.run('a')/'baselines'/'baselines.work'/'pids')
        one_line_error(fake.a3t('run', 'smoke', '--name', 'a'), 'another process is working on the run a')
    finally: p.terminate(); p.communicate(timeout=30)

def test_an_error_for_the_user_is_one_line(fake):
    fakes(fake.path/'fakes', baselines="from a3t.core import A3TError\nraise A3TError('the games are missing: fetch "
                                       "them')")
    one_line_error(fake.a3t('run', 'smoke', '--name', 'a'), 'the games are missing: fetch them')

def test_an_error_of_ours_names_the_notebook(fake):
    fakes(fake.path/'fakes', baselines="{}['key']")
    p = fake.a3t('run', 'smoke', '--name', 'a')
    assert (p.returncode == 1 and "KeyError: 'key'" in p.stderr
            and p.stderr.strip().endswith(str(fake.run('a')/'baselines'/'baselines.ipynb')))
    assert len(p.stderr.strip().split('\n')) <= 8
    fakes(fake.path/'fakes', baselines="import os; os.kill(os.getpid(), 9)")
    p = fake.a3t('run', 'smoke', '--name', 'b')
    assert p.returncode == 1 and 'its process died' in p.stderr and 'Traceback' not in p.stderr

def test_a_forked_kernel_ends_in_every_way_that_jupyter_knows():
    with ForkServer(['json']) as server:
        out = Path(server.folder)/'log'
        for end, status in (('terminate', -signal.SIGTERM), ('kill', -signal.SIGKILL)):
            forked = server.fork(cwd='.', env=dict(os.environ), log=str(out),
                                 arguments=['-f', str(out.with_suffix('.json'))])
            assert forked.poll() is None
            getattr(forked, end)()
            assert forked.wait() == forked.poll() == status
            getattr(forked, end)() # it has ended: nothing happens
            forked.send_signal(signal.SIGINT)

"The command from outside: bad input is one line, nothing is lost, and a killed run goes on"
import json, lzma, re, resource, signal, time
import pytest
from a3t.accumulate import read
from a3t.files import read_json
from a3t.runs.folders import plan, stage_folder
from a3t.runs.manifests import read_manifest
from conftest import Project, ROOT, one_line_error
from test_report import without_seconds

QUICK = ('rounds=1', 'train_tasks=3', 'eval_tasks=3', 'explore_budget=20')

# -- bad input

@pytest.mark.parametrize('args,contains', [
    (('run', 'smok'), 'choose one of smoke, small-model, cpu, cpu-cooking'),
    (('run', 'smoke', '--set', 'sead=1'), 'unknown setting sead (did you mean seed?): [DEFAULT]'),
    (('run', 'smoke', '--set', 'rounds=many'), 'rounds'),
    (('run', 'smoke', '--set', 'rounds'), 'write key=value'),
    (('run', 'smoke', '--name', '../x'), 'cannot name a run'),
    (('report', 'never'), 'start one with `a3t run PRESET --name never`')])
def test_bad_words(project, args, contains):
    one_line_error(project.a3t(*args), contains)
    assert not (project.path/'data'/'runs').exists()

@pytest.mark.parametrize('setting,contains', [
    ('environment=alfwurld', "no environment 'alfwurld'"),
    ("eval_splits=['unsean']", "no split 'unsean' (did you mean unseen?)"),
    ('p=7', 'setting p = 7.0 must be a number from 0, at most 1'),
    ('device=cuda:99', "device = 'cuda:99' is not a device of this machine"),
    ('model=./nowhere', "no model './nowhere'"),
    ('train_tasks=99', 'the split train has 32'),
    ('eval_tasks=99', 'the split unseen has 32')])
def test_bad_settings_are_found_by_the_first_stage(project, setting, contains):
    one_line_error(project.a3t('run', 'smoke', '--name', 'a', '--set', setting), contains)
    assert not (project.run('a')/'round_00').exists()

def test_a_round_that_finds_nothing(project):
    p = project.a3t('run', 'smoke', '--name', 'a', '--set', 'max_steps=2', 'explore_budget=20', 'rounds=1')
    one_line_error(p, 'no successes found: no episode won any of 12 tasks within explore_budget = 20 steps for each; '
                      'raise explore_budget')
    assert read_json(project.run('a')/'round_00'/'explore.alarms.json')[0]['name'] == 'no successes found'

def test_a_run_from_other_settings(project):
    project.run('a').mkdir(parents=True)
    one_line_error(project.a3t('run', 'smoke', '--name', 'a', '--set', 'eval_tasks=99'), '99')
    before = (project.run('a')/'run.json').read_bytes()
    said = one_line_error(project.a3t('run', 'smoke', '--name', 'a', '--set', 'seed=7'), 'seed = 7 (was 0)')
    assert '--name' in said and 'delete data/runs/a' in said and (project.run('a')/'run.json').read_bytes() == before

def test_a_game_file_cut_short(project):
    cut = project.path/'games.jsonl.xz'
    cut.write_bytes(lzma.compress(b'{"task": "train/x/y"}\n'*10_000)[:-40])
    one_line_error(project.a3t('run', 'smoke', '--name', 'a', '--set', 'environment=alfworld', 'engine=textworld',
                               f'games={cut}'), 'games.jsonl.xz')

def test_a_broken_settings_file(project):
    (project.path/'settings.ini').write_text('rounds = 1\n')
    one_line_error(project.a3t('run', 'smoke'), 'settings.ini cannot be read')

def test_a_reader_that_has_read_enough_is_no_error(project):
    p = project.start('presets')
    p.stdout.close()  # as `a3t presets | head -1` does
    assert p.wait(60) == 1 and p.stderr.read() == ''

def test_presets_are_listed(project):
    p = project.a3t('presets')
    assert p.returncode == 0 and [l.split()[0] for l in p.stdout.strip().split('\n')] == ['smoke', 'small-model', 'cpu',
        'cpu-cooking', 'cpu-cooking-long', 'cpu-scienceworld', 'cpu-scienceworld-long', 'cpu-alfworld', 'cpu-webshop',
        'cpu-webshop-long', 'paper-alfworld', 'paper-webshop']

# -- the score of an adapter

@pytest.fixture(scope='module')
def adapter(tmp_path_factory):
    "A project with an adapter of random weights for the tiny model"
    from peft import get_peft_model_state_dict
    from a3t.models.weights import load_model
    from a3t.train import lora
    from a3t.training.log import save_adapter
    project = Project(tmp_path_factory.mktemp('adapter'))
    net = lora(load_model('tiny')[0])
    save_adapter(get_peft_model_state_dict(net), net.peft_config['default'], project.path/'adapter', 'tiny')
    (project.path/'empty').mkdir()
    (project.path/'half').mkdir()
    (project.path/'half'/'adapter_config.json').write_text('{}')
    save_adapter(get_peft_model_state_dict(net), net.peft_config['default'], project.path/'nameless')
    return project

@pytest.mark.parametrize('args,contains', [
    (('--adapter', 'nowhere'), 'nowhere is not a LoRA adapter (no adapter_config.json)'),
    (('--adapter', 'empty'), '(no adapter_config.json)'),
    (('--adapter', 'half'), '(no adapter_model.safetensors)'),
    (('--adapter', 'nameless', '--preset', 'smoke'), 'does not name its base model: pass --model'),
    (('--adapter', 'adapter', '--preset', 'smoke', '--model', 'smollm2-135m'), 'does not fit this model'),
    (('--adapter', 'adapter', '--preset', 'smoke', '--model', './nowhere'), "no model './nowhere'"),
    (('--adapter', 'adapter', '--games', 'nowhere.jsonl.xz'), 'nowhere.jsonl.xz: run alfworld-download'),
    (('--adapter', 'adapter', '--preset', 'smoke', '--games', 'x'), 'the environment base has no choice of games'),
    (('--adapter', 'adapter', '--preset', 'smoke', '--splits', 'unsean'), "no split 'unsean'"),
    (('--adapter', 'adapter', '--preset', 'smok'), 'choose one of smoke'),
    (('--adapter', 'adapter', '--preset', 'smoke', '--set', 'sead=1'), 'unknown setting sead')])
def test_what_cannot_be_evaluated(adapter, args, contains): one_line_error(adapter.a3t('evaluate', *args), contains)

def test_a_score_is_the_same_again(adapter):
    run = lambda name, *more: adapter.a3t('evaluate', '--adapter', 'adapter', '--preset', 'smoke', '--set',
                                          'eval_tasks=3', '--json', name, *more)
    p, q = run('a.json', '--splits', 'seen', 'unseen'), run('b.json', '--splits', 'seen', 'unseen')
    a, b = (read_json(adapter.path/f'{n}.json') for n in 'ab')
    assert p.returncode == q.returncode == 0 and a == b and {'n', 'successes', 'rate', 'ci95', 'by_type', 'panel',
                                                             'seed', 'engine'} <= set(a)
    assert a['n'] == 6 and list(a['splits']) == ['seen',
                                                 'unseen'] and a['splits']['seen']['n'] == 3 and a['model'] == 'tiny'
    assert all(f'{h} ({s}, 3 tasks)' in p.stdout for s,h in a['panels'].items()) and 'seed 0' in p.stdout
    one_line_error(run('a.json'), 'is no score of this evaluation with this code: choose another --json')
    (adapter.path/'a.json').unlink()
    one_line_error(run('a.json'), 'another evaluation, or of other code: delete it, or choose another --json')

# -- whole runs

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The smoke preset, never interrupted"
    project = Project(tmp_path_factory.mktemp('whole'))
    p = project.a3t('run', 'smoke')
    assert p.returncode == 0, p.stderr
    return project, p

def report(project, name='smoke'): return read_json(project.run(name)/'report.json')

def test_smoke_ends_with_its_results(whole):
    project, p = whole
    assert ('unseen: 12 tasks, one trial each' in p.stdout and p.stdout.strip().endswith(
        'report: data/runs/smoke/report.html'))
    r = report(project)
    assert r['missing'] == [] and len(r['rounds']) == 2 and set(r['baselines']) == {'random', 'untrained'}
    for s in plan(2): assert (stage_folder(project.run('smoke'), *s)/f'{s[0]}.ipynb').exists()
    assert {p.name for w in project.run('smoke').rglob('*.work') for p in w.iterdir()} <= {'tried', 'usage'}

def test_no_reason_that_is_trained_on_is_cut(whole):
    project, _ = whole
    made = [t for r in range(2) for t in read(stage_folder(project.run('smoke'), 'explore', r)/'trajectories')]
    assert sum(s.actor == 'sampled' and bool(s.reason) for t in made for s in t.steps) > 20
    assert not any(s.cut for t in made for s in t.steps if s.actor == 'sampled') and not any(t.full for t in made)
    assert all(re.search(r'[.!?]$', s.reason) for t in made for s in t.steps if s.actor == 'sampled')
    facts = [read_manifest(project.run('smoke'), *s)['facts']
             for s in (('baselines', 0), ('explore', 1), ('evaluate', 1), ('train', 1))]
    assert [f.get('context_full') for f in facts] == [0, 0, 0, None] and facts[3]['too_long'] == 0

def test_again_there_is_nothing_to_do(whole):
    project, _ = whole
    before = {p:p.stat().st_mtime_ns for p in project.run('smoke').rglob('*') if p.is_file() and p.suffix != '.lock'}
    p = project.a3t('run', 'smoke')
    assert p.returncode == 0 and p.stdout.count('done before') == 8
    assert before == {p:p.stat().st_mtime_ns for p in project.run('smoke').rglob('*') if p.is_file()
                      and p.suffix != '.lock'}

def kill_in(project, stage, round, deep, *more):
    """Start the command and kill it inside a stage: when it opens, or (`deep`) when it has done something; was it
    unfinished?"""
    p, at, end = project.start('run', 'smoke', *more), project.run('smoke')/'progress.json', time.monotonic() + 120
    done = stage_folder(project.run('smoke'), stage, round)/f'{stage}.done.json'
    while p.poll() is None:
        assert time.monotonic() < end, f'{stage} was never reached'
        try: now = json.loads(at.read_text())
        except (OSError, ValueError): now = {}
        if (now.get('stage'), now.get('round')) == (stage,
            round) and (not deep or now['label'] != 'starting' or done.exists()):
            break
        time.sleep(.005)
    p.send_signal(signal.SIGKILL)
    unfinished = not done.exists()
    p.communicate(timeout=60)
    return unfinished

SOME = 'explore', 'report' # stages to be killed in where time is short

EVERY = [pytest.param(d, None, marks=pytest.mark.slow) for d in (True, False)]

@pytest.mark.parametrize('deep,stages', [(True, SOME), *EVERY])
def test_killed_in_every_stage_the_report_is_the_same(whole, tmp_path, deep, stages):
    project = Project(tmp_path)
    unfinished = [kill_in(project, s, r, deep and s != 'report') for s,r in plan(2) if not stages or s in stages]
    # some toy stages end within a breath
    assert unfinished[-1] and (all(unfinished) or (deep and sum(unfinished) >= (2 if stages else 5))), unfinished
    p = project.a3t('run', 'smoke')
    assert p.returncode == 0, p.stderr
    assert without_seconds(report(project)) == without_seconds(report(whole[0]))
    assert not (project.run('smoke')/'old').exists()

@pytest.mark.slow
def test_a_trained_actre_goes_through_whole(tmp_path):
    "Two rounds; killed while it composes with its own ActRe, the run ends with the same report"
    (tmp_path/'a').mkdir(); (tmp_path/'b').mkdir()
    more, reports = ('--set', 'actre=trained'), []
    for name in 'ab':
        project = Project(tmp_path/name)
        if name == 'b': kill_in(project, 'explore', 1, True, *more)
        p = project.a3t('run', 'smoke', *more)
        assert p.returncode == 0, p.stderr
        reports.append(without_seconds(report(project)))
    facts = [r['train'] for r in reports[0]['rounds']]
    assert reports[0] == reports[1] and all(0 < f['actre_rows'] <= f['trajectories'] for f in facts)
    m = [read_manifest(project.run('smoke'), 'train', r) for r in range(2)]
    assert m[0]['settings'] == m[1]['settings']
    said = one_line_error(project.a3t('run', 'smoke'), "actre = 'bound' (was 'trained')")
    assert 'choose another --name' in said
    one_line_error(project.a3t('run', 'smoke', '--set', 'grounded_reasons=true'), 'write actre = bound for true')

def limit(size):
    "No file may grow beyond `size` bytes: writes fail as on a full disk"
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

def test_a_disk_that_refuses_loses_nothing(whole, tmp_path):
    project = Project(tmp_path)
    for size in (500, 30_000):  # the first file of all; a notebook with plots
        said = one_line_error(project.a3t('run', 'smoke', preexec_fn=limit(size)), 'File too large')
        assert 'finished work is kept' in said
    p = project.a3t('run', 'smoke')
    assert p.returncode == 0, p.stderr
    assert without_seconds(report(project)) == without_seconds(report(whole[0]))

# -- the checks themselves

def test_the_checks_find_what_they_look_for(tmp_path):
    "A notebook with execution counts, a module that was edited by hand, one that was left behind, a lost tag"
    import check_notebooks as C
    spoilt = C.copy_to(tmp_path/'spoilt')
    nb = json.loads((spoilt/'nbs'/'method'/'10_evaluate.ipynb').read_text())
    next(c for c in nb['cells'] if c['cell_type'] == 'code')['execution_count'] = 7
    (spoilt/'nbs'/'method'/'10_evaluate.ipynb').write_text(json.dumps(nb))
    (spoilt/'a3t'/'evaluate.py').write_text((spoilt/'a3t'/'evaluate.py').read_text() + '\n# by hand\n')
    (spoilt/'a3t'/'old.py').write_text('# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/old.ipynb.\n')
    train = spoilt/'nbs'/'stages'/'train.ipynb'
    assert '"parameters"' in train.read_text()
    train.write_text(train.read_text().replace('"parameters"', '"parameter"'))
    copy = C.copy_to(tmp_path/'copy', spoilt)
    assert C.unclean(copy, spoilt) == ['nbs/method/10_evaluate.ipynb']
    assert C.out_of_step(copy, spoilt) == ['a3t/evaluate.py', 'a3t/old.py']
    bad = C.without_parameters(spoilt)
    assert len(bad) == 1 and 'train.ipynb has 0 cells tagged' in bad[0]
    assert not C.unclean(C.copy_to(tmp_path/'good'), ROOT)

def test_every_setting_is_explained_and_every_preset_loads():
    from a3t.settings import load_settings
    text = (ROOT/'settings.ini').read_text()
    defaults = text.split('\n[DEFAULT]\n')[1].split('\n[smoke]\n')[0].split('\n')
    lone = [l for i,l in enumerate(defaults) if '=' in l and not l.startswith('#') and not defaults[i-1].startswith('#')
            and '=' not in defaults[i-1]]
    assert not lone, 'a setting without a comment above it or above its group'
    for name in ('smoke', 'cpu', 'cpu-alfworld', 'paper-alfworld'): assert load_settings(name, path=ROOT/'settings.ini')
    paper = load_settings('paper-alfworld', path=ROOT/'settings.ini')
    assert (paper['rounds'], paper['train_tasks'], paper['compositions'], paper['p'], paper['invalid_limit']) == (4,
        600, 40, .1, 3)
    assert (paper['lora_rank'], paper['lora_alpha'], paper['learning_rate'], paper['epochs_first'],
            paper['epochs']) == (16, 32, 1e-4, 10, 6)

def test_the_lock_is_plain_and_names_every_dependency():
    import re, tomllib
    lines = (ROOT/'requirements.lock').read_text().split()
    assert all(re.fullmatch(r'[a-z0-9._-]+==[0-9][\w.]*', l) for l in lines)
    locked = {l.split('==')[0] for l in lines}
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    extras, todo, wanted = project['optional-dependencies'], [*project['dependencies']], set()
    todo += extras['dev']
    while todo: # the extra *dev* names others of this project
        name, among = re.match(r'([\w-]+)(?:\[(.*?)\])?', todo.pop()).groups()
        if name != project['name']: wanted.add(name)
        else: todo += [d for e in among.split(',') for d in extras[e]]
    assert wanted <= locked and not any(n.startswith('nvidia') for n in locked)

def test_an_adapter_gives_the_score_of_its_round(whole):
    from a3t.accumulate import read
    project, _ = whole
    folder = stage_folder(project.run('smoke'), 'evaluate', 1)
    p = project.a3t('evaluate', '--adapter', str(folder/'adapter'), '--preset', 'smoke', '--json', 'score.json')
    assert p.returncode == 0, p.stderr
    assert read_json(project.path/'score.json')['splits'] == read_json(folder/'scores.json')
    played = lambda store: {t.task:[(s.reason, s.action, s.observation) for s in t.steps] for t in read(store)}
    assert played(project.path/'score.episodes'/'unseen') == played(folder/'episodes'/'unseen')

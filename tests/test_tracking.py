"Tracking: everything from the run's files, nothing twice, and trouble is one line"
import json, math, shutil, sys
import pytest
from a3t.core import A3TError
from a3t.files import read_json, write_json
from a3t.envs.base import ToyHouse
from a3t.evaluate import summarise
from a3t.runs.folders import open_run, stage_folder
from a3t.runs.manifests import _begun
from a3t.runs.tracking import PROJECT, TRACKERS, Tracker, records, require_tracker, track
from a3t.settings import ALLOWED, load_settings

SCORE = summarise([ToyHouse.exemplar])

def finish(run, name, round=0, facts={}, alarms=[]):
    "What a stage leaves"
    write_json(stage_folder(run, name, round)/f'{name}.done.json',
               dict(stage=name, round=round, outputs={}, facts=facts, alarms=alarms, seconds=2.))

def write_log(run, round, steps):
    lines = [dict(step=i, loss=2/i, logp_lost=None, tokens=90*i, learning_rate=1e-3) for i in range(1, steps + 1)]
    (stage_folder(run, 'train', round)/'train.jsonl').write_text(''.join(json.dumps(l) + '\n' for l in lines))

def begun(folder, name, steps=3, rounds=1):
    "A run whose first training is finished: two stages, the steps, and the training itself"
    run, _ = open_run(folder, 'smoke', dict(rounds=rounds, track=name))
    write_json(run/'baselines'/'scores.json', dict(random=SCORE))
    finish(run, 'baselines')
    finish(run, 'explore', facts=dict(tasks=12, solved=9, usage=dict(model=dict(requests=40))))
    write_log(run, 0, steps)
    finish(run, 'train', facts=dict(trajectories=9, loss_last=math.nan),
           alarms=[dict(name='loss: spike', text='it rose')])
    return run

def evaluated(run, round=0):
    write_json(stage_folder(run, 'evaluate', round)/'scores.json', dict(unseen=SCORE))
    finish(run, 'evaluate', round)
    (run/'report.html').write_text('<h1>toy</h1>')

class Memory(Tracker):
    "A tracker that only remembers; it may die after some records"
    def __init__(self, forgetful=False):
        self.runs, self.files = {}, []
        self.ends, self.forgetful = 0, forgetful
    def start(self, run):
        self.now = self.runs.setdefault(run.id, [])
        return 0 if self.forgetful else len(self.now)
    def log(self, step, values):
        if len(self.now) == getattr(self, 'dies', -1): raise ConnectionError('the server\nis gone')
        self.now.append((step, values))
    def artefact(self, file): self.files.append(file.name)
    def finish(self): self.ends += 1

def test_records_hold_steps_scores_costs_and_alarms(tmp_path):
    run = begun(tmp_path/'run', '')
    evaluated(run)
    made = records(run)
    assert len(made) == 3 + 3 + 1 and [r['train/step'] for r in made if 'train/step' in r] == [1, 2, 3]
    assert made[2] == {'round':0, 'train/step':1, 'train/loss':2., 'train/tokens':90, 'train/learning_rate':1e-3}
    low, high = SCORE['ci95']
    assert (made[-1]['unseen/success'], made[-1]['unseen/low'], made[-1]['unseen/high']) == (1., low, high)
    assert made[0]['baseline random/success'] == 1. and made[1]['costs/explore model/requests'] == 40
    assert made[-2]['alarms'] == 1
    assert made[-2]['alarm/loss_ spike'] == 'it rose' and 'training/loss_last' not in made[-2]

def test_finished_stages_only_add_records(tmp_path):
    run = begun(tmp_path/'run', '', rounds=2)
    first = records(run)
    finish(run, 'explore', 1) # out of turn: the evaluation before it is missing
    assert records(run) == first
    evaluated(run)
    assert records(run)[:len(first)] == first and len(records(run)) == len(first) + 2

def test_nothing_is_sent_twice(tmp_path):
    run, memory = begun(tmp_path/'run', 'trackio'), Memory()
    assert (track(run, memory), track(run, memory)) == (6, 0) and memory.ends == 1
    evaluated(run)
    assert track(run, memory) == 1 and memory.files == ['report.html']
    (run/'report.html').write_text('<h1>again</h1>')
    assert track(run, memory) == 0 and memory.files == ['report.html']*2
    sent, = memory.runs.values()
    assert [s for s,_ in sent] == list(range(7)) and [v for _,v in sent] == records(run)

@pytest.mark.parametrize('dies', range(6))
def test_a_tracker_that_fails_is_one_line_and_the_rest_follows(tmp_path, capsys, dies):
    run, memory = begun(tmp_path/'run', 'trackio'), Memory()
    memory.dies = dies
    assert track(run, memory) == 0
    said = capsys.readouterr().out
    assert said.count('\n') == 1
    assert said.startswith('  warning: tracking with trackio: the server is gone; the run goes on')
    del memory.dies
    assert track(run, memory) == 6 - dies and memory.ends == 2
    sent, = memory.runs.values()
    assert [s for s,_ in sent] == list(range(6)) and not capsys.readouterr().out

def test_a_tracker_without_memory_relies_on_the_folder(tmp_path):
    run, memory = begun(tmp_path/'run', 'wandb'), Memory(forgetful=True)
    track(run, memory)
    evaluated(run)
    assert track(run, memory) == 1 and [s for s,_ in next(iter(memory.runs.values()))] == list(range(7))

def test_a_repeated_stage_begins_a_new_tracked_run(tmp_path):
    run, memory = begun(tmp_path/'run', 'trackio'), Memory()
    track(run, memory)
    write_log(run, 0, 5)
    assert track(run, memory) == 8 and [len(r) for r in memory.runs.values()] == [6, 8]

def test_another_run_of_the_same_name_is_another_tracked_run(tmp_path):
    run, memory = begun(tmp_path/'run', 'trackio'), Memory()
    track(run, memory)
    info = read_json(run/'run.json')
    shutil.rmtree(run)
    again = begun(tmp_path/'run', 'trackio')
    write_json(again/'run.json', info | dict(started='another day'))
    assert track(again, memory) == 6 and len(memory.runs) == 2

def test_no_tracker_is_no_work(tmp_path):
    run = begun(tmp_path/'run', '')
    assert track(run) == 0 and not (run/'tracking.json').exists()

def test_a_missing_package_is_told_before_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'trackio', None) # as if it were not installed
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(A3TError, match=r'the package trackio is missing: pip install "a3t-agents\[trackio\]"'):
        require_tracker('trackio')
    require_tracker('')
    assert track(begun(tmp_path/'run', 'trackio')) == 0
    assert 'a3t-agents[trackio]' in capsys.readouterr().out

def test_the_tracker_may_change_and_no_stage_is_repeated(tmp_path):
    run, S = open_run(tmp_path/'run', 'smoke', {})
    assert open_run(run, 'smoke', dict(track='mlflow'))[1]['track'] == 'mlflow'
    assert open_run(run, 'smoke', {})[1]['track'] == 'mlflow', 'without the setting the run keeps its tracker'
    assert _begun(run, 'baselines', 0, S) == _begun(run, 'baselines', 0, S | dict(track='mlflow'))
    old = read_json(run/'run.json')
    del old['settings']['track'] # a run of an earlier version
    write_json(run/'run.json', old)
    assert open_run(run, 'smoke', {})[1]['track'] == ''
    with pytest.raises(A3TError, match='other settings: seed'): open_run(run, 'smoke', dict(seed=3))

def test_every_choice_has_a_tracker():
    assert all(not ALLOWED['track'].fault(name) for name in ('', *TRACKERS)) and ALLOWED['track'].fault('tensorbord')
    assert load_settings('paper-alfworld')['track'] == ''

# -- real trackers; each continues its run, although the folder forgets what was sent

def twice(run):
    "Send, forget, send what an evaluation adds"
    n = track(run)
    (run/'tracking.json').unlink()
    evaluated(run)
    return n, track(run)

def test_tensorboard(tmp_path, capsys):
    pytest.importorskip('tensorboard', reason='tensorboard is not installed: pip install "a3t-agents[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = begun(tmp_path/'run', 'tensorboard')
    assert twice(run) == (6, 1) and not capsys.readouterr().out
    have = EventAccumulator(str(next((run/'tensorboard').iterdir())))
    have.Reload()
    assert [(e.step, round(e.value, 3)) for e in have.Scalars('train/loss')] == [(2, 2.), (3, 1.), (4, .667)]
    assert [e.value for e in have.Scalars('unseen/success')] == [1.]
    assert have.Tensors('alarm/loss_ spike')[0].tensor_proto.string_val == [b'it rose']

def test_trackio(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path/'trackio'))
    trackio = pytest.importorskip('trackio', reason='trackio is not installed: pip install "a3t-agents[trackio]"')
    from trackio.sqlite_storage import SQLiteStorage
    run = begun(tmp_path/'run', 'trackio')
    assert twice(run) == (6, 1) and not capsys.readouterr().out
    made, = (r for r in trackio.Api().runs(PROJECT) if r.name.startswith('run-'))
    logs = SQLiteStorage.get_logs(PROJECT, made.name)
    assert [l['step'] for l in logs] == list(range(7)) and [l['train/loss'] for l in logs[2:5]] == [2., 1., 2/3]
    assert [a['title'] for a in made.alerts()] == ['alarm/loss_ spike']
    assert any(a['name'] == 'report-run' for a in SQLiteStorage.list_artifacts(PROJECT))

@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch, capsys):
    pytest.importorskip('mlflow', reason='mlflow is not installed: pip install "a3t-agents[mlflow]"')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path/'mlruns').as_uri()) # files: a database takes longer to make
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    run = begun(tmp_path/'run', 'mlflow')
    assert twice(run) == (6, 1) and not capsys.readouterr().out
    from mlflow import MlflowClient
    client = MlflowClient()
    made, = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    tokens = client.get_metric_history(made.info.run_id, 'train/tokens')
    assert [(m.step, m.value) for m in tokens] == [(2, 90), (3, 180), (4, 270)]
    assert made.data.metrics['record'] == 6 and made.data.tags['alarm/loss_ spike'] == 'it rose'
    assert [f.path for f in client.list_artifacts(made.info.run_id)] == ['report.html']

@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip('wandb', reason='wandb is not installed: pip install "a3t-agents[wandb]"')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    run = begun(tmp_path/'run', 'wandb')
    assert track(run) == 6
    evaluated(run)
    assert track(run) == 1 and not capsys.readouterr().out
    assert len(list((run/'wandb').glob('offline-run-*/run-*.wandb'))) == 2, '`wandb sync` joins them'

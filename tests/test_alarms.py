"Every alarm, provoked by name: the pure functions, a stage, the progress line, the report"
import json, math
from dataclasses import replace
from pathlib import Path
import pytest
from a3t.accumulate import append
from a3t.quality.alarms import (alarm, broken, context_full, contrast_runs_away, cut_short, error_alarms, falls,
                                incoherent_reasons, incoherent_steps, no_successes, not_finite, stage_alarms,
                                success_falls)
from a3t.core import A3TError, Step, Trajectory
from a3t.files import read_json, write_json
from a3t.losses import check_loss
from a3t.runs.report import report_html, write_report
from a3t.cli import print_results
from a3t.runs.executor import Watch, progress_line, run_stage
from a3t.runs.folders import open_run, stage_folder
from a3t.runs.stage import open_stage
from a3t.runs.manifests import read_manifest
from test_runs import by_hand, fake, fakes  # noqa: F401 (fake is a fixture)
from test_report import make_run

def names(found): return [a['name'] for a in found]
def with_reason(reason, won=True, n=1):
    return [Trajectory(f't{i}', 'put', 'put a mug in the shelf.', 'You see a shelf 1.',
                       (Step(reason, 'go to shelf 1', f'You see a mug {i}.'),), float(won), won) for i in range(n)]
def score(k, n=60): return dict(successes=k, n=n)

def test_no_successes():
    assert names(no_successes(9, 0)) == ['no successes found'] and not no_successes(9, 1) and not no_successes(0, 0)

@pytest.mark.parametrize('reason',
                         ['the the the the the the the the the', 'a mug is a mug is a mug is a mug', '%$§ 7 [[ ]] |',
                          '...', 'act[go]', 'think[x', 'ÃÂÃÂÃÂ mug'])
def test_broken(reason): assert broken(reason)

@pytest.mark.parametrize('reason',
                         ['I need to find a mug. A mug may be in cabinet 1.',
                          'The countertop 1 and the shelf 12 and the drawer 3 are empty.', 'Now I put it.',
                          "I don't see the mug, so I look on."])
def test_not_broken(reason): assert not broken(reason)

def test_only_what_was_seen_before_the_step_counts():
    t = Trajectory('t', 'put', 'put a mug 9.', 'You see a shelf 1.',
                   (Step('The mug 9 is in the shelf 1.', 'open shelf 1', 'A cup 2.'), Step('A cup 2.', 'look', ''),
                    Step('A cup 3.', 'look', 'A cup 3.')))
    assert incoherent_steps([t]) == [False, False, True]

def test_incoherent_reasons():
    assert names(incoherent_reasons(with_reason('The spoon 9 is here.', n=30))) == ['incoherent reasons']
    assert not incoherent_reasons(with_reason('The shelf 1 is here.', n=30))
    assert not incoherent_reasons(with_reason('', n=30)) and not incoherent_reasons([])
    shop = [replace(t, goal='i need size 8') for t in with_reason('The task says 8, so I choose 8.', n=30)]
    assert not incoherent_reasons(shop), 'no thing is named'
    mixed = with_reason('The shelf 1 is here.', n=28) + with_reason('The spoon 9.', n=2)
    assert not incoherent_reasons(mixed), 'two of thirty may be chance'

def test_errors_of_training_start_with_the_names_of_alarms():
    for loss,lost,name in ((math.nan, 0., 'the loss is not finite'), (1., -99., 'the contrast term runs away')):
        with pytest.raises(A3TError) as e: check_loss(loss, lost, 400)
        assert names(error_alarms(str(e.value))) == [name]
    assert names(error_alarms('a gradient is not finite: lower learning_rate')) == ['a gradient is not finite']
    assert "raise A3TError('a gradient is not finite" in (
        Path(__file__).parent.parent/'a3t'/'training'/'log.py').read_text()
    assert error_alarms('cannot write x') == []
    with pytest.raises(A3TError, match='no alarm'): alarm('something', '')

def test_contrast_runs_away():
    log = [dict(step=i, loss=1., logp_lost=-3.*i if i % 2 else None) for i in range(12)]
    assert (names(contrast_runs_away(log)) == ['the contrast term runs away'] and not contrast_runs_away(log[:4])
            and not contrast_runs_away([]))
    assert names(not_finite([*log, dict(step=12, loss=math.inf)])) == ['the loss is not finite'] and not not_finite(log)

def test_success_falls():
    assert names(success_falls([score(12), score(36), score(20)])) == ['success falls']
    assert not success_falls([score(36), score(30)]) and not success_falls([score(36)]) and not success_falls([score(0),
        score(0)])
    assert not falls(score(3, 4), score(1, 4)), 'four tasks say nothing'

def test_rounds_are_numbers(tmp_path):
    "Not texts, and not places in a list: rounds without scores do not count"
    of = lambda r, k: write_json(tmp_path/f'round_{r:02}'/'scores.json', dict(unseen=score(k)) if k else {})
    for r,k in ((9, 12), (10, None), (11, 36), (100, 20), (101, 36)): of(r, k)
    found, = stage_alarms('evaluate', tmp_path/'round_100')
    assert found['name'] == 'success falls' and 'in round 11:' in found['text']
    assert stage_alarms('evaluate', tmp_path/'round_101') == []

def steps(*cuts, actor='policy', full=False):
    return Trajectory('t', 'put', 'goal', 'room',
                      tuple(Step('I need it.', f'look {i}', 'room', actor, cut=c) for i,c in enumerate(cuts)),
                      full=full)

def test_answers_cut_short():
    by_actre = [steps(*[False]*99), steps(True, actor='sampled')]
    assert names(cut_short(by_actre)) == ['answers cut short'], 'a single reason by ActRe'
    assert cut_short([steps(*[True]*10, *[False]*90)]) == []
    assert names(cut_short([steps(*[True]*20, *[False]*80)])) == ['answers cut short']
    some = cut_short([steps(True, False, False, actor='sampled'), steps(True, True, False, False)])
    assert 'before their end: 1 of 3 reasons by ActRe, and 2 of 4 steps' in some[0]['text']
    assert cut_short([]) == cut_short([steps(False), steps(False, actor='sampled')]) == []

def test_lost_to_a_full_context():
    assert context_full([]) == context_full([steps(False)]) == []
    found = context_full([steps(False), steps(False, full=True)])
    assert found[0]['text'].startswith('1 of 2 episodes were lost because they filled the context')

@pytest.mark.parametrize('name,where',
                         [('baselines', 'episodes/untrained'), ('explore', 'trajectories'),
                          ('evaluate', 'episodes/unseen')])
def test_stages_count_what_was_lost_to_the_context(tmp_path, name, where):
    append(tmp_path/where, [steps(False, full=True), steps(False, False)])
    assert 'context full' in names(stage_alarms(name, tmp_path))

def test_stages_that_raise_none():
    assert stage_alarms('baselines', '.') == stage_alarms('report', '.') == []

# -- in a run

def fill(stage, trajectories=(), log=(), scores=None):
    "What a stage writes"
    for o in {'explore':('trajectories',), 'train':('adapter', 'train.jsonl'),
              'evaluate':('episodes', 'scores.json')}[stage.name]:
        if o == 'train.jsonl': stage.path(o).write_text(''.join(json.dumps(l) + '\n' for l in log))
        elif o == 'scores.json': write_json(stage.path(o), scores)
        else: stage.path(o).mkdir(parents=True, exist_ok=True)
    if trajectories:
        append(stage.path('trajectories') if stage.name == 'explore' else stage.path('episodes')/'unseen', trajectories)
    return stage

def provoke(run, name, round=0, **what):
    stage = open_stage(name, run, round)
    fill(stage, **what).done(tasks=3)
    return names(read_manifest(run, name, round)['alarms'])

def test_each_is_in_the_manifest_the_progress_line_and_the_report(fake, capsys):
    run, _ = open_run(fake.run('a'), 'smoke', {'rounds':2})
    by_hand(run, 1)
    lost = with_reason('The spoon 9.', won=False, n=30)
    assert provoke(run, 'explore', trajectories=lost) == ['no successes found', 'incoherent reasons']
    at = read_json(run/'progress.json')
    assert progress_line('explore', 0, at, 5).endswith('warning: no successes found, incoherent reasons · 5 s')
    assert provoke(run, 'train', log=[dict(step=1, loss=math.nan, logp_lost=-50.)]) == ['the loss is not finite',
                                                                                        'the contrast term runs away']
    assert provoke(run, 'evaluate', scores={'unseen':score(50)}) == []
    assert provoke(run, 'explore', 1, trajectories=with_reason('The shelf 1.', n=3)) == []
    assert provoke(run, 'train', 1, log=[dict(step=1, loss=1.)]) == []
    assert provoke(run, 'evaluate', 1, scores={'unseen':score(10)}) == ['success falls']
    assert 'warning: success falls: 10 of 60 tasks, but 50 of 60 in round 0' in capsys.readouterr().out
    with Watch(run, 'evaluate', 1): pass
    assert '  warning: success falls: 10 of 60' in capsys.readouterr().out

def test_a_training_that_is_stopped_leaves_its_alarm(fake, tmp_path, capsys, monkeypatch):
    stopping = fakes(tmp_path/'stopping',
                     train="from a3t.core import A3TError\nraise A3TError('a gradient is not finite: lower "
                           "learning_rate')")
    monkeypatch.setenv('A3T_NOTEBOOKS', str(stopping))
    run, _ = open_run(fake.run('a'), 'smoke', {'rounds':1})
    by_hand(run, 2)
    with pytest.raises(A3TError, match='a gradient is not finite'): run_stage(run, 'train')
    report = write_report(run)
    assert [(a['stage'], a['round'], a['name']) for a in report['alarms']] == [('train', 0, 'a gradient is not finite')]
    assert '<p>Alarms:</p>' in (page := (run/'report.html').read_text()) and 'a gradient is not finite' in page
    print_results(run)
    assert 'warning: round 0 · train: a gradient is not finite' in capsys.readouterr().out
    monkeypatch.setenv('A3T_NOTEBOOKS', str(fakes(tmp_path/'fixed')))
    run_stage(run, 'train')
    assert write_report(run)['alarms'] == [] and not (stage_folder(run, 'train')/'train.alarms.json').exists()

def test_a_good_run_has_none(tmp_path):
    report = write_report(run := make_run(tmp_path/'run'))
    assert report['alarms'] == [] and '<p>Alarms:</p>' not in (run/'report.html').read_text()

def test_alarms_are_escaped(tmp_path):
    run = make_run(tmp_path/'run')
    report = write_report(run) | {'alarms':[dict(stage='train', round=0, name='success falls', text='<script>')]}
    assert '<script' not in report_html(run, report)

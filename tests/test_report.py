"The report: from files only, escaped, the same for the same run"
import json, math, re, shutil
from dataclasses import replace
import matplotlib.pyplot as plt
import pytest
import a3t.accumulate
from a3t.accumulate import append
from a3t.core import A3TError, Step, Trajectory
from a3t.files import read_json, write_json
from a3t.evaluate import summarise
from a3t.quality.curves import plot_training
from a3t.runs.report import (plot_success, plot_time, report_dict, report_html, some_trajectories, stage_table,
                              time_table, training_logs, headline, write_report)
from a3t.cli import print_results
from a3t.runs.folders import open_run, stage_folder

EVIL = '<script>alert("&1")</script>'

def toy(task, won=True, actor='policy', text='r'):
    return Trajectory(task, 'put', f'goal of {text}', 'see',
                      (Step(text, text, text, actor, won), Step('', 'go', 'there', 'sampled')), float(won), won,
                      'composed')

def make_run(folder, rounds=2, text='r', finished=True, seconds=1.):
    run, S = open_run(folder, 'smoke', {'rounds':rounds})
    done = lambda name, r, **facts: write_json(stage_folder(run, name, r)/f'{name}.done.json',
                                               dict(stage=name, round=r, outputs={}, facts=facts, seconds=seconds))
    write_json(run/'baselines'/'scores.json',
               {k:dict(split='unseen', **summarise([toy('a', False), toy('b', False)]))
                for k in ('random', 'untrained')})
    done('baselines', 0)
    for r in range(rounds):
        folder = stage_folder(run, 'explore', r)
        append(folder/'trajectories', [replace(toy(f't{r}', text=text), round=r)])
        done('explore', r, tasks=3, solved=1, trajectories=9, successes=1)
        if not finished and r == rounds - 1: break
        done('train', r, trajectories=r + 1, tokens=10, seconds=seconds, loss_first=2., loss_last=1.)
        episodes = [toy('a', True, text=text), toy('b', r > 0)]
        append(folder/'episodes'/'unseen', episodes)
        write_json(folder/'scores.json', {'unseen':dict(panel='x', **summarise(episodes))})
        done('evaluate', r)
    return run

def without_seconds(x):
    if isinstance(x, dict): return {k:without_seconds(v) for k,v in x.items() if k not in ('seconds', 'usage')}
    return [without_seconds(v) for v in x] if isinstance(x, list) else x

def test_schema(tmp_path):
    run = make_run(tmp_path/'run')
    write_report(run)
    r = read_json(run/'report.json')
    assert {'preset', 'environment', 'engine', 'model', 'seconds', 'rounds', 'baselines', 'accumulated'} <= set(r)
    assert [d['round'] for d in r['rounds']] == [0, 1]
    for d in r['rounds']:
        assert {'tasks', 'solved', 'trajectories', 'successes'} <= set(d['explore'])
        assert {'trajectories', 'tokens', 'seconds', 'loss_first', 'loss_last'} <= set(d['train'])
        assert {'n', 'successes', 'rate', 'ci95', 'by_type'} <= set(d['splits']['unseen'])
    for b in ('random', 'untrained'): assert {'n', 'successes', 'rate', 'ci95', 'by_type'} <= set(r['baselines'][b])
    assert r['accumulated']['unseen']['rate'] == 1. and r['rounds'][0]['splits']['unseen']['rate'] == .5
    assert r['missing'] == []

def test_same_run_same_report_apart_from_seconds(tmp_path):
    a, b = (write_report(make_run(tmp_path/n/'run', seconds=s)) for n,s in (('a', 1.), ('b', 5.)))
    assert a != b and without_seconds(a) == without_seconds(b)

def test_everything_is_escaped(tmp_path):
    run = make_run(tmp_path/'run', text=EVIL)
    info = read_json(run/'run.json')
    write_json(run/'run.json', info | {'preset':EVIL, 'settings':info['settings'] | {'model':EVIL}})
    page = report_html(run, report_dict(run))
    assert '<script' not in page and '&lt;script&gt;' in page

def test_page_needs_nothing_else(tmp_path):
    page = report_html(run := make_run(tmp_path/'run'), report_dict(run))
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    anchors, pictures = [l[1:] for l in links if l.startswith('#')], [l for l in links if not l.startswith('#')]
    assert pictures and all(l.startswith('data:image/png;base64,') for l in pictures)
    assert anchors and all(f'id="{a}"' in page for a in anchors), 'the contents lead to sections of this page'
    assert 'url(' not in page and '@import' not in page

def test_the_result_comes_first(tmp_path):
    "With its interval and the baselines, before the contents; true of one round and of none"
    run = make_run(tmp_path/'run')
    report = report_dict(run)
    said = headline(report)
    assert said.startswith('Round 1 wins 2 of 2 unseen tasks: 100%, 95% interval 34–100%.')
    assert said.endswith('Before: random 0 of 2 (0–66%), untrained 0 of 2 (0–66%).') and 'reward' not in said
    page = report_html(run, report)
    assert page.index(said) < page.index('<nav>') < page.index('Success on unseen tasks</h2>')
    assert 'Accumulated' in page and 'bootstrap' not in page
    shop = summarise([replace(toy('a'), reward=.5, won=False), toy('b')])
    one = report | dict(rounds=[dict(round=0, splits=dict(test=shop))], baselines={}, baselines_split=None)
    assert headline(one) == ('Round 0 wins 1 of 2 test tasks: 50%, 95% interval 9–91%. '
                             'Its mean reward is 75%, 50–100%.')
    page = report_html(run, one)
    assert 'bootstrap' in page and '<i>Accumulated' not in page
    assert headline(report | dict(rounds=[])) == 'No round has been evaluated yet.'

def test_unfinished_run_says_what_is_missing(tmp_path, capsys):
    run = make_run(tmp_path/'run', finished=False)
    r = write_report(run)
    assert r['missing'] == ['round 1 · train', 'round 1 · evaluate']
    assert 'splits' not in r['rounds'][1] and r['accumulated']['unseen']['rounds'] == [0]
    assert 'Not finished' in (run/'report.html').read_text()
    print_results(run)
    assert 'missing: round 1 · train' in capsys.readouterr().out

def test_scores_without_manifest_do_not_count(tmp_path):
    run = make_run(tmp_path/'run')
    (run/'round_01'/'evaluate.done.json').unlink()
    assert (report_dict(run)['missing'] == ['round 1 · evaluate']
            and len(report_dict(run)['accumulated']['unseen']['by_round']) == 1)

def test_trajectories_to_read_prefer_both_actors(tmp_path):
    run = make_run(tmp_path/'run')
    plain = replace(toy('short'), steps=(Step('', 'go', 'there'),))
    append(run/'round_00'/'trajectories', [plain])
    name, t = some_trajectories(run, 2)[0]
    assert name == 'round 0, explored' and {s.actor for s in t.steps} == {'policy', 'sampled'}

def test_report_json_is_strict_json(tmp_path):
    run = make_run(tmp_path/'run')
    write_report(run)
    json.loads((run/'report.json').read_text(), parse_constant=lambda c: pytest.fail(f'{c} is not JSON'))

# -- durations

def test_durations_of_days(tmp_path):
    report = report_dict(make_run(tmp_path/'run', seconds=90_061.))
    assert time_table(report).loc['round 0', 'train'] == '1 d 01:01:01' == stage_table(report).loc['train: time',
                                                                                                   'round 0']
    page = report_html(tmp_path/'run', report | dict(seconds=86_400.))
    assert '1 d 00:00:00 of work' in page and 'minutes' not in page

@pytest.mark.parametrize('seconds,unit',
                         [(5., 'seconds'), (119., 'seconds'), (150., 'minutes'), (8000., 'hours'), (200_000., 'days')])
def test_the_plot_of_times_has_a_fitting_unit(seconds, unit):
    fig = plot_time(dict(rounds=[dict(round=0, seconds=dict(explore=seconds))]))
    assert fig.axes[0].get_xlabel() == unit
    plt.close(fig)

# -- the verdict

def test_the_page_and_the_printed_results_say_the_same_verdict(tmp_path, capsys):
    run = make_run(tmp_path/'run')
    new = write_report(run)['stability']
    print_results(run)
    said = capsys.readouterr().out
    for text in (new['verdict'], new['why'], new['advice']):
        assert text in said and text in (run/'report.html').read_text()
    assert new['verdict'] == 'too few to tell' and new['why'].startswith('round 1 won 2 of 2 tasks, round 0 won 1 '
                                                                         '(paired test')

def test_no_round_won_a_task(tmp_path):
    run = make_run(tmp_path/'run')
    for r in range(2):
        folder = stage_folder(run, 'evaluate', r)
        shutil.rmtree(folder/'episodes')
        append(folder/'episodes'/'unseen', [toy(f't{i}', won=False) for i in range(12)])
    assert report_dict(run)['stability']['verdict'] == 'nothing learned'

# -- loss curves

def steps(n, **more):
    return [dict(step=i, loss=2/i, logp_won=-2/i, logp_lost=-i/n if i % 2 else None) | more for i in range(1, n + 1)]
def write_log(path, log, cut=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps(l) + '\n' for l in log)
    path.write_text(text[:len(text) - cut])

def test_logs_of_all_rounds_and_of_one_that_was_killed(tmp_path):
    write_log(tmp_path/'round_00'/'train.jsonl', steps(3))
    write_log(tmp_path/'round_02'/'train.work'/'training'/'train.jsonl', steps(5), cut=10)
    assert {k:len(v) for k,v in training_logs(tmp_path, 4).items()} == {'round 0':3, 'round 2 (unfinished)':4}
    write_log(tmp_path/'round_02'/'train.jsonl', steps(7))
    assert len(training_logs(tmp_path, 4)['round 2']) == 7

def drawn(ax):
    return {line.get_label():(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines
            if not line.get_label().startswith('_')}

def test_curves_show_the_numbers_and_pass_over_what_is_missing():
    fig = plot_training({'round 0':steps(4), 'round 1':steps(2, logp_lost=None)})
    loss, _, logp, second = fig.axes
    assert drawn(loss) == {'loss':([1, 2, 3, 4], [2, 1, 2/3, .5])} and loss.get_title() == 'round 0'
    assert drawn(logp)['of failures'] == ([1, 3],
                                          [-.25, -.75]) and list(drawn(second)) == ['log-probability of successes']
    plt.close(fig)

def test_curves_of_thousands_of_steps_are_smoothed():
    fig = plot_training({'round 0':[dict(step=i, loss=float(i % 2)) for i in range(1, 4001)]})
    _, smooth = drawn(fig.axes[0])['loss']
    assert all(abs(y - .5) < .02 for y in smooth) and len(fig.axes[0].lines) == 3 # each step faint, the mean, marks
    plt.close(fig)

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_losses_that_are_no_numbers_are_marked(bad, tmp_path):
    log = steps(6)
    log[2]['loss'] = log[4]['loss'] = bad
    write_log(tmp_path/'round_00'/'train.jsonl', log)
    fig = plot_training(training_logs(tmp_path, 1))
    assert '2 losses not finite' in fig.axes[0].get_title() and list(fig.axes[0].lines[-1].get_xdata()) == [3, 5]
    assert drawn(fig.axes[0])['loss'][0] == [1, 2, 4, 6]
    plt.close(fig)

@pytest.mark.parametrize('log',
                         [[{}], [dict(step=1)], [dict(step=1, loss=None, logp_won='x')], [dict(step=None, loss=1.)],
                          [dict(loss=math.nan)]])
def test_odd_logs_are_drawn(log): plt.close(plot_training({'round 0':log}))

def test_the_page_shows_the_curves(tmp_path):
    run = make_run(tmp_path/'run')
    assert 'Training</h2>' not in report_html(run, report_dict(run))
    write_log(run/'round_00'/'train.jsonl', steps(9))
    assert 'Training</h2>' in report_html(run, report_dict(run))

# -- whole with whatever there is

def test_no_rounds_at_all(tmp_path):
    run = make_run(tmp_path/'run', rounds=1)
    shutil.rmtree(run/'round_00')
    report, page = write_report(run), (run/'report.html').read_text()
    assert report['rounds'] == [] and report['stability']['verdict'] == 'too few to tell'
    assert 'untrained' in page, 'the baselines are done'

@pytest.mark.parametrize('gone', ['explore', 'train', 'evaluate', 'baselines'])
def test_a_stage_in_the_middle_is_missing(tmp_path, gone):
    run = make_run(tmp_path/'run', rounds=3)
    for folder in ((run/'baselines',) if gone == 'baselines' else (run/'round_00', run/'round_01')):
        (folder/f'{gone}.done.json').unlink()
    report = write_report(run)
    assert len(report['missing']) == (1 if gone == 'baselines' else 2)
    assert [r['round'] for r in report['stability']['rounds']] == ([2] if gone == 'explore' else [0, 1, 2])

def test_rounds_on_other_tasks_and_splits_do_not_end_the_report(tmp_path):
    run = make_run(tmp_path/'run', rounds=3)
    folder = stage_folder(run, 'evaluate', 1)
    shutil.rmtree(folder/'episodes')
    append(folder/'episodes'/'unseen', other := [toy('c'), toy('d')])
    write_json(folder/'scores.json',
               {'unseen':dict(panel='y', **summarise(other)), 'seen':dict(panel='z', **summarise(other))})
    report = write_report(run)
    assert list(report['accumulated']) == ['unseen'] and report['accumulated']['unseen']['rounds'] == [0, 2]
    assert 'won' not in report['stability']['rounds'][1] and report['stability']['verdict'] == 'too few to tell'
    assert 'Success on seen tasks' in (run/'report.html').read_text()

def test_names_with_dollars_and_of_any_length(tmp_path):
    run = make_run(tmp_path/'run')
    scores = read_json(run/'round_00'/'scores.json')['unseen']
    scores['by_type'] = {name:scores['by_type']['put'] for name in ('a$b$c', '$\\frac$', '_x', '<b>', 'very_long_' * 9)}
    write_json(run/'round_00'/'scores.json', {'$\\split$':scores})
    page = report_html(run, report_dict(run))
    assert '<b>1' not in page and '&lt;b&gt;' in page

# -- plots and tables at the width of the page

def wide_report(run, rounds=8, types=12):
    "The report of a run with many rounds and task types, and with long settings"
    report = write_report(run)
    split = report['rounds'][0]['splits']['unseen']
    put = split['by_type']['put']
    split = split | dict(reward=.4, by_type={f'pick_two_objects_and_place_them_{i}':put for i in range(types)})
    round = report['rounds'][1]
    new = report['stability']['rounds'][1]
    return report | dict(rounds=[round | dict(round=r, splits=dict(unseen=split)) for r in range(rounds)],
                         model='m'*300,
                         settings=report['settings'] | dict(model='m'*300, generator=str(list(range(300)))),
                         stability=report['stability'] | dict(rounds=[new | dict(round=r) for r in range(rounds)]))

@pytest.mark.parametrize('rounds,types', [(8, 12), (30, 5), (1, 2), (2, 1)])
def test_labels_of_a_plot_do_not_overlap(tmp_path, rounds, types):
    report = wide_report(make_run(tmp_path/'run'), rounds, types)
    fig = plot_success(report, 'unseen')
    fig.canvas.draw()
    assert fig.get_size_inches()[0] <= 8.5 and len([ax for ax in fig.axes if ax.axison]) == 2 + (types if types > 1
                                                                                                 else 0)
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
        assert all(a.x1 < b.x0 for a,b in zip(boxes, boxes[1:]))
    titles = [ax.title.get_window_extent() for ax in fig.axes if ax.axison]
    assert not any(a.overlaps(b) for i,a in enumerate(titles) for b in titles[i + 1:])
    plt.close(fig)

@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_fits_the_screen(browser, tmp_path, width):
    run = make_run(tmp_path/('long_name_'*20), text='w'*500)
    write_log(run/'round_00'/'train.jsonl', steps(9))
    (run/'report.html').write_text(report_html(run, wide_report(run)))
    browser.send('Emulation.setDeviceMetricsOverride', width=width, height=850, deviceScaleFactor=1, mobile=width < 500)
    browser.goto((run/'report.html').as_uri())
    assert browser.js('document.documentElement.scrollWidth') <= width == browser.js('innerWidth')
    assert browser.js("[...document.querySelectorAll('table, img')].every(e => e.closest('.wide'))")
    assert browser.js("[...document.querySelectorAll('.wide')].every(e => e.getBoundingClientRect().right <= "
                      "innerWidth)")
    wide = "[...document.querySelectorAll('img')].every(i => i.width > .9*i.naturalWidth || i.width > 700)"
    assert browser.js(wide), 'plots stay legible'

def test_wrong_folder(tmp_path):
    "What is not a run is named, and what to pass"
    run = make_run(tmp_path/'runs'/'mine')
    for use in (report_dict, write_report, lambda folder: some_trajectories(folder, 2)):
        with pytest.raises(A3TError, match='typo does not exist. Pass the folder of a run, such as .*runs/mine'):
            use(tmp_path/'runs'/'typo')
        with pytest.raises(A3TError, match='trajectories is not a run'): use(run/'round_00'/'trajectories')
    assert not (tmp_path/'runs'/'typo').exists()

def test_texts_of_a_run_are_read_twice(tmp_path, monkeypatch):
    "Once for what is new, once for the trajectories to read; all else is in small columns"
    run, whole, real = make_run(tmp_path/'run'), [], a3t.accumulate.file_table
    def counted(path, columns=None):
        if not columns: whole.append(path)
        return real(path, columns)
    monkeypatch.setattr('a3t.accumulate.file_table', counted)
    write_report(run)
    assert 0 < sum('trajectories' in p.parts for p in whole) <= 2*2

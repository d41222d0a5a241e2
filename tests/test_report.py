"The report: from files only, escaped, the same for the same run"
import json, re
from dataclasses import replace
import pytest
import a3t.accumulate
from a3t.accumulate import append
from a3t.core import A3TError, Step, Trajectory, read_json, write_json
from a3t.evaluate import summarise
from a3t.report import report_dict, report_html, some_trajectories, write_report
from a3t.cli import print_results
from a3t.rounds import open_run, stage_folder

EVIL = '<script>alert("&1")</script>'

def toy(task, won=True, actor='policy', text='r'):
    return Trajectory(task, 'put', f'goal of {text}', 'see', (Step(text, text, text, actor, won), Step('', 'go', 'there', 'sampled')), float(won), won, 'composed')

def make_run(folder, rounds=2, text='r', finished=True, seconds=1.):
    run, S = open_run(folder, 'smoke', {'rounds':rounds})
    done = lambda name, r, **facts: write_json(stage_folder(run, name, r)/f'{name}.done.json', dict(stage=name, round=r, outputs={}, facts=facts, seconds=seconds))
    write_json(run/'baselines'/'scores.json', {k:dict(split='unseen', **summarise([toy('a', False), toy('b', False)])) for k in ('random', 'untrained')})
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
    if isinstance(x, dict): return {k:without_seconds(v) for k,v in x.items() if k != 'seconds'}
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
    assert links and all(l.startswith('data:image/png;base64,') for l in links)
    assert 'url(' not in page and '@import' not in page

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
    assert report_dict(run)['missing'] == ['round 1 · evaluate'] and len(report_dict(run)['accumulated']['unseen']['by_round']) == 1

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

def test_wrong_folder(tmp_path):
    "What is not a run is named, and what to pass"
    run = make_run(tmp_path/'runs'/'mine')
    for use in (report_dict, write_report, lambda folder: some_trajectories(folder, 2)):
        with pytest.raises(A3TError, match='typo does not exist. Pass the folder of a run, such as .*runs/mine'): use(tmp_path/'runs'/'typo')
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

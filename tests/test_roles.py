"Three roles: each model plays its part, is checked before the first request, and is counted"
import os, random, re, signal
from inspect import signature
import pytest
from a3t.accumulate import read
from a3t.agents import ReAct
from a3t.core import A3TError
from a3t.files import read_json, write_json
from a3t.models.api import language_model, model_arguments
from a3t.models.base import gather
from a3t.models.chatter import without_lead_in
from a3t.models.ready import require_models, require_server, require_template, require_weights
from a3t.models.roles import ROLES, roles_of, server_of
from a3t.models.scripted import ScriptedModel
from a3t.models.server import ServerModel, without_keys
from a3t.models.thoughts import past_thoughts
from a3t.models.toyserver import ToyServer
from a3t.models.usage import Meter, Metered, counting, read_usage
from a3t.models.weights import tiny_model
from a3t.runs.costs import cost_table, run_usage
from a3t.runs.folders import open_run, stage_folder
from a3t.runs.manifests import read_manifest
from a3t.runs.stage import open_stage
from a3t.settings import check_settings, load_settings
from conftest import ROOT, one_line_error

INI = ROOT/'settings.ini'
HOSTED = 'https://api.openai.com/v1/chat/completions#gpt-4o-mini'

def settings(**changes): return load_settings('smoke', changes, INI)

@pytest.fixture
def offline(monkeypatch):
    "No hub"
    import huggingface_hub.constants as constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)

@pytest.fixture
def place(tmp_path, monkeypatch, offline):
    "An empty project"
    (tmp_path/'settings.ini').write_text(INI.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('A3T_DATA', raising=False)
    return tmp_path

# -- settings

@pytest.mark.parametrize('changes,says', [
    (dict(opening_model='tiny'), 'opening_model = tiny is not used by opening = sampled'),
    (dict(opening_trials=2), 'opening_trials = 2 is not used by opening = sampled'),
    (dict(opening='prompted', opening_trials=2, temperature=0.), 'repeats the same episodes'),
    (dict(opening='prompted', actre='trained', actre_model='tiny'), 'actre_model = tiny is not used'),
    (dict(actre_model='http://127.0.0.1:1/v1#m'), 'actre = bound binds reasons'),
    (dict(actre='trained', actre_model='http://127.0.0.1:1/v1#m'), 'actre = trained binds reasons'),
    (dict(opening_trials=0), 'opening_trials = 0 must be'),
    (dict(server={'opening_model':{'timeout':1.}, 'timeout':3.}), 'opening_model in the setting server stands beside'),
    (dict(server={'actre_model':{'timuot':1.}}), 'timuot is unknown'),
    (dict(server={'opening_model':{}, 'actre_modle':{}}), 'actre_modle is unknown .*did you mean actre_model'),
    (dict(server={'opening_model':{'model':{}}}), 'model in the setting server stands beside or inside'),
    (dict(server={'actre_modle':{}}), 'actre_modle is unknown in the setting server .did you mean actre_model'),
    (dict(server={'price':1.}), 'write two or three numbers, .0.15'),
    (dict(server={'timeout':9.}), 'server is not used, because no model is on a server'),
    (dict(model='http://127.0.0.1:1/v1#m', server={'opening_model':{}}), 'no server is asked as opening_model'),
    (dict(server={'model':{'timeout':9.}}), 'server has an entry model, but no server is asked as model'),
    (dict(server={'actre_model':3}), 'must be a dict'),
    (dict(server={'body':{'x':{1, 2}}}), 'is not JSON serializable'),
    (dict(opening_model='http:/host/v1#m'), 'an address begins with http:// or https://'),
    (dict(opening_model='127.0.0.1:80/v1#m'), 'an address begins with http:// or https://'),
    (dict(server={'body':{'max_tokens':3}}), 'max_tokens in the body of the setting server is set by the run itself'),
    (dict(server={'body':{'n':3}}), 'n in the body of the setting server is set by the run itself')])
def test_contradictions_are_one_line(changes, says):
    with pytest.raises(A3TError, match=says) as e: check_settings(settings(**changes))
    assert '\n' not in str(e.value)

def test_what_goes_together():
    for changes in (dict(actre='trained'), dict(actre='trained', actre_model='tiny'),
                    dict(actre='base', actre_model=HOSTED),
                    dict(opening='prompted', opening_model=HOSTED, opening_trials=5, actre='trained')):
        check_settings(settings(**changes))

def test_each_role_has_its_server():
    one, each = dict(timeout=7.), dict(opening_model=dict(timeout=8.))
    assert [server_of(dict(server=one), r) for r in ROLES] == [one]*3
    assert [server_of(dict(server=each), r) for r in ROLES] == [dict(timeout=8.), {}, {}]
    S = settings(opening='prompted', opening_model='http://127.0.0.1:1/v1', server=each, actre='base')
    assert language_model(*model_arguments(S, role='opening_model')).timeout == 8
    assert model_arguments(S, role='actre_model')[0] == 'tiny'

def test_roles_of_the_stages():
    S = settings(opening='prompted', actre='base')
    assert roles_of(S) == sorted(ROLES) and roles_of(S, 'train') == []
    assert roles_of(S, 'explore', 0) == ['opening_model'] and roles_of(S, 'explore', 1) == ['actre_model', 'model']
    assert roles_of(S | dict(actre='trained'), 'explore', 1) == ['model']
    assert roles_of(S | dict(rounds=1)) == ['model', 'opening_model']

def test_the_guide_is_true(tmp_path, monkeypatch):
    "Its example is a preset that may run, and its table lists what `server` takes"
    text = (ROOT/'nbs'/'guide'/'roles.md').read_text()
    (tmp_path/'settings.ini').write_text(re.search(r"<<'END'\n(.*?)\nEND", text, re.S)[1])
    monkeypatch.chdir(tmp_path)
    S = check_settings(load_settings('mine'))
    assert [model_arguments(S, role=r)[0] for r in ROLES] == [S['opening_model'], S['actre_model'], 'smollm2-135m']
    assert roles_of(S) == sorted(ROLES) and all(server_of(S, r) for r in ROLES[:2])
    first = re.findall(r'^\|([^|]+)\|', text.partition('## The setting `server`')[2].partition('\n##')[0], re.M)
    assert set(re.findall(r'`(\w+)`', ' '.join(first))) == signature(ServerModel).parameters.keys() - {
        'address', 'tokenizer'}

# -- checked before the first request

def test_a_hosted_model_cannot_be_trained(place):
    "One line before any request, not at the end of round 0"
    with pytest.raises(A3TError, match='gpt-4o-mini. on this machine.*can be opening_model and actre_model') as e:
        open_run('data/runs/a', 'smoke', dict(model=HOSTED, actre='base', opening='prompted'))
        open_stage('baselines', 'data/runs/a')
    assert '\n' not in str(e.value)
    with pytest.raises(A3TError, match='gpt-4o-mini. on this machine'): open_stage('explore', 'data/runs/a')

def test_folders_without_weights(tmp_path, offline):
    with pytest.raises(A3TError, match='lacks config.json, weights, a tokenizer'):
        require_weights(dict(model=str(tmp_path)))
    for name in ('config.json', 'model.safetensors', 'tokenizer.json'): (tmp_path/name).write_text('')
    require_weights(dict(model=str(tmp_path)))
    with pytest.raises(A3TError, match="actre_model = ./no: there is no model './no'"):
        require_weights(dict(model='tiny', actre_model='./no'), 'actre_model')

@pytest.mark.parametrize('trouble', [401, 403, 404, 400])
def test_a_server_that_refuses(trouble):
    with ToyServer(lambda b: 'OK', [trouble]) as toy:
        S = settings(opening='prompted', opening_model=f'{toy.url}#toy', actre='base')
        with pytest.raises(A3TError, match=f'opening_model = {toy.url}#toy: the server .* refuses .{trouble}'):
            require_models(S)

def test_a_server_that_is_not_there():
    with ToyServer(lambda b: 'OK') as toy: pass
    with pytest.raises(A3TError, match='actre_model = .*nobody answers there'):
        require_server(dict(model='tiny', actre_model=f'{toy.url}#toy', server={}), 'actre_model')

def test_chat_without_a_template_is_refused_before_the_run(offline):
    with ToyServer(lambda b: 'OK') as toy:
        S = settings(format='chat', actre='base', actre_model=f'{toy.url}#toy')
        with pytest.raises(A3TError, match='actre_model = .*format = chat needs the chat template'):
            require_server(S, 'actre_model')
        require_server(S | dict(actre_model=f'{toy.url}/chat/completions#toy'), 'actre_model')

def test_the_probe_has_the_fields_of_the_run():
    with ToyServer(lambda b: 'OK') as toy:
        S = settings(actre='base', actre_model=f'{toy.url}/chat/completions#toy',
                     server={'body':{'top_p':.5, 'seed':None}})
        require_models(S)
    (_, body, _), = toy.requests
    assert body['top_p'] == .5 and 'seed' not in body and body['model'] == 'toy'

# -- chatter

@pytest.mark.parametrize('lead', [
    'Sure! Here is the reason:\n', "Here's the next step: ", '**Reason:** ', 'Of course! ',
    'Certainly! Here is my explanation for this action:\n\n', 'The reason for the action is: ',
    "Certainly. Here's why: "])
def test_lead_ins(lead):
    assert without_lead_in(lead + 'I need the mug.') == 'I need the mug.'
    assert gather([past_thoughts(ScriptedModel(lambda p: lead + 'I need the mug.'), 'x')])[0].text == 'I need the mug.'

def test_a_lead_in_before_a_line_break():
    "The stop string ends the answer before it began: it is asked again without"
    def answer(body):
        text = 'Sure! Here is the reason:\nI need the mug.]\nmore'
        return text.partition('\n')[0] if body.get('stop') else text
    with ToyServer(answer) as toy:
        lm = ServerModel(f'{toy.url}/chat/completions#toy', thinking=0)
        out, = gather([lm.complete('Task\nact[take mug 1] think[', stop=(']\n', '\n'))])
    assert out.text == 'I need the mug.' and len(toy.requests) == 2 and out.finish == 'stop'

# -- counts

def test_a_filtered_answer_has_its_price():
    used, ends = dict(prompt_tokens=100, completion_tokens=10), iter(['content_filter', 'stop'])
    answer = lambda b: dict(choices=[dict(text='x', finish_reason=next(ends))], usage=used)
    with ToyServer(answer) as toy:
        lm = ServerModel(f'{toy.url}#toy', pause=.01, price=(1, 10))
        gather([lm.complete('Task')])
    assert lm.stats['completion_tokens'] == 20 and lm.stats['cost'] == pytest.approx(4e-4)
    assert lm.stats['retries'] == 1

def test_odd_counts_do_not_break_the_bill():
    "Whole numbers written as fractions, more cached tokens than tokens, DeepSeek's name for them, absurd ones"
    for usage,cached,cost in ((dict(prompt_tokens=10., completion_tokens=2.), 0, 14.),
                              (dict(prompt_tokens=5, prompt_tokens_details=dict(cached_tokens=50)), 5, .5),
                              (dict(prompt_tokens=8, prompt_cache_hit_tokens=4), 4, 4.4),
                              (dict(prompt_tokens=10**400, completion_tokens=1), 0, 2.),
                              (dict(input_tokens=3, output_tokens=1), 0, 5.),
                              (dict(prompt_tokens={}, prompt_tokens_details=5, completion_tokens=1), 0, 2.),
                              (dict(prompt_tokens=3, completion_tokens_details=5), 0, 3.),
                              (dict(total_tokens=9), 0, 0.)):
        answer = lambda b: dict(choices=[dict(text='x', finish_reason='stop')], usage=usage)
        with ToyServer(answer) as toy:
            lm = ServerModel(f'{toy.url}#toy', price=(1e6, 2e6, 1e5))
            gather([lm.complete('Task')])
        assert (lm.stats['cached_tokens'], lm.stats['cost']) == (cached, pytest.approx(cost))

@pytest.mark.parametrize('answer,says', [
    (dict(choices=[dict(text='', finish_reason='content_filter')]), 'content_filter.*2 times; .*use another model'),
    (dict(error=dict(code='content_filter', message='blocked')), 'use another model, or a filter'),
    (dict(choices=[dict(text='', finish_reason='network_error')]), 'network_error.*; look at its log')])
def test_a_filter_that_never_passes_is_named(answer, says):
    with ToyServer(lambda body: answer) as toy, pytest.raises(A3TError, match=says):
        gather([ServerModel(f'{toy.url}#toy', attempts=2, pause=.01).complete('Task')])

def test_secrets_are_no_settings():
    for name in ('api-key', 'X-Api-Key', 'apiKey', 'a.api_key', 'extra_headers', 'token', 'access_token', 'Bearer'):
        for body in ({name:'x'}, dict(metadata=[{name:'x'}])):
            with pytest.raises(A3TError, match='must not be in the settings'): without_keys(body)
    fine = dict(prompt_cache_key='a', max_tokens=3, stop_token_ids=[2], metadata=dict(author='me'), monkey=1)
    assert without_keys(fine) == fine

def test_the_bill_of_a_stage_that_has_not_ended(place):
    with ToyServer(teacher) as toy:
        S = dict(opening='prompted', opening_model=f'{toy.url}#teacher', actre='base')
        run, settings = open_run('data/runs/a', 'smoke', S)
        Meter(stage_folder(run, 'explore', 0)/'explore.work'/'usage', 'opening_model').add(dict(prompt_tokens=70))
    used, = run_usage(run, settings)
    assert (used['stage'], used['role'], used['prompt_tokens']) == ('explore', 'opening_model', 70)

def test_counts_that_are_no_numbers_are_none():
    answer = lambda b: dict(choices=[dict(text='x', finish_reason='stop')], usage=dict(
        prompt_tokens='12', completion_tokens=None, prompt_tokens_details=[3]))
    with ToyServer(answer) as toy:
        lm = ServerModel(f'{toy.url}#toy')
        assert gather([lm.complete('Task')])[0].text == 'x' and lm.stats['unmetered'] == 1

def test_cached_tokens_have_their_price():
    used = dict(prompt_tokens=1000, completion_tokens=100, prompt_tokens_details=dict(cached_tokens=600))
    answer = lambda b: dict(choices=[dict(text='x', finish_reason='stop')], usage=used)
    for price,cost in (((1, 10), 2e-3), ((1, 10, .5), 1.7e-3)):
        with ToyServer(answer, [500]) as toy, counting() as counts:
            lm = ServerModel(f'{toy.url}#toy', price=price, pause=.01)
            gather([lm.complete('Task')])
        assert counts['cost'] == pytest.approx(cost) == lm.stats['cost'] and counts['cached_tokens'] == 600
        assert (counts['requests'], counts['retries']) == (1, 1)

@pytest.mark.parametrize('processes', [1, 2])
def test_local_tokens(folder, tmp_path, processes):
    lm = language_model(folder, device='cpu', slots=4)
    metered = Metered(lm, Meter(tmp_path, 'model'))
    outs = gather([metered.complete(f'look at mug {i}', max_tokens=5, seed=i) for i in range(6)], processes=processes)
    used = read_usage(tmp_path)['model']
    assert used['prompt_tokens'] == sum(o.prompt_tokens for o in outs) > used.get('cached_tokens', 0)
    assert used['completion_tokens'] == sum(len(o.token_ids) for o in outs)
    assert used['requests'] == 6 and used['seconds'] > 0

def test_counts_outlive_a_kill(tmp_path):
    "Killed after 3 answers without a chance to say so"
    if not (pid := os.fork()):
        meter = Meter(tmp_path, 'model')
        for _ in range(3): meter.add(dict(requests=1, prompt_tokens=10))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    Meter(tmp_path, 'model').add(dict(requests=1))
    assert read_usage(tmp_path) == dict(model=dict(requests=4, prompt_tokens=30))

# -- a whole loop

PLACES = ('desk', 'drawer', 'shelf', 'table')

def teacher(body):
    "Plays the toy house from what the prompt shows"
    text = ''.join(body['prompt']).rpartition('Task: ')[2]
    if not (goal := re.match(r'put the (\w+) on the (\w+)\.', text)): return 'OK'
    (thing, place), been = goal.groups(), re.findall(r'At the (\w+) you see (.*)', text)
    at, seen = been[-1] if been else ('', '')
    if f'You take the {thing}.' in text: act = f'put {thing}' if at == place else f'go to {place}'
    elif thing in seen: act = f'take {thing}'
    else: act = 'go to ' + random.Random(body['seed']).choice([p for p in PLACES if p not in [b for b,_ in been]])
    return f'Sure! think[I need the {thing}.] act[{act}]\n'

def writer(body):
    "A chat model that announces its reasons"
    text = 'Sure! Here is the reason:\nIt may help.]'
    return text.partition('\n')[0] if body.get('stop') else text

def play_panel(run, toy):
    "The teacher plays four tasks in the stage baselines"
    open_run(run, 'smoke', dict(opening='prompted', opening_model=f'{toy.url}#teacher', actre='base', slots=2,
                                server={'opening_model':{'attempts':2, 'pause':.01, 'limit':1}}))
    stage = open_stage('baselines', run)
    env = stage.environment()
    lm = stage.model('opening_model')
    policy = ReAct.from_settings(stage.settings, lm, env, trained=False)
    return stage, stage.trials('teacher', stage.panel(env, 'unseen', 4), policy, lm, 'teacher')

def test_a_server_that_dies_in_mid_run(place):
    "One line; started again, the run asks only for what it lacks, and the bill holds both attempts"
    with ToyServer(teacher) as toy:
        _, whole = play_panel('data/runs/whole', toy)
        needed = len(toy.requests)
        toy.requests.clear()
        toy.failures = ['']*(needed//2) + ['cut']*9
        with pytest.raises(A3TError, match='does not work: .*start it .*then start again: finished work is kept') as e:
            play_panel('data/runs/a', toy)
        cuts = 9 - len(toy.failures)
        assert '\n' not in str(e.value) and cuts
        toy.failures.clear()
        stage, episodes = play_panel('data/runs/a', toy)
        assert [t.steps for t in episodes] == [t.steps for t in whole] and any(t.won for t in whole)
        used = read_usage(stage.work/'usage')['opening_model']
    asked = sum(b['prompt'] != 'OK' for _,b,_ in toy.requests)
    assert used['requests'] == asked - cuts and used['retries']
    assert needed - 1 <= used['requests'] < needed + needed//2 - 2 # the first wave is not asked again

@pytest.mark.slow
def test_a_whole_loop_with_three_models(project):
    "Two on servers, one on this machine; the bill is that of the servers"
    with ToyServer(teacher) as one, ToyServer(writer) as two:
        roles = dict(opening_model=f'{one.url}#teacher', actre_model=f'{two.url}/chat/completions#writer')
        prices = dict(opening_model=dict(price=[1., 2.]), actre_model=dict(price=[3., 4.], thinking=0))
        p = project.a3t('run', 'smoke', '--name', 'a', '--set', 'opening=prompted', 'opening_trials=2', 'actre=base',
                        *(f'{k}={v}' for k,v in roles.items()), f'server={prices}', 'train_tasks=4', 'eval_tasks=3',
                        'round_tasks=3', 'compositions=1')
        assert p.returncode == 0, p.stderr
    run = project.run('a')
    report = read_json(run/'report.json')
    used = {(u['stage'], u['round'], u['role']):u for u in report['usage']}
    assert {(s, r) for s,r,role in used if role == 'opening_model'} == {('baselines', 0), ('explore', 0)}
    assert {(s, r) for s,r,role in used if role == 'actre_model'} == {('explore', 1)}
    assert {(s, r) for s,r,role in used if role == 'model'} == {
        ('baselines', 0), ('explore', 1), *((s, r) for s in ('train', 'evaluate') for r in (0, 1))}
    for role,toy,(new,out) in (('opening_model', one, (1, 2)), ('actre_model', two, (3, 4))):
        mine = [u for k,u in used.items() if k[2] == role]
        probe = [b for _,b,_ in toy.requests if b.get('prompt') == 'OK' or b.get('max_tokens') == 16]
        assert sum(u['requests'] for u in mine) == len(toy.requests) - len(probe), role
        bill = sum(u['prompt_tokens']*new + u['completion_tokens']*out for u in mine)/1e6
        assert sum(u['cost'] for u in mine) == pytest.approx(bill, abs=1e-5) and bill > 0
    assert all(u['seconds'] > 0 for k,u in used.items() if k[2] == 'model')
    found = read(stage_folder(run, 'explore', 0)/'trajectories')
    assert read_manifest(run, 'explore', 0)['facts']['trajectories'] == 8 # two trials; equal ones are stored once
    assert 4 < len(found) <= 8 and len({t.task for t in found}) == 4 and any(t.won for t in found)
    assert {t.source for t in found} == {'prompted'} and read_manifest(run, 'train', 0)['facts']['failed'] == 0
    stored = read(stage_folder(run, 'explore', 1)/'trajectories')
    assert {t.source for t in stored} == {'policy', 'composed'}
    composed = [s for t in stored for s in t.steps if s.actor == 'sampled']
    assert composed and {s.reason for s in composed} == {'It may help.'}
    assert '<h2>Costs</h2>' in (run/'report.html').read_text() and 'teacher' in report['baselines']
    assert cost_table(report).loc[('all', '', ''), 'money'] == f"{sum(u.get('cost', 0) for u in used.values()):,.4f}"

@pytest.mark.slow
def test_a_teacher_that_wins_nothing_is_one_line(project):
    p = project.a3t('run', 'smoke', '--name', 'a', '--set', 'opening=prompted', 'opening_trials=2', 'actre=base',
                    'max_steps=1', 'train_tasks=2', 'eval_tasks=1')
    one_line_error(p, 'no episode won any of 2 tasks in opening_trials = 2; set opening_model to a stronger model')

def test_a_run_of_an_earlier_version_is_one_line(place):
    "Resumed by a3t run, with its preset"
    run, _ = open_run('data/runs/a', 'smoke')
    old = read_json(run/'run.json')
    for k in ('opening_model', 'actre_model', 'opening_trials'): del old['settings'][k]
    write_json(run/'run.json', old)
    missing = 'actre_model, opening_model, opening_trials'
    with pytest.raises(A3TError, match=f'earlier version, without the settings {missing}: '):
        open_run('data/runs/a', 'smoke')
    assert run_usage(run, old['settings']) == []

def test_a_chat_template_is_needed_before_the_first_request(place):
    "By each role with a local model, and by the weights that learn though a server acts with them"
    folder = place/'plain'
    tiny_model(folder)
    with ToyServer(lambda body: 'OK') as toy:
        chat = f'{toy.url}/chat/completions#toy'
        for role, changes in (('actre_model', {}), ('model', dict(actre_model=chat, opening_model=chat)),
                              ('opening_model', dict(actre_model=chat, model=chat, opening_model=str(folder)))):
            S = settings(opening='prompted', actre='base', format='chat') | dict(model=str(folder)) | changes
            with pytest.raises(A3TError, match='has no chat template: set format') as e: require_template(S, role)
            setting = 'model' if role == 'actre_model' else role # which is empty
            assert str(e.value).startswith(f'{setting} = {folder}, format = chat: ') and '\n' not in str(e.value)
        with pytest.raises(A3TError, match='has no chat template'): require_models(S | dict(model=str(folder)))
        S = settings(format='chat', model=f'{toy.url}/chat/completions#{folder}')
        with pytest.raises(A3TError, match='has no chat template'): require_models(S)
        assert not toy.requests
        require_template(S | dict(actre_model=chat), 'actre_model')

@pytest.mark.parametrize('model,says', [
    ('htp://host/v1#name', 'does not begin with htp (did you mean http?): write http:// or https:// before the host'),
    ('HTTPS://host/v1#name', 'did you mean https?'), ('http:/host/v1#name', 'begins with http:// or https://'),
    ('s3://bucket/model', 'does not begin with s3: write')])
def test_an_address_that_begins_wrong(model, says):
    for role in ROLES:
        S = settings(opening='prompted', actre='base') | {role:model}
        with pytest.raises(A3TError, match=re.escape(says)) as e: check_settings(S)
        assert '\n' not in str(e.value)

"Other people's episodes: each way of tampering is named, honest sets pass, and no file breaks the reader"
import gzip, json, lzma, re
from dataclasses import replace
import pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from a3t.accumulate import append
from a3t.cli import main
from a3t.core import A3TError, Step, Trajectory, to_row
from a3t.files import read_json
from a3t.envs.alfworld.games import Games, mini_games, pack_games, unpack_games
from a3t.envs.alfworld.generator import generate_games
from a3t.envs.alfworld.panels import make_panel, official_share, published
from a3t.envs.alfworld.simulator import AlfSim
from a3t.envs.panel import Panel
from a3t.exchange.formats import action_of, record, records
from a3t.exchange.names import Index, name_parts, same_words
from a3t.exchange.panel import _from_settings, panel_data, read_panel, source_games
from a3t.exchange.verify import Check, verify_file

QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck))

@pytest.fixture(scope='module')
def games(): return generate_games(3, train=12, seen=6, unseen=12, rooms=2, unseen_rooms=1)

@pytest.fixture(scope='module')
def source(games, tmp_path_factory):
    "The games as a packed file"
    path = tmp_path_factory.mktemp('games')/'games.jsonl.xz'
    pack_games(games, path)
    return path

@pytest.fixture
def honest(games):
    "An episode of each unseen game: the solution, and two that look around in vain"
    tasks = games.tasks('unseen')
    won = [dict(task=t, actions=['look', 'xyzzy', *games[t].walkthrough], won=True) for t in tasks[2:]]
    return [dict(task=t, actions=['look']*50, won=False) for t in tasks[:2]] + won

def write(path, episodes):
    path.write_text(''.join(json.dumps(e) + '\n' for e in episodes))
    return path

def verified(path, source, *more, other=()):
    "Exit status and JSON of the command"
    out = path.parent/'out.json'
    status = main(['verify', str(path), *map(str, other), '--games', str(source), '--json', str(out), *map(str, more)])
    return status, read_json(out)

def kinds(res): return {(p['kind'], p['task']) for p in res['problems']}

def test_an_honest_set_passes(tmp_path, honest, source, capsys):
    status, res = verified(write(tmp_path/'x.jsonl', honest), source)
    assert status == 0 and res['problems'] == [] and res['holds']
    assert (res['n'], res['successes'], res['claimed'], res['invalid']) == (12, 10, 10, 10)
    assert res['ci95'][0] < 10/12 < res['ci95'][1] and sum(s['n'] for s in res['by_type'].values()) == 12
    assert res['panel']['name'] == 'unseen' and res['panel']['n'] == 12
    text = capsys.readouterr().out
    assert 'every claim holds' in text and 'Not verified: who chose the actions' in text

# -- ten ways of tampering, and some more

def changed_action(es, games):
    es[5]['actions'][-1] = 'look'
    return {('claim', es[5]['task'])}

def game_twice(es, games):
    es.append(es[4])
    return {('doubled', es[4]['task'])}

def another_split(es, games):
    task, seen = es[6]['task'], games.tasks('seen')[0]
    es[6].update(task=seen, actions=list(games[seen].walkthrough))
    return {('split', seen), ('missing', task)}

def written_as_another_split(es, games):
    task = es[6]['task']
    es[6]['task'] = task.replace('valid_unseen/', 'valid_seen/')
    return {('unknown', es[6]['task']), ('missing', task)}

def invented_success(es, games):
    es[0]['won'] = True
    return {('claim', es[0]['task'])}

def hidden_success(es, games):
    es[3]['won'] = False
    return {('claim', es[3]['task'])}

def missing_game(es, games):
    return {('missing', es.pop(7)['task'])}

def beyond_the_limit(es, games):
    es[8]['actions'] = ['look']*50 + es[8]['actions']
    return {('claim', es[8]['task']), ('steps', es[8]['task'])}

def after_the_end(es, games):
    es[9]['actions'].append('look')
    return {('after', es[9]['task'])}

def unknown_task(es, games):
    es.append(dict(task='valid_unseen/pick_and_place_simple-Pen-None-Desk-301/trial_T1', actions=[], won=False))
    return {('unknown', es[-1]['task'])}

def edited_reward(es, games):
    es[1]['reward'] = 1.
    return {('claim', es[1]['task'])}

def another_game(es, games):
    es[3]['actions'], es[4]['actions'] = es[4]['actions'], es[3]['actions']
    return {('claim', es[3]['task']), ('claim', es[4]['task'])}

def no_claim(es, games):
    del es[2]['won']
    return {('unreadable', ''), ('missing', es[2]['task'])}

@pytest.mark.parametrize('tamper', [changed_action, game_twice, another_split, written_as_another_split,
                                    invented_success, hidden_success, missing_game, beyond_the_limit, after_the_end,
                                    unknown_task, edited_reward, another_game, no_claim])
def test_tampering_is_named(tmp_path, honest, games, source, tamper):
    wanted = tamper(honest, games)
    status, res = verified(write(tmp_path/'x.jsonl', honest), source)
    assert status == 1 and not res['holds']
    assert kinds(res) == wanted, res['problems']
    assert all(p['what'] for p in res['problems'])

def altered(games, task, **changes):
    "The same games, one of them with another content"
    return Games('altered', {t:replace(g, **changes) if t == task else g for t,g in games.items()}, lambda _, g: g)

def test_an_altered_game_is_named(tmp_path, honest, games):
    panel = tmp_path/'panel.json'
    panel.write_text(json.dumps(panel_data(make_panel(games, 'unseen'), 'unseen')))
    task = honest[4]['task']
    problem = games[task].problem.replace('(:init', '(:init\n    ', 1)
    pack_games(altered(games, task, problem=problem), tmp_path/'g.jsonl.xz')
    file = write(tmp_path/'x.jsonl', honest)
    status, res = verified(file, tmp_path/'g.jsonl.xz', '--panel', panel)
    assert status == 1 and kinds(res) == {('altered', task)} and res['n'] == 11
    assert verified(file, tmp_path/'g.jsonl.xz')[0] == 0 # nobody has recorded the hashes of generated games

def test_an_altered_published_game_is_named(tmp_path):
    task, mini = next(iter(published()['unseen'])), next(iter(mini_games().values()))
    pack_games([replace(mini, task=task)], tmp_path/'g.jsonl.xz')
    file = write(tmp_path/'x.jsonl', [dict(task=task, actions=list(mini.walkthrough), won=True)])
    status, res = verified(file, tmp_path/'g.jsonl.xz')
    assert status == 1 and ('altered', task) in kinds(res) and res['n'] == res['successes'] == 0
    assert sum(p['kind'] == 'missing' for p in res['problems']) == len(published()['unseen']) - 1

def test_a_game_that_cannot_be_replayed_has_no_recorded_hash(tmp_path, games, source, monkeypatch):
    def broken(game, actions, steps): raise A3TError('no such rule')
    monkeypatch.setattr('a3t.exchange.verify.replay', broken)
    check = Check(Index(games), hashes={t:g.hash for t,g in games.items()})
    check.add(record(dict(task=games.tasks('unseen')[0], actions=['look'], won=False), 'x'))
    assert check.problems[0]['kind'] == 'unplayable' and check.totals['listed'] == len(check.won) == 0

def test_a_truncated_file_is_named(tmp_path, honest, source):
    lines = ''.join(json.dumps(e) + '\n' for e in honest).encode()
    for name,data in (('a.jsonl', lines[:-30]), ('b.jsonl.xz', lzma.compress(lines)[:-40]),
                      ('c.jsonl.gz', gzip.compress(lines)[:-20]), ('d.json', json.dumps(honest).encode()[:-30])):
        (tmp_path/name).write_bytes(data)
        status, res = verified(tmp_path/name, source)
        assert status == 1 and 'unreadable' in {k for k,_ in kinds(res)}, name

def test_broken_lines_are_named_and_the_others_count(tmp_path, honest, source):
    file = write(tmp_path/'x.jsonl', honest)
    before = b'\xff\xfe\n{"task": 3, "actions": [], "won": true}\n\n[1, 2]\n'
    file.write_bytes(before + file.read_bytes() + b'{"a": 1}\n' + b'['*100_000 + b'\n')
    status, res = verified(file, source)
    wheres = [p['what'].split(':')[0] for p in res['problems']]
    assert status == 1 and res['n'] == 12
    assert wheres == ['line 1', 'line 2', 'line 4, item 1', 'line 4, item 2', 'line 17', 'line 18']

# -- formats

def trajectory(e, games):
    "An episode with the words of the game"
    env = AlfSim(games)
    first, info = env.reset(options={'task':e['task']})
    steps = []
    for a in e['actions']:
        text, reward, won, _, info = env.step(a)
        steps.append(Step('because', a, text, valid=info['valid']))
    return Trajectory(e['task'], info['task_type'], info['goal'], first, tuple(steps), float(e['won']), e['won'])

def as_agentgym(t, goal):
    said = [('human', 'Interact with a household.'), ('gpt', "OK. I'll follow your instructions."),
            ('human', f'{t.observation}\n\nYour task is to: {goal}\nAVAILABLE ACTIONS: look')]
    for s in t.steps: said += [('gpt', f'Thought:\n{s.reason}\n\nAction:\n{s.action}'), ('human', s.observation)]
    return dict(item_id='_'.join(t.task.split('/')[1:]), reward=t.reward, conversations=[
        {'from':f, 'loss':f == 'gpt' or None, 'value':v} for f,v in said])

def as_eto(t, goal):
    d = as_agentgym(t, goal)
    for m in d['conversations']: m.pop('loss')
    path = f'eval_agent/data/alfworld/json_2.1.1/{t.task}/game.tw-pddl'
    return dict(meta=dict(task_id=3, reward=t.won, success=t.won, error=path), conversations=d['conversations'])

def as_openai(t, goal):
    said = [dict(role='system', content='Play.'),
            dict(role='user', content=f'{t.observation}\n\nYour task is to: {goal}')]
    for i,s in enumerate(t.steps):
        call = dict(id=f'c{i}', type='function', function=dict(name='act', arguments=json.dumps(dict(action=s.action))))
        said += [dict(role='assistant', content=None, tool_calls=[call]),
                 dict(role='tool', tool_call_id=f'c{i}', content=s.observation)]
    return dict(id=t.task, success=t.won, messages=said)

def as_atif(t, goal):
    steps = [dict(step_id=1, source='user', message=f'{t.observation}\n\nYour task is to: {goal}')]
    for i,s in enumerate(t.steps, 2):
        call = dict(tool_call_id=f'c{i}', function_name='act', arguments=dict(action=s.action))
        result = dict(source_call_id=f'c{i}', content=[dict(type='text', text=s.observation)])
        steps.append(dict(step_id=i, source='agent', message='', reasoning_content=s.reason, tool_calls=[call],
                          observation=dict(results=[result])))
    return dict(schema_version='ATIF-v1.7', session_id='s', agent=dict(name='a', version='1'), steps=steps,
                extra=dict(game_file=t.task, won=t.won))

@pytest.mark.parametrize('form', [as_agentgym, as_eto, as_openai, as_atif])
@pytest.mark.parametrize('how', ['lines', 'list', 'gz', 'folder'])
def test_every_format_says_the_same(tmp_path, honest, games, source, form, how):
    made = [form(trajectory(e, games), games[e['task']].goal) for e in honest]
    file = tmp_path/('x' if how == 'folder' else 'x.json')
    if how == 'lines': write(file, made)
    if how == 'list': file.write_text(json.dumps(made, indent=2))
    if how == 'gz': file.write_bytes(gzip.compress('\n'.join(map(json.dumps, made)).encode()))
    if how == 'folder':
        file.mkdir()
        for i,m in enumerate(made): (file/f'{i}.json').write_text(json.dumps(m, indent=1))
    status, res = verified(file, source)
    assert status == 0, res['problems']
    assert (res['n'], res['successes'], res['claimed'], res['invalid']) == (12, 10, 10, 10)

def test_a_store_passes_and_its_words_are_checked(tmp_path, honest, games, source):
    made = [trajectory(e, games) for e in honest]
    append(tmp_path/'good', made)
    assert verified(tmp_path/'good', source)[0] == 0
    assert verified(next((tmp_path/'good').glob('*.parquet')), source)[0] == 0
    t = made[4]
    made[4] = replace(t, steps=(replace(t.steps[0], action='inventory'), *t.steps[1:])) # still wins
    append(tmp_path/'bad', made)
    status, res = verified(tmp_path/'bad', source)
    assert status == 1 and kinds(res) == {('observation', t.task)}
    file = next((tmp_path/'good').glob('*.parquet'))
    file.write_bytes(file.read_bytes()[:-9])
    status, res = verified(tmp_path/'good', source)
    assert status == 1 and 'is damaged' in res['problems'][0]['what']

def test_a_run_is_its_last_round(tmp_path, honest, games, source):
    made = [trajectory(e, games) for e in honest]
    append(tmp_path/'run'/'round_00'/'episodes'/'unseen', made[:3])
    append(tmp_path/'run'/'round_01'/'episodes'/'unseen', made)
    (tmp_path/'run'/'run.json').write_text('{}')
    assert verified(tmp_path/'run', source)[0] == 0

def test_an_episode_without_a_name_is_known_by_its_beginning(tmp_path, honest, games, source):
    made = [as_agentgym(trajectory(e, games), games[e['task']].goal) for e in honest]
    index = Index(games)
    found = [index.find(record(dict(m, item_id=f'alfworld_{i}'), 'x'))[0] for i,m in enumerate(made)]
    assert all(f == e['task'] for f,e in zip(found[2:], honest[2:])) # the first two only look around
    assert index.find(record(dict(made[0], item_id='alfworld_1', conversations=[]), 'x')) == ('', 'unknown game')

def test_examples_in_the_prompt_are_not_played():
    example = [{'from':'human', 'value':'You are in the middle of a room. Your task is to: a.'},
               {'from':'gpt', 'value':'Action: wrong'}]
    own = [{'from':'human', 'value':'You are in the middle of a room. Your task is to: b.'},
           {'from':'gpt', 'value':'Action: right'}, {'from':'human', 'value':'You are in the middle of a room.'},
           {'from':'gpt', 'value':'Action: right too'}]
    assert record(dict(id='x', conversations=example + own), '1').actions == ['right', 'right too']

def test_a_prompt_that_restates_room_and_task_loses_no_action():
    start = 'You are in the middle of a room. You see a {}.\n\nYour task is to: look.\n\n'
    def user(place, more=''): return {'from':'human', 'value':start.format(place) + more}
    def act(action): return {'from':'gpt', 'value':f'Action: {action}'}
    example = [user('bed 1'), act('wrong')] # of the same words, in another room
    own = [user('desk 1'), act('first'), user('desk 1', 'So far: first'), act('second')]
    r = record(dict(id='x', conversations=example + own), '1')
    assert r.actions == ['first', 'second'] and 'desk 1' in r.observation

def test_each_of_several_calls_in_a_message_is_a_step():
    def call(id, action): return dict(id=id, function=dict(name='act', arguments=json.dumps(dict(action=action))))
    def answer(id, text): return dict(role='tool', tool_call_id=id, content=text)
    said = [dict(role='user', content='Your task is to: a.'),
            dict(role='assistant', content='Both.', tool_calls=[call('c0', 'look'), call('c1', 'wait')]),
            answer('c1', 'You wait.'), answer('c0', 'You look.'),
            dict(role='assistant', content=None, tool_calls=[call('c0', 'go'), call('c1', 'end')]),
            answer('c0', 'You go.')]
    r = record(dict(task='t', won=False, messages=said), '1')
    assert [(s.reason, s.action, s.observation) for s in r.steps] == [
        ('Both.', 'look', 'You look.'), ('', 'wait', 'You wait.'), ('', 'go', 'You go.'), ('', 'end', '')]

CALLS = [dict(source='agent', tool_calls=[dict(tool_call_id=[1], function_name='act', arguments=dict(action='look'))])]
MALFORMED = [dict(messages=[dict(role='assistant', content='', tool_calls={'a':1})]),
             dict(messages=[dict(role='assistant', content='', tool_calls=5)]),
             dict(actions=['look'], reward=10**400), dict(actions=['look'], won=True, observation='x \ud83d'),
             dict(messages=[dict(role='user', content='x \ud83d')]), dict(actions=[], won=True, task='\ud83d'),
             dict(schema_version='ATIF-v1.7', steps=CALLS), dict(actions=[None], won=True)]

def test_malformed_records_are_unreadable_and_the_others_count(tmp_path, honest, source):
    status, res = verified(write(tmp_path/'x.jsonl', [*MALFORMED, *honest]), source)
    assert status == 1 and res['n'] == 12 and [p['kind'] for p in res['problems']] == ['unreadable']*len(MALFORMED)

def test_a_row_without_an_action_is_unreadable(tmp_path, capsys, source):
    row = to_row(Trajectory('t', 'look', 'g', 'o', (Step('', 'look', 'x'),), 0., False))
    row['steps'] = row['steps'].replace('"action": "look"', '"action": null')
    pq.write_table(pa.Table.from_pylist([row]), tmp_path/'x.parquet')
    assert kinds(verified(tmp_path/'x.parquet', source)[1]) >= {('unreadable', '')}
    assert main(['import', str(tmp_path/'x.parquet'), '--to', str(tmp_path/'s')]) == 1
    assert 'row 1 cannot be read' in capsys.readouterr().err and not (tmp_path/'s').exists()

@pytest.mark.parametrize('text,action', [
    ('Thought: a\nAction: go to desk 1', 'go to desk 1'), ('Action:\n  look  \n', 'look'), ('**Action:** look', 'look'),
    ('THOUGHT: x\nACTION: use desklamp 1', 'use desklamp 1'), ('Act: look', 'look'), ('> look', 'look'), ('', ''),
    ('The action: none\nAction: look', 'look'), ('<think>Action: a</think>\n<action>look</action>', 'look'),
    ('think: Action is needed', ''), ('Action: a\nObservation: b\nAction: c', 'c'), ('go to desk 1', 'go to desk 1')])
def test_actions_in_prose(text, action): assert action_of(text)[1] == action

def test_a_farewell_is_no_action():
    said = [dict(role='user', content='Your task is to: a.'), dict(role='assistant', content='Action: look'),
            dict(role='user', content='x'), dict(role='assistant', content='Done.')]
    assert record(dict(task='t', messages=said), '1').actions == ['look']
    said[1]['content'] = 'look' # nothing is marked
    assert record(dict(task='t', messages=said), '1').actions == ['look', 'Done.']
    step = dict(source='agent', message='look', observation=dict(results=[dict(content='x')]))
    atif = dict(schema_version='ATIF-v1.2', steps=[step, dict(source='agent', message='Done.')], extra=dict(task='t'))
    assert record(atif, '1').actions == ['look']
    step.pop('observation')
    assert record(atif, '1').actions == ['look', 'Done.']

def test_presets_and_runs_are_sources(tmp_path, monkeypatch):
    made = {'train':3, 'seen':2, 'unseen':2, 'rooms':1, 'unseen_rooms':1}
    (tmp_path/'run.json').write_text(json.dumps(dict(settings=dict(environment='alfworld', games='generated',
                                                                  generator=made))))
    monkeypatch.setenv('A3T_DATA', str(tmp_path/'data'))
    assert dict(source_games(str(tmp_path))) == dict(generate_games(**made))
    with pytest.raises(A3TError, match='has the environment cooking'): source_games('cpu-cooking')

def test_presets_of_the_package_and_of_ones_own_are_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text('[mine]\nextends = cpu\n')
    assert _from_settings('mine', 3) == _from_settings('cpu', 3) and _from_settings('x.xz', 3) == ('x.xz', None)

NAME = 'pick_and_place_simple-Pen-None-Desk-301', 'trial_T20190909_012345_678901'

@pytest.mark.parametrize('form', [
    '{0}/{1}', '{0}/{1}/game.tw-pddl', 'valid_seen/{0}/{1}', 'seen/{0}/{1}',
    '/data/json_2.1.1/valid_seen/{0}/{1}/game.tw-pddl',
    'C:\\data\\valid_seen\\{0}\\{1}\\traj_data.json', '{0}_{1}', '{1}', ' valid_seen/{0}/{1}/ '])
def test_games_are_found_as_people_write_them(form):
    game = replace(next(iter(mini_games().values())), task='/'.join(('valid_seen', *NAME)))
    index = Index(Games('x', {game.task:game}, lambda _, g: g))
    r = record(dict(task=form.format(*NAME), actions=[], won=False), 'line 1')
    assert index.find(r) == (game.task, '')

@given(st.text(max_size=60))
@settings(max_examples=100, **QUIET)
def test_any_name_has_three_parts(text): assert len(name_parts(text)) == 3

def test_words_of_older_versions_agree():
    assert same_words('You put the mug 1 in/on the desk 1.', 'You move the mug 1 to the desk 1.')
    assert same_words(' On the desk 1, you see nothing.', 'You arrive at desk 1. On the desk 1, you see nothing.')
    assert not same_words('You open the safe 1.', 'You close the safe 1.')

# -- whatever the file holds

WORDS = ('task', 'actions', 'won', 'conversations', 'messages', 'steps', 'meta', 'extra', 'reward', 'from', 'value',
         'role', 'content', 'schema_version', 'tool_calls', 'function', 'arguments', 'observation', 'results', 'source',
         'final_metrics', 'observations')
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda x: st.lists(
    x, max_size=4) | st.dictionaries(st.sampled_from(WORDS), x, max_size=5), max_leaves=20)
KEYS = st.fixed_dictionaries({}, optional={**dict.fromkeys(WORDS[:9], JSON), 'schema_version':st.just('ATIF-v1.6')})

@given(KEYS | JSON)
@settings(max_examples=150, **QUIET)
def test_any_json_is_a_record(obj):
    r = record(obj, 'x')
    assert r.fault or all(isinstance(a, str) for a in r.actions)
    if not r.fault: assert isinstance(r.task, str) and r.claim in (None, True, False) and isinstance(r.observation, str)

HEADS = b'', b'PAR1', b'\xfd7zXZ\x00', b'\x1f\x8b', b'[', b'{"actions":[],"won":true}\n'

@given(st.binary(max_size=80), st.sampled_from(HEADS))
@settings(max_examples=150, **QUIET)
def test_any_bytes_are_read(tmp_path_factory, data, head):
    path = tmp_path_factory.mktemp('x')/'x'
    path.write_bytes(head + data)
    for r in records(path): assert r.fault or r.where

def test_terminals_are_safe(tmp_path, source, capsys):
    write(tmp_path/'x.jsonl', [dict(task='\x1b[2J\nPROBLEM', actions=['\x07'], won=True)])
    assert verified(tmp_path/'x.jsonl', source)[0] == 1
    assert '\x1b' not in capsys.readouterr().out

@pytest.mark.parametrize('words,contains', [
    (('verify', 'nowhere.jsonl'), 'there is no'), (('verify', '{empty}'), 'holds no episodes'),
    (('verify', '{x}', '--games', 'nowhere.xz'), 'no AlfWorld games at'),
    (('verify', '{x}', '--steps', '0'), 'leaves no step'),
    (('verify', '{x}', '--panel', 'unsean'), 'did you mean unseen?'),
    (('verify', '{x}', '--panel', '{x}'), 'is not valid JSON'),
    (('verify', '{folder}'), 'holds no episodes'), (('panel', 'unsean'), 'did you mean unseen?'),
    (('panel', '--check', '{x}'), 'is not valid JSON'), (('panel', '--json', 'p.json'), '--json needs the NAME'),
    (('panel', 'paper-valid', '--n', '3'), 'omit --n'), (('verify', '{x}', '--json', '{folder}'), 'is a folder')])
def test_errors_are_one_line(tmp_path, honest, source, capsys, words, contains):
    places = dict(x=write(tmp_path/'x.jsonl', honest), empty=tmp_path/'empty', folder=tmp_path/'folder')
    places['empty'].touch(), places['folder'].mkdir()
    words = [w.format(**places) for w in words]
    if '--games' not in words and 'panel' not in words[:1]: words += ['--games', str(source)]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert contains in err and err.count('\n') == 1

# -- panels and pairs

def test_a_part_of_the_training_games_is_no_fault(tmp_path, games, source):
    tasks = games.tasks('train')
    es = [dict(task=t, actions=list(games[t].walkthrough), won=True) for t in tasks]
    assert verified(write(tmp_path/'x.jsonl', es[:4]), source)[0] == 0
    status, res = verified(write(tmp_path/'x.jsonl', es[:4]), source, '--panel', 'train')
    assert status == 1 and kinds(res) == {('missing', t) for t in tasks[4:]}
    assert kinds(verified(write(tmp_path/'x.jsonl', es[:-1]), source)[1]) == {('missing', tasks[-1])}

def test_two_whole_splits_are_one_panel(tmp_path, honest, games, source):
    seen = [dict(task=t, actions=list(games[t].walkthrough), won=True) for t in games.tasks('seen')]
    status, res = verified(write(tmp_path/'x.jsonl', honest + seen), source)
    assert status == 0 and res['panel']['name'] == 'seen and unseen' and res['n'] == 18

def test_two_files_are_compared(tmp_path, honest, source):
    lazy = [dict(e, actions=['look'], won=False) for e in honest]
    a, b = write(tmp_path/'a.jsonl', honest), write(tmp_path/'b.jsonl', lazy)
    status, res = verified(a, source, other=[b])
    assert status == 0 and res['paired'] == dict(n=12, both=0, only_first=10, only_second=0, neither=2, p=2/2**10)
    assert res['second']['successes'] == 0 and res['successes'] == 10
    lazy[0]['won'] = True
    status, res = verified(a, source, other=[write(b, lazy)])
    assert status == 1 and [(p['file'], p['kind']) for p in res['problems']] == [('b.jsonl', 'claim')]

def test_official_folders_with_a_broken_file(tmp_path, honest, games, capsys):
    folder = unpack_games(games, tmp_path/'json_2.1.1')
    file = write(tmp_path/'x.jsonl', honest)
    assert verified(file, tmp_path)[0] == 0
    (folder/games.tasks('seen')[0]/'game.tw-pddl').write_text('{"pddl_')
    assert verified(file, tmp_path)[0] == 0 and '1 game files cannot be read' in capsys.readouterr().out
    task = honest[3]['task']
    (folder/task/'game.tw-pddl').write_text('{"pddl_')
    status, res = verified(file, tmp_path)
    assert status == 1 and kinds(res) == {('unknown', task)} and 'is not valid JSON' in res['problems'][0]['what']

def test_a_panel_is_written_checked_and_guarded(tmp_path, games, source):
    file, g = tmp_path/'p.json', ['--games', str(source)]
    assert main(['panel', 'unseen', *g, '--n', '6', '--seed', '2', '--json', str(file)]) == 0
    assert read_panel(file) == make_panel(games, 'unseen', 6, seed=2) and isinstance(read_panel(file), Panel)
    assert main(['panel', '--check', str(file), *g]) == 0
    d = read_json(file)
    task = next(iter(d['games']))
    pack_games(altered(games, task, goal=games[task].goal), tmp_path/'same.xz')
    pack_games([g for t,g in games.items() if t != task], tmp_path/'less.xz')
    assert main(['panel', '--check', str(file), '--games', str(tmp_path/'same.xz')]) == 0
    assert main(['panel', '--check', str(file), '--games', str(tmp_path/'less.xz')]) == 1
    for change in (dict(games={**d['games'], task:'0'*64}), dict(hash='0'), dict(n=5), dict(games=[])):
        file.write_text(json.dumps({**d, **change}))
        with pytest.raises(A3TError, match='edited|is not a panel'): read_panel(file)

def test_a_panel_of_generated_games_knows_its_seed(tmp_path):
    file, g = tmp_path/'p.json', ['--games', 'generated']
    assert main(['panel', 'seen', *g, '--seed', '7', '--n', '5', '--json', str(file)]) == 0
    assert main(['panel', '--check', str(file), *g]) == 0
    assert main(['panel', '--check', str(file), *g, '--seed', '8']) == 1

def test_a_panel_of_the_project_is_checked_from_another_folder(tmp_path, source, monkeypatch):
    monkeypatch.setenv('A3T_DATA', str(tmp_path/'data'))
    (tmp_path/'data').mkdir()
    monkeypatch.chdir(tmp_path)
    g = ['--games', str(source)]
    assert main(['panel', 'seen', *g, '--json', 'data/p.json']) == 0 and (tmp_path/'data'/'p.json').is_file()
    (tmp_path/'below').mkdir()
    monkeypatch.chdir(tmp_path/'below')
    assert main(['panel', '--check', 'data/p.json', *g]) == 0

def test_published_panels_have_their_hashes(capsys):
    assert main(['panel']) == 0
    text = capsys.readouterr().out
    for p in published().values(): assert p.hash in text
    assert len(re.findall(r'[0-9a-f]{16}', text)) == 5
    assert '(67 of the official 134 unseen games)' in text and '(140 of the official 140 seen games)' in text
    assert official_share(published()['paper-train']) == official_share({}) == ''
    both = {**published()['seen'], **published()['unseen']}
    assert official_share(both) == '140 of the official 140 seen and 67 of the official 134 unseen'

def test_the_step_limit_is_the_users(tmp_path, honest, games, source):
    file = write(tmp_path/'x.jsonl', honest)
    res = verify_file(file, Index(games), steps=8)
    assert res['successes'] == sum(len(e['actions']) <= 8 and e['won'] for e in honest) < 10

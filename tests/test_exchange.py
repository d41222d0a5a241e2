"Trajectories out and in: what can be carried is carried, field by field, and the rest is named"
import json, weakref
from dataclasses import replace
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from a3t.accumulate import append, read, stores
from a3t.cli import main
from a3t.core import Step, Trajectory, trajectory_id
from a3t.files import results_folder
from a3t.exchange.dataset import COLUMNS, DATASET, Totals, card, dataset_row, made_by
from a3t.exchange.export import trajectories
from a3t.exchange.formats import record, records
from a3t.exchange.messages import atif, chat, completion, from_atif, from_chat, messages, pair
from a3t.exchange.weights import weights_card
from a3t.models.base import Completion

QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck))

# -- any trajectory: texts with line breaks, labels, and odd characters

TEXT = st.one_of(st.text(st.characters(exclude_categories=('Cs',)), max_size=20),
                 st.lists(st.sampled_from(['Thought: ', 'Action: ', '\n', 'look', '\n\nYour task is to: ', ' ',
                                           '\u2028',
                                           '<action>', '"', '\\', '\0', 'think: x', '\r\n', '{', 'Observation: ']),
                          max_size=7).map(''.join))
STEP = st.builds(Step, TEXT, TEXT, TEXT, st.sampled_from(['policy', 'sampled']), st.booleans(), st.booleans())
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
ANY = st.builds(Trajectory, task=TEXT, task_type=TEXT, goal=TEXT, observation=TEXT,
                steps=st.lists(STEP, max_size=4).map(tuple), reward=NUMBER, won=st.booleans(), source=TEXT,
                round=st.integers(0, 99), seed=st.integers(0, 2**31 - 1), full=st.booleans())

def test_the_strategy_covers_every_field():
    "A field that is added to `Trajectory` or `Step` must be added here too"
    assert len(Trajectory.__dataclass_fields__) == 11 and len(Step.__dataclass_fields__) == 6

@settings(max_examples=300, **QUIET)
@given(ANY)
def test_chat_loses_nothing(t):
    assert from_chat(json.loads(json.dumps(chat(t)))) == t

@settings(max_examples=300, **QUIET)
@given(ANY)
def test_atif_loses_nothing(t):
    assert from_atif(json.loads(json.dumps(atif(t, model='m')))) == t

@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate], **QUIET) # shrinking takes minutes
@given(st.lists(ANY, min_size=1, max_size=5))
def test_files_lose_nothing(tmp_path_factory, some):
    d = tmp_path_factory.mktemp('x')
    append(d/'store', some)
    for format,name in (('chat', 'c.jsonl'), ('atif', 'a.jsonl.xz'), ('chat', 'c.jsonl.gz'), ('dataset', 'set')):
        assert main(['export', str(d/'store'), '--to', str(d/name), '--format', format]) == 0
        assert main(['import', str(d/name), '--to', str(d/f'from-{name}')]) == 0
        assert read(d/f'from-{name}') == read(d/'store')
        assert [trajectory_id(t) for t in read(d/f'from-{name}')] == [trajectory_id(t) for t in read(d/'store')]

def test_half_a_character_survives_in_a_step(tmp_path):
    t = replace(SEEN, steps=(Step('a\ud83d', 'look\udc00', 'x\ud83d'),))
    append(tmp_path/'store', [t])
    for format in ('chat', 'atif', 'dataset'):
        to = tmp_path/f'{format}.jsonl'
        assert main(['export', str(tmp_path/'store'), '--to', str(to), '--format', format]) == 0
        assert main(['import', str(to), '--to', str(tmp_path/format)]) == 0
        assert read(tmp_path/format) == [t]
    assert dataset_row(t)['messages'][1]['content'] == 'Thought: a?\nAction: look?'

SEEN = Trajectory('valid_seen/look_at_obj_in_light-Pen-None-DeskLamp-308/trial_1', 'look', 'look at the pen.',
                  'You see a desk 1.', (Step('I need it.', 'go to desk 1', 'A pen 1.'),
                                        Step('', 'open pen 1', 'Nothing happens.', 'sampled', False, True),
                                        Step('Now.', 'take pen 1 from desk 1', 'You pick it up.')), 1., True,
                  'composed', 3, 9)
LOST = replace(SEEN, steps=SEEN.steps[:2], won=False, reward=0., source='policy')

# -- what the forms look like

def test_chat_is_openai_messages_with_a_loss_mask():
    d = chat(SEEN)
    assert [m['role'] for m in d['messages']] == ['user', 'assistant']*3 + ['user']
    assert d['messages'][1]['content'] == 'Thought: I need it.\nAction: go to desk 1'
    assert [m.get('weight', 1) for m in d['messages'] if m['role'] == 'assistant'] == [1, 0, 1]
    assert all(m.get('weight') == 0 for m in chat(LOST)['messages'] if m['role'] == 'assistant')
    assert 'steps' in d['a3t'] and 'observation' not in d['a3t'] # usual texts are written once

def atif_faults(d):
    "What breaks the rules of ATIF 1.7, as its reference models state them"
    assert set(d) == {'schema_version', 'session_id', 'trajectory_id', 'agent', 'steps', 'final_metrics', 'extra'}
    assert d['schema_version'] == 'ATIF-v1.7'
    assert {'name', 'version'} <= set(d['agent']) <= {'name', 'version', 'model_name'}
    assert [s['step_id'] for s in d['steps']] == list(range(1, len(d['steps']) + 1))
    assert d['final_metrics'] == {'total_steps':len(d['steps'])}
    for s in d['steps']:
        own = {'step_id', 'source', 'message', 'extra'}
        agent = {'reasoning_content', 'tool_calls', 'observation', 'metrics'}
        assert set(s) <= (own | agent if s['source'] == 'agent' else own) and isinstance(s['message'], str)
        calls = {c['tool_call_id'] for c in s.get('tool_calls', ())}
        assert {r['source_call_id'] for r in s.get('observation', {'results':()})['results']} == calls
        assert all(set(c) == {'tool_call_id', 'function_name', 'arguments'} for c in s.get('tool_calls', ()))

def test_atif_follows_its_rules():
    atif_faults(atif(SEEN))
    d = atif(SEEN, [Completion('x', [5, 6], [-.5, -.25], 31, 'stop'), None, None], 'smollm2-135m')
    atif_faults(d)
    assert d['steps'][1]['metrics'] == dict(prompt_tokens=31, completion_tokens=2, completion_token_ids=[5, 6],
                                            logprobs=[-.5, -.25])
    assert d['steps'][1]['reasoning_content'] == 'I need it.' and 'reasoning_content' not in d['steps'][2]
    assert d['steps'][2]['extra'] == dict(actor='sampled', valid=False, cut=True)
    assert 'metrics' not in d['steps'][2] and d['agent']['model_name'] == 'smollm2-135m'

def test_trl_rows():
    d = completion(SEEN)
    assert d['prompt'] == messages(SEEN)[:1] and d['completion'][-1]['content'].endswith('take pen 1 from desk 1')
    p = pair(SEEN, LOST)
    assert p['prompt'] == d['prompt'] and p['chosen'] == d['completion'] and len(p['rejected']) == 3

# -- edits, and files of others

def test_an_edit_is_read_and_noticed(tmp_path, capsys):
    odd = replace(SEEN, steps=(Step('a\nAction: b', 'c\nAction: d', 'x'),))
    d = chat(odd)
    d['messages'][1]['content'] = 'Thought: Better.\nAction: go to bed 1'
    r = record(d, 'line 1')
    assert r.edited and r.whole.steps[0] == Step('Better.', 'go to bed 1', 'x')
    assert not record(chat(odd), 'line 1').edited
    (tmp_path/'x.jsonl').write_text(json.dumps(d) + '\n')
    assert main(['import', str(tmp_path/'x.jsonl'), '--to', str(tmp_path/'s')]) == 0
    assert '1 were edited' in capsys.readouterr().out

def test_a_system_message_may_stand_first():
    d = chat(SEEN)
    d['messages'].insert(0, dict(role='system', content='Be good.'))
    assert from_chat(d) == SEEN

def test_others_episodes_are_imported_as_far_as_they_tell(tmp_path, capsys):
    foreign = [dict(task=SEEN.task, actions=['look'], won=True),
               dict(id='alfworld_3', messages=[dict(role='user', content='A room.\n\nYour task is to: look.'),
                                               dict(role='assistant', content='Thought: x\nAction: look')], reward=.5)]
    (tmp_path/'x.jsonl').write_text(''.join(json.dumps(f) + '\n' for f in foreign))
    assert main(['import', str(tmp_path/'x.jsonl'), '--to', str(tmp_path/'s')]) == 0
    first, second = read(tmp_path/'s')
    assert (first.task_type, first.won, first.reward, first.actions) == ('look', True, 1., ['look'])
    assert (second.goal, second.observation, second.reward, second.won) == ('look.', 'A room.', .5, False)
    out = capsys.readouterr().out
    assert '2 come from elsewhere' in out and out.endswith('\n') and '\n\n' not in out

def test_a_list_of_commands_is_no_part_of_the_task(tmp_path):
    said = [{'from':'human', 'value':'A room.\n\nYour task is to: look.\nAVAILABLE ACTIONS: look, go'},
            {'from':'gpt', 'value':'Action: look'}]
    (tmp_path/'x.jsonl').write_text(json.dumps(dict(item_id='alfworld_3', conversations=said, reward=0)))
    t, = trajectories(tmp_path/'x.jsonl')
    assert (t.goal, t.observation, t.actions) == ('look.', 'A room.', ['look'])

@pytest.mark.parametrize('change,contains', [
    (dict(messages=[], won=True), 'holds no action'), (dict(actions=[], won=True), 'holds no action'),
    (dict(task='', actions=['look'], won=True), 'names no task'), (dict(messages=[]), 'claims no outcome')])
def test_what_cannot_be_imported_has_a_file_and_a_line(tmp_path, capsys, change, contains):
    lines = [dict(task=SEEN.task, actions=['look'], won=True), dict(task=SEEN.task) | change]
    (tmp_path/'x.jsonl').write_text(''.join(json.dumps(l) + '\n' for l in lines))
    assert main(['import', str(tmp_path/'x.jsonl'), '--to', str(tmp_path/'s')]) == 1
    err = capsys.readouterr().err
    assert err.startswith('a3t: x.jsonl, line 2 ') and contains in err and err.count('\n') == 1

BAD = [(dict(won=1), 'its won is not of type bool'), (dict(a3t=[1]), 'its a3t is not an object'),
       (dict(messages=[]), 'do not end with what'), (dict(messages=[dict(role='user')]), 'message 1 is not a text'),
       (dict(a3t={}), 'it lacks fields'), (dict(reward='x'), 'its reward is not of type float'),
       (dict(a3t=dict(chat(SEEN)['a3t'], steps=[{}])), 'are not 3 objects'),
       (dict(a3t=dict(chat(SEEN)['a3t'], steps=[dict(actor='me'), {}, {}])), 'its actor is neither'),
       (dict(task='\ud800'), 'is not valid Unicode')]

@pytest.mark.parametrize('change,contains', BAD)
def test_a_broken_file_is_one_line_and_leaves_nothing(tmp_path, capsys, change, contains):
    lines = [json.dumps(chat(LOST)), json.dumps(chat(SEEN) | change)]
    (tmp_path/'x.jsonl').write_text('\n'.join(lines) + '\n')
    assert main(['import', str(tmp_path/'x.jsonl'), '--to', str(tmp_path/'s')]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and contains in err and 'line 2' in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x.jsonl']

@settings(max_examples=200, **QUIET)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(
                        ['role', 'content', 'steps', 'id', 'source', 'message', 'extra', 'a3t', 'task']), x,
                        max_size=3), max_leaves=6),
       st.sampled_from(['messages', 'a3t', 'task', 'won', 'reward', 'steps', 'extra']))
def test_whatever_stands_in_a_field_is_a_fault_or_a_record(value, key):
    for d in (chat(SEEN), atif(SEEN)):
        r = record(d | {key:value}, 'x')
        assert r.fault or r.task is not None

# -- the command

@pytest.fixture
def store(tmp_path):
    append(tmp_path/'store', [SEEN, LOST, replace(LOST, task='valid_seen/y', steps=LOST.steps[:1])])
    return tmp_path/'store'

def out_of(capsys, *words, status=0):
    "What a command prints"
    assert main(list(map(str, words))) == status
    got = capsys.readouterr()
    return got.err if status else got.out

def test_training_forms_say_what_they_leave_out(tmp_path, store, capsys):
    said = out_of(capsys, 'export', store, '--to', tmp_path/'t.jsonl', '--format', 'trl')
    assert '1 successes' in said and 'Left out: 2 without success' in said and 'who acted' in said
    said = out_of(capsys, 'export', store, '--to', tmp_path/'p.jsonl', '--format', 'pairs')
    assert '1 pairs' in said and 'Left out: 1 failures' in said
    assert json.loads((tmp_path/'p.jsonl').read_text()) == pair(SEEN, LOST)
    for name in ('t.jsonl', 'p.jsonl'):
        err = out_of(capsys, 'import', tmp_path/name, '--to', tmp_path/'s', status=1)
        assert 'made for training' in err and not (tmp_path/'s').exists()

@pytest.mark.parametrize('words,contains', [
    (('{s}', '--to', '{d}/file'), 'exists already: choose another file'),
    (('{s}', '--to', '{d}/full', '--format', 'dataset'), 'exists already: choose another folder'),
    (('{s}', '--to', '{d}/empty'), 'is a folder'), (('{s}', '--to', '{d}/file/x'), 'cannot write'),
    (('{s}', '--to', '{d}/x', '--format', 'atiff'), 'did you mean atif?'),
    (('{d}/none', '--to', '{d}/x'), 'pass a run, a trajectory store'),
    (('{d}/empty', '--to', '{d}/x'), 'holds no episodes'),
    (('--to', '{d}/x'), 'either a SOURCE'), (('{s}', '--to', '{d}/x', '--weights', 'y'), 'either a SOURCE'),
    (('{s}', '--to', '{d}/x', '--model', 'tiny'), '--model needs --weights'),
    (('--weights', '{d}/empty', '--to', '{d}/x'), 'is no adapter'),
    (('--weights', '{d}/empty', '--to', '{d}/full'), 'exists already')])
def test_errors_of_export_are_one_line(tmp_path, store, capsys, words, contains):
    (tmp_path/'file').write_text('mine')
    for name in ('full', 'empty'): (tmp_path/name).mkdir()
    (tmp_path/'full'/'x').write_text('mine')
    err = out_of(capsys, 'export', *(w.format(s=store, d=tmp_path) for w in words), status=1)
    assert err.count('\n') == 1 and contains in err, err
    assert (tmp_path/'file').read_text() == (tmp_path/'full'/'x').read_text() == 'mine'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['empty', 'file', 'full', 'store']

def test_no_success_leaves_no_file(tmp_path, capsys):
    append(tmp_path/'s', [LOST])
    for format in ('trl', 'pairs'):
        err = out_of(capsys, 'export', tmp_path/'s', '--to', tmp_path/'x', '--format', format, status=1)
        assert 'nothing to export' in err
    assert [p.name for p in tmp_path.iterdir()] == ['s']

def test_an_export_is_exported_again(tmp_path, store, capsys):
    out_of(capsys, 'export', store, '--to', tmp_path/'c.jsonl')
    out_of(capsys, 'export', tmp_path/'c.jsonl', '--to', tmp_path/'a.jsonl', '--format', 'atif')
    assert list(trajectories(tmp_path/'a.jsonl')) == read(store)

def test_a_run_is_all_its_rounds():
    run = results_folder()/'cpu-cooking'
    n = sum(len(read(s)) for s in stores(run) if s.name == 'trajectories')
    assert sum(1 for _ in trajectories(run)) == n > 50

def test_equal_trajectories_of_two_rounds_become_one(tmp_path, capsys):
    lines = [json.dumps(chat(replace(SEEN, round=r))) for r in (0, 1)]
    (tmp_path/'x.jsonl').write_text('\n'.join(lines))
    assert '1 more have the same texts' in out_of(capsys, 'import', tmp_path/'x.jsonl', '--to', tmp_path/'s')
    assert len(read(tmp_path/'s')) == 1

def test_exported_episodes_can_be_verified(tmp_path):
    source = results_folder()/'cpu-alfworld'/'round_03'/'episodes'
    main(['export', str(source), '--to', str(tmp_path/'c.jsonl')])
    found = list(records(tmp_path/'c.jsonl'))
    assert len(found) == 67 and all(r.verbatim and r.whole and not r.fault and not r.edited for r in found)

def test_reading_and_writing_hold_a_part_in_memory(tmp_path, monkeypatch):
    "No form asks for a trajectory far before it has written the earlier ones"
    from a3t.exchange import dataset, export
    monkeypatch.setattr(dataset, 'SHARD', 50)
    class Tracked: alive, most = 0, 0
    def many(path, notes=None):
        for i in range(1000):
            t = replace(SEEN, seed=i, goal=str(i))
            Tracked.alive += 1
            weakref.finalize(t, lambda: setattr(Tracked, 'alive', Tracked.alive - 1))
            Tracked.most = max(Tracked.most, Tracked.alive)
            yield t
    monkeypatch.setattr(export, 'trajectories', many)
    for format in ('chat', 'atif', 'trl', 'dataset'):
        export.export_command(str(tmp_path), str(tmp_path/f'{format}.out'), format)
    assert Tracked.most < 120
    assert len((tmp_path/'chat.out').read_text().splitlines()) == 1000

# -- the data set

@pytest.mark.slow # `datasets` writes caches and locks
def test_load_dataset_reads_the_folder(tmp_path, store, monkeypatch):
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_OFFLINE', True)
    main(['export', str(store), '--to', str(tmp_path/'set'), '--format', 'dataset'])
    d = datasets.load_dataset(str(tmp_path/'set'), cache_dir=str(tmp_path/'cache'))
    assert list(d) == ['train'] and d['train'].num_rows == 3 and d['train'].column_names == DATASET.names
    assert d['train'][0]['messages'] == messages(SEEN)
    main(['export', str(store), '--to', str(tmp_path/'t.jsonl'), '--format', 'trl'])
    lines = datasets.load_dataset('json', data_files=str(tmp_path/'t.jsonl'), cache_dir=str(tmp_path/'cache'))
    assert lines['train'][0] == completion(SEEN)

def test_the_card_counts(store):
    totals = Totals()
    for t in read(store): totals.add(t)
    text = card(totals, made_by(store))
    assert '3 episodes of 2 tasks, 1 of them successful, with 6\nsteps' in text and '| look | 3 | 1 |' in text
    assert 'valid_seen 3' in text and 'sampled 2' in text and str(store.parent) not in text
    assert text.startswith('---\nlicense: apache-2.0\n') and 'n<1K' in text
    assert {k for names in COLUMNS for k in names.split(', ')} == set(DATASET.names) == set(dataset_row(SEEN))

# -- TRL: the exported rows train for one step

CHATML = ("{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}{% generation %}"
          "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")

@pytest.mark.slow
@pytest.mark.parametrize('only_agent', [False, True])
def test_exported_rows_train_with_trl(tmp_path, store, only_agent):
    trl = pytest.importorskip('trl', reason='trl is not installed: pip install "a3t[bench]"')
    datasets = pytest.importorskip('datasets')
    from a3t.models.weights import load_model, quiet
    main(['export', str(store), '--to', str(tmp_path/'t.jsonl'), '--format', 'trl'])
    rows = datasets.Dataset.from_list([json.loads(l) for l in (tmp_path/'t.jsonl').read_text().splitlines()])
    model, tokenizer = load_model('tiny')
    tokenizer.chat_template = CHATML
    args = trl.SFTConfig(output_dir=str(tmp_path/'out'), max_steps=1, per_device_train_batch_size=1, use_cpu=True,
                         report_to=[], bf16=False, save_strategy='no', assistant_only_loss=only_agent,
                         disable_tqdm=True, max_length=None)
    before = {k:p.clone() for k,p in model.named_parameters()}
    with quiet():
        trainer = trl.SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
    assert any(not p.equal(before[k]) for k,p in model.named_parameters())
    row = trainer.train_dataset[0]
    learnt = tokenizer.decode([i for i,l in zip(row['input_ids'], row['labels']) if l != -100])
    assert 'take pen 1' in learnt and 'Your task' not in learnt
    assert ('Nothing happens' in learnt) == (not only_agent) # the last observation before the last action

# -- weights

def test_merged_weights_answer_like_adapter_and_base(tmp_path, capsys):
    import torch
    from peft import get_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from a3t.models.weights import load_model, quiet
    from a3t.train import lora
    from a3t.training.log import save_adapter
    model, tokenizer = load_model('tiny', dtype=torch.float32)
    net = lora(model)
    torch.manual_seed(1)
    for p in net.parameters():
        if p.requires_grad: torch.nn.init.normal_(p, std=.2)
    save_adapter(get_peft_model_state_dict(net), net.peft_config['default'], tmp_path/'adapter', 'tiny')
    said = out_of(capsys, 'export', '--weights', tmp_path/'adapter', '--to', tmp_path/'full')
    assert 'float32' in said and 'tiny' in said
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path/'full')
        same = AutoTokenizer.from_pretrained(tmp_path/'full')
    def greedy(m, text):
        ids = same(text, return_tensors='pt').input_ids
        with torch.no_grad(): return m.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
    texts = ['Task: look', 'You see a desk 1.', 'act[']
    merged = [greedy(plain, t) for t in texts]
    assert merged == [greedy(net, t) for t in texts]
    with net.disable_adapter(): assert merged != [greedy(net, t) for t in texts]
    text = ''.join((tmp_path/'full'/f).read_text() for f in ('README.md', 'config.json', 'tokenizer_config.json'))
    assert str(tmp_path) not in text and '# full' in text and 'tiny' in text

def test_a_card_names_models_of_the_hub_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'models'/'mine').mkdir(parents=True)
    assert 'base_model: OWNER/NAME\n' in weights_card('x', 'OWNER/NAME', '0', 'float32')
    for folder in ('models/mine', str(tmp_path)): assert 'base_model' not in weights_card('x', folder, '0', 'x')

def test_an_adapter_without_base_needs_a_model(tmp_path, capsys):
    (tmp_path/'adapter_config.json').write_text(json.dumps(dict(peft_type='LORA', base_model_name_or_path=None)))
    err = out_of(capsys, 'export', '--weights', tmp_path, '--to', tmp_path/'x', status=1)
    assert 'does not name its base model: pass --model' in err and err.count('\n') == 1

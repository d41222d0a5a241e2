"An episode as a conversation: its tokens are those of the chat template, for acting and training alike"
import json
from dataclasses import replace
from functools import lru_cache
import pytest, torch
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer
from a3t.agents import ActRe, ReAct
from a3t.compose import compose
from a3t.core import A3TError, Step, Trajectory
from a3t.data import make_actre_rows, make_row, make_rows
from a3t.envs.base import ToyHouse
from a3t.models.api import language_model
from a3t.models.base import Completion, LanguageModel, cut_at_stop, encode_segments, gather, toy_tokenizer
from a3t.models.chat import MESSAGES, messages_of, model_frame, render, template_frame, tokenizer_frame, turn_ends
from a3t.models.local import LocalModel
from a3t.models.toyserver import ToyServer
from a3t.models.weights import load_model, tiny_model
from a3t.prompts import actre_segments, one_line, parse_step, segments
from a3t.quality.agreement import acted, agreement, moments
from a3t.train import train
from chat_templates import EATING, LLAMA_KIND, TEMPLATES

torch.set_num_threads(1)

EXEMPLAR, INSTRUCTION = ToyHouse.exemplar, ToyHouse.instruction

def with_template(template, special, llama=False, eating=False):
    "A toy tokenizer with a chat template and its special tokens"
    tok = toy_tokenizer(llama=llama)
    if llama: # as in real ones, a token holds a space only at its beginning
        state = json.loads(tok.backend_tokenizer.to_str())
        state['model']['merges'] = [m for m in state['model']['merges'] if '▁' not in ''.join(m)[1:]]
        tok.backend_tokenizer.model = Tokenizer.from_str(json.dumps(state)).model
    new = [AddedToken(s, special=True, normalized=False, rstrip=eating) for s in special]
    tok.add_special_tokens(dict(additional_special_tokens=new))
    tok.chat_template = template
    return tok

@lru_cache(None)
def tokenizer_of(name):
    template, special, _ = TEMPLATES[name]
    return with_template(template, special, name in LLAMA_KIND, name in EATING)

def written(tok, turns):
    "The template's own tokens for some turns; with an instruction inside the first turn where it takes no system turn"
    if turns[0][0] == 'system' and not template_frame(tok).system:
        turns = [('user', f'{turns[0][1]}\n\n{turns[1][1]}'), *turns[2:]]
    text = render(tok, turns).removesuffix('<think>\n')
    return tok(text, add_special_tokens=False).input_ids

def begin(tok, ids):
    "Tokens with the begin token that the tokenizer puts before every text, if the template writes none"
    first = encode_segments(tok, [])
    return ids if ids[:len(first)] == first else first + ids

def policy_turns(traj, instruction='', exemplar=None):
    "The turns of an episode, written down independently"
    said = lambda s: (f'think[{one_line(s.reason)}] ' if s.reason else '') + f'act[{one_line(s.action)}]'
    def turns(t):
        seen = [f'Task: {t.goal}\n{t.observation}', *(s.observation for s in t.steps)]
        return seen, [said(s) for s in t.steps]
    seen, acted = turns(traj)
    if exemplar:
        before, done = turns(exemplar)
        seen, acted = [*before[:-1], f'{before[-1]}\n\n{seen[0]}', *seen[1:]], done + acted
    res = [('system', instruction)] if instruction else []
    for i,text in enumerate(seen):
        res.append(('user', text.strip()))
        if i < len(acted): res.append(('assistant', acted[i]))
    return res

# words, punctuation and line breaks as environments write them; tags that a template might look for
WORDS = st.lists(st.sampled_from(['a mug 1', 'desk', '.', 'Nothing happens.', '\n', ' ', 'act[', ']', 'think[', 'ü',
                                  '5', 'x>', 'price: $3.99']), max_size=6).map(' '.join)
SAID = WORDS.map(one_line)
STEPS = st.lists(st.builds(Step, SAID, SAID, WORDS, valid=st.booleans()), max_size=4)
EPISODES = st.builds(lambda goal, seen, steps: Trajectory('t', 'x', goal or 'put it', seen or 'a room',
                                                          tuple(steps), won=True), SAID, WORDS, STEPS)

def asked(tok, traj, *how):
    "Tokens that the policy is asked with"
    return encode_segments(tok, [s.text for s in tokenizer_frame(tok, 'chat')(segments(traj, *how, chat=True))])

@pytest.mark.parametrize('name', TEMPLATES)
def test_the_frame_knows_whether_a_system_turn_works(name):
    frame = template_frame(tokenizer_of(name))
    assert bool(frame.system) == TEMPLATES[name][2] == (not any('system turn' in n for n in frame.notes))
    assert turn_ends(tokenizer_of(name)) == {tokenizer_of(name).convert_tokens_to_ids(frame.end.strip())}

@pytest.mark.parametrize('name', TEMPLATES)
@settings(max_examples=8, deadline=None)
@given(traj=EPISODES, instruction=st.sampled_from(['', INSTRUCTION]), exemplar=st.sampled_from([None, EXEMPLAR]))
def test_tokens_asked_are_the_templates(name, traj, instruction, exemplar):
    tok = tokenizer_of(name)
    theirs = written(tok, policy_turns(traj, instruction, exemplar))
    assert asked(tok, traj, instruction, exemplar) == begin(tok, theirs)

@pytest.mark.parametrize('name', TEMPLATES)
@settings(max_examples=8, deadline=None)
@given(traj=EPISODES.filter(lambda t: t.steps), shown=st.booleans())
def test_tokens_trained_are_the_tokens_acted(name, traj, shown):
    "Every prompt is the beginning of the row, and loss begins where the model began to write"
    tok, prompt = tokenizer_of(name), dict(instruction=INSTRUCTION, exemplar=EXEMPLAR) if shown else {}
    traj = replace(traj, steps=tuple(replace(s, valid=True) for s in traj.steps))
    row = make_row(tok, traj, observations='mask', format='chat', **prompt)
    ids, ends = list(row.input_ids), turn_ends(tok)
    for i in range(len(traj.steps) + 1):
        prompt_ids = asked(tok, replace(traj, steps=traj.steps[:i]), *prompt.values())
        assert ids[:len(prompt_ids)] == prompt_ids
        if i == len(traj.steps): assert not any(row.loss_mask[len(prompt_ids):])
        else: assert not row.loss_mask[len(prompt_ids) - 1] and row.loss_mask[len(prompt_ids)]
    taught = [i for i,m in zip(ids, row.loss_mask) if m]
    assert sum(i in ends for i in taught) == len(traj.steps) # each answer teaches its end, and no other
    kept = make_row(tok, traj, observations='keep', format='chat', **prompt)
    more = {ids[i] for i in range(len(ids)) if kept.loss_mask[i] and not row.loss_mask[i]}
    assert kept.input_ids == row.input_ids and not more & {tok.convert_tokens_to_ids(t) for t in TEMPLATES[name][1]}

@pytest.mark.parametrize('name', ['Mistral v0.2', 'Qwen 3', 'Gemma 2', 'Phi-3'])
@settings(max_examples=8, deadline=None)
@given(traj=EPISODES)
def test_relabelled_steps_keep_their_tokens(name, traj):
    "An invalid step counts as prompt, but its tokens are those that were acted"
    tok = tokenizer_of(name)
    if not any(s.valid for s in traj.steps): return
    assert list(make_row(tok, traj, observations='mask', format='chat').input_ids) == asked(tok, traj)

@pytest.mark.parametrize('name', TEMPLATES)
@settings(max_examples=8, deadline=None)
@given(traj=EPISODES)
def test_actre_is_trained_as_it_is_asked(name, traj):
    tok, frame = tokenizer_of(name), template_frame(tokenizer_of(name))
    traj = replace(traj, steps=tuple(replace(s, valid=True) for s in traj.steps))
    if not any(s.reason for s in traj.steps): return
    (row,), _ = make_actre_rows(tok, [traj], observations='mask', format='chat')
    taught = 0
    for i,s in enumerate(traj.steps):
        if not s.reason: continue
        segs = frame(actre_segments(replace(traj, steps=traj.steps[:i]), s.action, '', chat=True))
        prompt = encode_segments(tok, [x.text for x in segs])
        assert list(row.input_ids[:len(prompt)]) == prompt
        said = encode_segments(tok, [*(x.text for x in segs), f'{frame.lead}think[{one_line(s.reason)}]{frame.end}'])
        assert list(row.input_ids[:len(said)]) == said and all(row.loss_mask[len(prompt):len(said)])
        taught += len(said) - len(prompt)
    assert row.n_loss == taught

def test_actre_answers_what_the_user_names():
    turns = messages_of(''.join(s.text for s in MESSAGES(actre_segments(
        replace(EXEMPLAR, steps=EXEMPLAR.steps[:1]), 'look', 'Why?', chat=True))))
    assert [t['role'] for t in turns] == ['system', 'user', 'assistant', 'user']
    assert turns[-1]['content'].endswith('act[look]')
    assert turns[2]['content'] == f'think[{EXEMPLAR.steps[0].reason}]'

def test_a_conversation_is_composed(chat_lm):
    "With ActRe of every kind, and with actions that the policy itself rates"
    policy, task = ReAct(chat_lm, INSTRUCTION, EXEMPLAR, max_tokens=8, format='chat'), ToyHouse().tasks('train')[0]
    kinds = dict(free=dict(exemplar=EXEMPLAR), bound=dict(exemplar=EXEMPLAR, grounded=ToyHouse()),
                 trained=dict(instruction=''))
    for kind,more in kinds.items():
        actre = ActRe(chat_lm, max_tokens=8, format='chat', **more)
        made, = gather([compose(ToyHouse(max_steps=3), task, policy, actre, p=1., sampler='policy', seed=1)])
        assert [s.actor for s in made.steps] == ['sampled']*len(made.steps) and made.steps
        assert all(s.valid for s in made.steps)
        assert kind != 'bound' or all(s.reason for s in made.steps)
        assert make_row(chat_lm.tokenizer, made, format='chat').n_loss

def test_a_trained_adapter_acts_as_it_was_trained(chat_lm, tmp_path):
    "It learns a conversation, and then acts in one with the log-probabilities that the trainer computes"
    rows, _ = make_rows(chat_lm.tokenizer, [EXEMPLAR], observations='mask', format='chat')
    made = train(chat_lm.engine.model, rows, tmp_path, epochs=12, learning_rate=2e-2, batch_size=1, lora_rank=8,
                 target_modules='all-linear', gradient_checkpointing=False)
    assert made['loss_last'] < .7*made['loss_first']
    policy, some = ReAct(chat_lm.adapter(made['adapter']), format='chat', max_tokens=24), moments([EXEMPLAR])
    answers = acted(policy, some)
    found = agreement(answers, lambda: policy.lm.engine.model)
    assert found['tokens'] > 20 and found['largest'] < 1e-3
    (prompt, said, logprobs), *_ = answers
    assert chat_lm.tokenizer.decode(prompt).startswith('<|im_start|>')
    base = acted(ReAct(chat_lm, format='chat', max_tokens=24), some)[0]
    assert base[0] == prompt and (base[1], base[2]) != (said, logprobs)

# -- what a template may not do

def refused(template, special=('<|im_end|>',)):
    with pytest.raises(A3TError, match='set format = text') as e: template_frame(with_template(template, special))
    assert '\n' not in str(e.value)
    return str(e.value)

def test_templates_that_cannot_hold_an_episode_are_refused():
    each = '{{% for m in messages %}}{}{{% endfor %}}'.format
    refused(each('<{{ messages|length - loop.index }}>{{ m.content }}<|im_end|>')) # changes what it wrote
    refused(each('{{ m.content }}<|im_end|>') + '{{ messages|length }}') # adds to the end
    refused(each('{{ m.content[:9] }}<|im_end|>')) # cuts
    refused(each('{% if loop.index0 > messages|length - 3 %}{{ m.content }}<|im_end|>{% endif %}')) # forgets
    refused(each('{{ m.content }}')) # nothing ends an answer
    assert 'only one turn' in refused("{% if messages|length > 1 %}{{ raise_exception('only one turn') }}{% endif %}")

@pytest.mark.parametrize('template,says', [
    ('{% if %}', 'TemplateSyntaxError: Expected an expression'), ("{{ 1 + 'a' }}", 'TypeError: unsupported operand'),
    ('{{ messages|tojsn }}', 'TemplateAssertionError: No filter'), ('{{ a.b }}', "UndefinedError: 'a' is undefined"),
    ("{{ raise_exception('') }}", 'TemplateError: without a message')])
def test_a_template_that_cannot_be_rendered_says_why(template, says):
    assert f'cannot be rendered ({says}' in refused(template)

def test_the_last_attempt_counts():
    "A template may take no system turn, but that is not why it is refused"
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    changes = '{% for m in messages %}<{{ messages|length - loop.index }}>{{ m.content }}<|im_end|>{% endfor %}'
    assert 'cannot hold an episode (what it writes' in refused(no_system + changes)

def test_without_a_template():
    with pytest.raises(A3TError, match='has no chat template'): tokenizer_frame(toy_tokenizer(), 'chat')
    with pytest.raises(A3TError, match="choose 'text' or 'chat'"): tokenizer_frame(toy_tokenizer(), 'messages')
    assert not turn_ends(toy_tokenizer())

def test_the_date_is_always_the_same():
    today = "{{ strftime_now('%d %B %Y') }}<|im_end|>" + TEMPLATES['Qwen 3'][0]
    assert '26 Jul 2024<|im_end|>' in template_frame(with_template(today, TEMPLATES['Qwen 3'][1])).begin
    assert 'Today Date: 26 Jul 2024' in template_frame(tokenizer_of('Llama 3.2')).begin

def test_there_is_one_begin_token():
    for name in TEMPLATES:
        tok = tokenizer_of(name)
        some = '<s>' in template_frame(tok).begin or encode_segments(tok, [])
        assert asked(tok, EXEMPLAR).count(tok.bos_token_id) == bool(some)

def test_a_dropped_thought_opening_is_said():
    assert not template_frame(tokenizer_of('Qwen 3')).notes
    note, = template_frame(tokenizer_of('Qwen 3 Thinking')).notes
    assert "'<think>'" in note

# -- models

@pytest.fixture(scope='module')
def chat_folder(tmp_path_factory):
    "A model with random weights that has SmolLM2's chat template"
    folder = tiny_model(tmp_path_factory.mktemp('models')/'chat', kind='qwen2')
    model, _ = load_model(folder, device='cpu')
    tok = tokenizer_of('SmolLM2')
    model.resize_token_embeddings(len(tok))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def chat_lm(chat_folder): return LocalModel(*load_model(chat_folder, device='cpu', dtype=torch.float32), slots=4)

def test_a_local_model_is_asked_with_the_templates_tokens(chat_lm, monkeypatch):
    lm, seen = chat_lm, []
    ask = lm.engine.ask
    def listen(**kw):
        seen.append(kw['ids'])
        return ask(**kw)
    monkeypatch.setattr(lm.engine, 'ask', listen)
    tok, traj = lm.tokenizer, replace(EXEMPLAR, steps=EXEMPLAR.steps[:2])
    gather([ReAct(lm, INSTRUCTION, EXEMPLAR, format='chat', max_tokens=3)(traj, {})])
    assert seen.pop(0) == written(tok, policy_turns(traj, INSTRUCTION, EXEMPLAR))
    gather([ActRe(lm, EXEMPLAR, format='chat', max_tokens=3)(traj, 'look')])
    assert seen.pop(0)[-3:] == tok('<|im_start|>assistant\n').input_ids[-3:]
    assert turn_ends(tok) <= lm.engine.ends

def test_scores_are_of_the_templates_answers(chat_lm):
    policy = ReAct(chat_lm, format='chat')
    score, = gather([policy.scores(EXEMPLAR, ['look'], 'I see.')])[0:1]
    prompt = ''.join(policy.prompt(EXEMPLAR))
    same, = gather([chat_lm.score(prompt + 'think[I see.]', [' act[look]<|im_end|>'])])
    assert score == pytest.approx(same, abs=1e-3)

@pytest.mark.parametrize('name', ['Mistral v0.2', 'Phi-3', 'Qwen 3'])
def test_scored_and_bound_tokens_are_those_trained(chat_lm, monkeypatch, name):
    "Tokens after a special token differ from those after a line break in Llama's tokenizers"
    tok, asked = tokenizer_of(name), []
    async def listen(**kw):
        asked.append(kw)
        return Completion('', [], [], 1, 'end')
    monkeypatch.setattr(chat_lm.engine, 'tokenizer', tok)
    monkeypatch.setattr(chat_lm.engine, 'ask', listen)
    traj, start = replace(EXEMPLAR, steps=(Step('', 'look', 'A room.'),)), replace(EXEMPLAR, steps=())
    gather([ReAct(chat_lm, format='chat').scores(start, ['look'])])
    row, scored = list(make_row(tok, traj, format='chat').input_ids), asked.pop()
    ids = scored['ids'] + [scored['trees'][0].tokens[node] for node in scored['trees'][0].paths[0]]
    assert row[:len(ids)] == ids and len(ids) > len(scored['ids'])
    actre = ActRe(chat_lm, EXEMPLAR, instruction='', grounded=ToyHouse(), format='chat')
    actre.wording.sentences = lambda *args: ['I see.', 'It is near.']
    gather([actre(start, 'look')])
    bound, frame = asked.pop(), template_frame(tok)
    for reason in ('I see.', 'It is near.'):
        said, asks = [], [s.text for s in frame(actre_segments(start, 'look', '', chat=True))]
        whole = encode_segments(tok, [*asks, f'{frame.lead}think[{reason}]{frame.end}'])
        for token in whole[len(encode_segments(tok, asks)):]:
            assert token in bound['constrain'].next(said)
            said.append(token)
        assert not bound['constrain'].next(said)

def test_bound_reasons_work_in_chat(chat_lm):
    lm, house = chat_lm, ToyHouse()
    history = replace(EXEMPLAR, steps=EXEMPLAR.steps[:1])
    actre = ActRe(lm, EXEMPLAR, grounded=house, format='chat')
    for action in ('go to desk', 'take mug'):
        reason, = gather([actre(history, action)])
        assert reason in actre.wording.sentences(history, action)

def test_a_chat_server_gets_messages():
    said = 'think[I need it.] act[take mug]'
    with ToyServer(lambda body: said) as server:
        fields = dict(body=dict(reasoning_effort='low', top_k=None))
        lm = language_model(f'{server.url}/chat/completions#toy', server=fields)
        traj = replace(EXEMPLAR, steps=EXEMPLAR.steps[:2])
        assert gather([ReAct(lm, INSTRUCTION, EXEMPLAR, format='chat')(traj, {})]) == [parse_step(said)]
        assert gather([ActRe(lm, EXEMPLAR, format='chat')(traj, 'take mug')]) == ['I need it.']
        bodies = [body for path,body,_ in server.requests]
    expected = policy_turns(traj, INSTRUCTION, EXEMPLAR)
    assert bodies[0]['messages'] == [dict(role=r, content=c) for r,c in expected]
    assert all(b['reasoning_effort'] == 'low' and 'top_k' not in b for b in bodies)
    assert bodies[1]['messages'][-1]['content'].endswith('act[take mug]')

THOUGHT, LEAD_IN = '<think>\nact[dance]\n</think>\n\n', 'Sure! Here is the answer:'
STEP = 'think[I see.] act[look]'

@pytest.mark.parametrize('format', ['text', 'chat'])
@pytest.mark.parametrize('before', [THOUGHT, f'{LEAD_IN} ', f'{LEAD_IN}\n', f'{THOUGHT}{LEAD_IN}\n'])
def test_neither_a_thought_nor_a_lead_in_is_part_of_a_step(format, before):
    "On a chat server and in a local model, for the policy and for ActRe"
    class Talker(LanguageModel):
        tokenizer = tokenizer_of('Qwen 3')
        async def complete(self, prompt, *, stop=(), **kw):
            said = before + STEP
            for n in range(len(said), 0, -1): # what it has written so far is the end of the prompt
                if ''.join(prompt).endswith(said[:n]): break
            else: n = 0
            text, found = cut_at_stop(said[n:], stop)
            return Completion(text, [1], [0.], 1, 'stop' if found else 'end')
    with ToyServer(lambda body: before + STEP) as server:
        for lm in (language_model(f'{server.url}/chat/completions#toy'), Talker()):
            policy = ReAct(lm, format=format)
            assert gather([policy(EXEMPLAR, {})]) == [('I see.', 'look')]
            assert gather([ActRe(lm, EXEMPLAR, format=format)(EXEMPLAR, 'look')]) == ['I see.']
    after = replace(EXEMPLAR, steps=(*EXEMPLAR.steps, Step('I see.', 'look', 'A room.')))
    assert '<think>' not in ''.join(policy.prompt(after))

def test_a_text_server_with_a_tokenizer_gets_the_templates_tokens(chat_folder):
    tok = tokenizer_of('SmolLM2')
    with ToyServer(lambda body: 'act[look]', models=[chat_folder], owner='vllm') as server:
        lm = language_model(f'{server.url}#{chat_folder}')
        gather([ReAct(lm, INSTRUCTION, format='chat')(EXEMPLAR, {})])
        (_, body, _), = [r for r in server.requests if 'completions' in r[0]]
    assert body['prompt'] == written(tok, policy_turns(EXEMPLAR, INSTRUCTION))

def test_a_text_server_without_a_tokenizer_is_refused():
    lm = language_model('http://127.0.0.1:9/v1#nobody-knows-it')
    with pytest.raises(A3TError, match='chat/completions'): model_frame(lm, 'chat')

def test_a_server_that_adds_the_begin_token_gets_none():
    lm = language_model('http://127.0.0.1:9/v1#toy')
    lm._tokenizer, lm.facts = tokenizer_of('Mistral v0.2'), dict(kind='', models=[])
    policy = ReAct(lm, format='chat')
    assert policy.prompt(EXEMPLAR)[0].startswith('<s>[INST]')
    assert lm.prompt_of(policy.prompt(EXEMPLAR)).startswith('[INST] Task')

def test_the_instruction_moves_for_a_chat_server_too():
    "Where the template is known to take no system turn, the messages have none"
    lm = language_model('http://127.0.0.1:9/v1/chat/completions#toy')
    assert model_frame(lm, 'chat') == MESSAGES
    lm._tokenizer = tokenizer_of('Gemma 2')
    first = messages_of(''.join(ReAct(lm, INSTRUCTION, format='chat').prompt(EXEMPLAR)))[0]
    assert first['role'] == 'user' and first['content'].startswith(INSTRUCTION)

@settings(max_examples=20, deadline=None)
@given(traj=EPISODES)
def test_messages_are_read_back(traj):
    text = ''.join(s.text for s in MESSAGES(segments(traj, INSTRUCTION, EXEMPLAR, chat=True)))
    assert messages_of(text) == [dict(role=r, content=c) for r,c in policy_turns(traj, INSTRUCTION, EXEMPLAR)]
    assert messages_of('Task: put it') == []

"""Every text architecture that transformers can build tiny, with random weights: the local engine and the trainer give
what plain transformers gives, or refuse the model in one line"""
import os
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import pytest, torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from a3t.core import A3TError
from a3t.data import Row
from a3t.models.logprobs import can_pack, lean, token_logprobs
from a3t.models.base import encode_segments, gather, toy_tokenizer
from a3t.models.forward import SUPPORTED, unsupported
from a3t.models.local import LocalModel
from a3t.models.weights import apply_adapter, quiet
from a3t.train import lora, train

torch.set_num_threads(1)

ENCODERS = ('bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta '
            'roberta-prelayernorm roc_bert '
            # their tokens attend to what follows, unless is_decoder is set
            'roformer xlm-roberta xlm-roberta-xl reformer').split()
NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
TOKENIZER = toy_tokenizer()
VOCABULARY, WINDOW, POSITIONS = len(TOKENIZER), 8, 256

# how large the parts of a tiny model are, under the names that configurations use
SIZES = dict(
    vocab_size=VOCABULARY, decoder_vocab_size=VOCABULARY, vocab_size_per_layer_input=VOCABULARY,
    unpadded_vocab_size=VOCABULARY,
    hidden_size=32, n_embd=32, d_model=32, dim_model=32, embedding_size=32, hidden_dim=32, emb_dim=32,
    word_embed_proj_dim=32,
    intermediate_size=48, n_inner=48, ffn_dim=48, encoder_ffn_dim=48, decoder_ffn_dim=48, dff=48, dim_ff=48,
    ffn_hidden_size=48, d_inner=48, d_ff=48,
    moe_intermediate_size=16, shared_expert_intermediate_size=16, shared_intermediate_size=16,
    expert_ffn_hidden_size=16,
    dense_intermediate_size=48, intermediate_size_mlp=48, shared_experts_intermediate_size=16,
    num_hidden_layers=2, n_layer=2, n_layers=2, num_layers=2, decoder_layers=2, encoder_layers=2, num_blocks=2,
    num_attention_heads=4, n_head=4, n_heads=4, num_heads=4, decoder_attention_heads=4, encoder_attention_heads=4,
    num_key_value_heads=2, num_kv_heads=2, head_dim=8, dim_head=8, kv_channels=8, global_head_dim=8,
    num_experts=4, num_local_experts=4, n_routed_experts=4, moe_num_experts=4, num_experts_per_tok=2, moe_topk=2,
    moe_k=2, n_group=1, topk_group=1,
    kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, qk_head_dim=8, o_lora_rank=8,
    index_topk=16, index_head_dim=8, index_n_heads=2, first_k_dense_replace=1,
    sliding_window=WINDOW, sliding_window_size=WINDOW, attention_window_size=WINDOW, window_size=WINDOW,
    attention_chunk_size=WINDOW, local_attention=WINDOW,
    max_position_embeddings=POSITIONS, n_positions=POSITIONS, n_ctx=POSITIONS, max_seq_len=POSITIONS,
    model_max_length=POSITIONS, max_sequence_length=POSITIONS,
    hidden_size_per_layer_input=8, laurel_rank=4, state_size=8, time_step_rank=4, rotary_dim=4, linear_num_heads=4,
    linear_head_dim=8,
    mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, mamba_dt_rank=4, chunk_size=8,
    initializer_range=.2, init_std=.2, tie_word_embeddings=False,
    pad_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id, eos_token_id=TOKENIZER.eos_token_id,
)
# keys from a small common vector: as many heads as queries, rotary positions in a part of each
MLA = dict(head_dim=4, num_key_value_heads=4)
SHARED = dict(num_hidden_layers=4, layers_block_type=['linear_attention', 'hybrid']*2, attention_hidden_size=64,
              attention_head_dim=16, n_mamba_heads=2)
# what fits together only with other sizes than those above, or needs a setting to continue texts at all
OWN = dict(
    bamba=dict(attn_layer_indices=[1]), jamba=dict(attn_layer_period=2, attn_layer_offset=1),
    zamba=SHARED | dict(mamba_dt_rank=4),
    zamba2=SHARED | dict(hybrid_layer_ids=[1, 3], mamba_headdim=16, n_mamba_heads=4, num_query_groups=2),
    **dict.fromkeys('axk1 axk2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash youtu'.split(), MLA),
    **dict.fromkeys(('dots3_note', 'dots3_note_text'), dict(num_key_value_heads=4)),
    mamba2=dict(num_heads=8), reformer=dict(is_decoder=True, axial_pos_embds_dim=(16, 16), axial_pos_shape=(16, 16)),
    blt=dict(encoder_hash_byte_group_vocab=64),
    roc_bert=dict(is_decoder=True, pronunciation_vocab_size=16, shape_vocab_size=16),
    cohere_compass_text=dict(rope_parameters={k:dict(rope_type='default', rope_theta=1e4)
                                              for k in ('full_attention', 'sliding_attention')}),
    dbrx=dict(attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.),
              ffn_config=dict(ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2)),
    deepseek_v2=MLA | dict(num_experts_per_tok=2),
    dots1=dict(num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=1),
    gpt_neo=dict(attention_types=[[['global', 'local'], 1]]),
    gemma3n_text=dict(num_hidden_layers=2, num_kv_shared_layers=0, activation_sparsity_pattern=[.5, 0.],
                      intermediate_size=[48, 48]),
    granitemoehybrid=dict(layer_types=['linear_attention', 'full_attention']),
    lfm2_moe=dict(layer_types=['conv', 'full_attention'], num_dense_layers=1, num_experts_per_tok=2),
    nemotron=dict(num_key_value_heads=2),
    prophetnet=dict(num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4,
                    num_decoder_attention_heads=4),
    recurrent_gemma=dict(num_hidden_layers=3, lru_width=32), xlnet=dict(d_head=8, d_model=32, n_head=4),
    xlstm=dict(num_heads=2),
    xmod=dict(default_language='en_XX', is_decoder=True), zaya=dict(num_experts_per_tok=1, router_hidden_size=16),
    qwen4_exp_text=dict(num_key_value_heads=2, hc_lowrank=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8,
                        indexer_budget=16,
                        indexer_compress_ratio=4),
    falcon_h1=dict(mamba_d_ssm=64),
    **{k:dict(is_decoder=True) for k in ENCODERS if k not in ('reformer', 'roc_bert')},
)

def size(config, name):
    "The field of a configuration that this table shrinks; None if it has no such field, or computes it"
    if isinstance(getattr(type(config), name, None), property): return None
    try: return getattr(config, name, None)
    except RuntimeError: return True # another size in each layer

def small(config):
    "The table's values for the fields that a configuration has"
    res = {k:v for k,v in SIZES.items() if size(config, k) is not None}
    if hasattr(type(config), 'head_dim') and size(config, 'num_attention_heads'): res['head_dim'] = 8
    if isinstance(getattr(type(config), 'head_dim', None), property): res.pop('head_dim', None)
    key = config.attribute_map.get('layer_types', 'layer_types')
    if kinds := size(config, key):
        res[key] = list(dict.fromkeys(kinds))*(2 if len(set(kinds)) == 1 else 1)
        res['num_hidden_layers'] = len(res[key])
    if getattr(config, 'is_heterogeneous', False):
        first = next(iter(config.to_dict()['per_layer_config'].values()))
        res['per_layer_config'] = {1:{k:2*SIZES[k] for k in first if k == 'head_dim'}}
    for k in getattr(config, 'sub_configs', {}):
        if (sub := getattr(config, k, None)) is not None: res[k] = small(sub) | OWN.get(sub.model_type, {})
    return res

@quiet()
def build(name, **changes):
    "A tiny model of an architecture"
    cls = CONFIG_MAPPING[name]
    config = cls(**small(default(cls)) | OWN.get(name, {}) | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.eos_token_id,
                                               bos_token_id=TOKENIZER.bos_token_id)
    return model.eval()

def default(cls):
    "A configuration with its own default values"
    return cls()

def still(name):
    "Changes without the dropout that an architecture has by default"
    return {k:0. for k,v in default(CONFIG_MAPPING[name]).to_dict().items() if 'drop' in k and isinstance(v, float)}

# architectures that cannot be built tiny, and why
NOT_BUILT = dict(
    dots3_note='adapter_in_dim', gemma3n='timm', gemma4_assistant='hidden_size_per_layer_input',
    gemma4_unified_assistant='layer types',
    musicgen='dropout', musicgen_melody='dropout',
)
# refused architectures, and a word of the reason
REFUSED = dict(
    **dict.fromkeys('axk2 deepseek_v32 deepseek_v4 dots3_note_text glm_moe_dsa hy_v4'.split(), 'index_topk'),
    **dict.fromkeys(('camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod xlm xlnet '
                     'cpmant moshi').split(),
                    # positions in generate and in forward differ, or tokens see what follows
                    'gives a token other probabilities'),
    blt='num_hidden_layers', prophetnet='position_ids', xlstm='size of the tensor',
)

SHORT = 32 # tokens up to which LongRoPE takes its short factors
LONGROPE = dict(rope_parameters=dict(rope_type='longrope', rope_theta=1e4, short_factor=[1., 1.5, 2., 2.5],
                                     long_factor=[4., 6., 8., 10.], factor=8., original_max_position_embeddings=SHORT),
                original_max_position_embeddings=SHORT)

GUIDE = Path(__file__).parent.parent/'nbs'/'guide'/'models.md'
LLAMA3 = dict(rope_parameters=dict(rope_type='llama3', rope_theta=1e4, factor=8., low_freq_factor=1.,
                                   high_freq_factor=4., original_max_position_embeddings=64))
FAMILIES = { # name in the guide's table → (models that people use, architecture, changes)
    'Llama 2':('meta-llama/Llama-2-7b-chat-hf', 'llama', {}),
    'Llama 3':('meta-llama/Llama-3.1-8B-Instruct', 'llama', LLAMA3),
    'SmolLM2':('HuggingFaceTB/SmolLM2-135M-Instruct', 'llama', dict(tie_word_embeddings=True)),
    'SmolLM3':('HuggingFaceTB/SmolLM3-3B', 'smollm3', dict(no_rope_layers=[1, 0])),
    'Mistral':('mistralai/Mistral-7B-Instruct-v0.2', 'mistral', dict(sliding_window=None)),
    'Mistral, sliding window':('mistralai/Mistral-7B-Instruct-v0.1', 'mistral', {}),
    'Mixtral':('mistralai/Mixtral-8x7B-Instruct-v0.1', 'mixtral', {}),
    'Qwen 2, 2.5':('Qwen/Qwen2.5-7B-Instruct', 'qwen2', {}),
    'Qwen 3':('Qwen/Qwen3-8B', 'qwen3', {}),
    'Qwen 3, experts':('Qwen/Qwen3-30B-A3B', 'qwen3_moe', {}),
    'Phi-3':('microsoft/Phi-3-mini-4k-instruct', 'phi3', {}),
    'Phi-3, LongRoPE':('microsoft/Phi-3-mini-128k-instruct', 'phi3', LONGROPE),
    'OLMo 2':('allenai/OLMo-2-1124-7B-Instruct', 'olmo2', {}),
    'Granite 3':('ibm-granite/granite-3.3-8b-instruct', 'granite', dict(
        logits_scaling=3., attention_multiplier=.5, embedding_multiplier=2., residual_multiplier=.5)),
    'Gemma 2':('google/gemma-2-9b-it', 'gemma2', {}),
    'Gemma 3, text':('google/gemma-3-1b-it', 'gemma3_text', {}),
    'Gemma 3, text and images':('google/gemma-3-4b-it', 'gemma3', {}),
    'GPT-2':('openai-community/gpt2', 'gpt2', {}),
    'GPT-NeoX, Pythia':('EleutherAI/pythia-1.4b', 'gpt_neox', {}),
}
# shorter than the windows, and longer
PROMPTS = 'You are in a room. ', 'Act: take mug 1 from desk 1\nThink: I need the mug. go to desk 2'
TWICE = [text*2 for text in PROMPTS] # longer than LongRoPE's short texts, and much longer than the windows
NEW = 8 # tokens

def greedy(model, prompt):
    "Tokens of transformers' own generate, for one prompt alone"
    ids = torch.tensor([encode_segments(TOKENIZER, prompt)])
    with torch.no_grad(), quiet():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return out[0, ids.shape[1]:].tolist()

def plain(model, ids):
    "Log-probabilities of the tokens of a text but the first, by one forward pass"
    with torch.no_grad(): logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]

def check_answers(model, prompts=PROMPTS):
    "A batch of prompts gets the answers of each prompt alone; the second time from the engine's cache"
    lm = LocalModel(model, TOKENIZER, slots=8)
    want = [greedy(model, p) for p in prompts]
    for _ in range(1 if lm.engine.unsupported else 2):
        answers = gather([lm.complete(p, max_tokens=NEW) for p in prompts])
        assert [a.token_ids for a in answers] == want
    for p,a in zip(prompts, answers):
        ids = encode_segments(TOKENIZER, p)
        assert torch.allclose(plain(model, ids + a.token_ids)[len(ids) - 1:], torch.tensor(a.logprobs), atol=1e-3)
    candidates = ['go to desk 1', 'go to shelf 2']
    for p,scores in zip(prompts, gather([lm.score(p, candidates) for p in prompts])):
        ids = encode_segments(TOKENIZER, p)
        alone = [plain(model, ids + encode_segments(TOKENIZER, c))[len(ids) - 1:].sum().item() for c in candidates]
        assert scores == pytest.approx(alone, abs=1e-3)
    return lm

ROWS = [Row(tuple(r), (False,) + tuple(i % 3 > 0 for i in range(1, len(r))), 1., 't', True)
        for r in ([*range(5, 45)], [*range(5, 35), *range(60, 75)], [7, 9, 11, 13, 15])]

def check_training(model):
    "Rows with a shared prefix get the log-probabilities of a plain forward pass"
    with torch.no_grad(), quiet(): logp, which = token_logprobs(model, ROWS)
    want = [plain(model, list(r.input_ids))[[t - 1 for t,m in enumerate(r.loss_mask) if m]] for r in ROWS]
    assert torch.allclose(logp, torch.cat(want), atol=1e-3)
    assert which.tolist() == [i for i,w in enumerate(want) for _ in w]

def refused(f, *args):
    "The error of a refused call, one line; '' if it succeeded"
    try: f(*args)
    except A3TError as e:
        assert len(str(e).splitlines()) == 1
        return str(e)
    return ''

TESTED = {architecture for _, architecture, _ in FAMILIES.values()} # more closely below
OTHERS = [n for n in NAMES if n not in NOT_BUILT and n not in TESTED]
# one of each kind: encoders, experts, state spaces, linear attention, positions of every kind, and what is refused
KINDS = ('bert bloom falcon gpt_oss jamba mamba qwen3_next deepseek_v3 falcon_h1 bart roberta blt deepseek_v32 '
         'xlnet xlstm').split()
OFTEN = {n for n in OTHERS if n in KINDS or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[n] in SUPPORTED}

@pytest.mark.parametrize('name', [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in OTHERS])
def test_equal_or_refused(name):
    model = build(name)
    why = refused(check_answers, model)
    assert REFUSED.get(name, '') in why and bool(why) == (name in REFUSED), why
    if not why: assert not refused(check_training, model)

def test_how_many_are_built():
    "The few that cannot be built are listed with the reason"
    assert set(NOT_BUILT) < set(NAMES) and len(NAMES) - len(NOT_BUILT) >= 180 and set(KINDS) < OFTEN
    for name, reason in NOT_BUILT.items():
        with pytest.raises(Exception, match=reason): build(name)

@pytest.mark.parametrize('name', ['bert', 'electra', 'roformer'])
def test_a_bidirectional_model_is_refused(name, tmp_path):
    model = build(name, is_decoder=False)
    assert 'other probabilities when more text follows' in refused(LocalModel, model, TOKENIZER)
    assert 'other probabilities when more text follows' in refused(train, model, ROWS, tmp_path)

@pytest.mark.parametrize('changes', [dict(is_causal=False), dict(use_bidirectional_attention=True)])
def test_a_supported_architecture_that_looks_ahead_falls_back(changes):
    for name in ('llama', 'gemma'):
        model = build(name)
        for k,v in changes.items(): setattr(model.config, k, v)
        assert unsupported(model) == 'attention to what follows'
        why = refused(check_answers, model)
        assert not why or 'other probabilities when more text follows' in why

@pytest.mark.parametrize('name,changes,own', [
    ('llama', dict(rope_parameters=dict(rope_type='dynamic', factor=2., rope_theta=1e4)), False),
    ('qwen2', dict(layer_types=['sliding_attention', 'full_attention'], use_sliding_window=True, sliding_window=8,
                   num_hidden_layers=2), True),
    ('qwen2_moe', dict(layer_types=['full_attention', 'sliding_attention'], use_sliding_window=True, sliding_window=8,
                       num_hidden_layers=2), True),
    ('smollm3', dict(layer_types=['sliding_attention', 'full_attention'], use_sliding_window=False, sliding_window=8,
                     num_hidden_layers=2, no_rope_layers=[1, 0]), True),
    ('llama', dict(rope_parameters=dict(rope_type='yarn', factor=4., rope_theta=1e4,
                                        original_max_position_embeddings=32)), True),
], ids=str)
def test_the_engine_or_the_fallback(name, changes, own):
    "Both the engine and the fallback are right, for prompts longer than any window or scale"
    model = build(name, **changes)
    assert bool(unsupported(model)) != own
    check_answers(model, TWICE)
    check_training(model)

def gradients(model, rows, plainly):
    "LoRA gradients by the trainer's functions, or by plain transformers and PEFT"
    m = lora(model, 4, target_modules='all-linear', seed=1)
    for k,p in m.named_parameters():
        if 'lora_B' in k: torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(len(k)))
    if plainly:
        for r in rows:
            logits = m(input_ids=torch.tensor([r.input_ids]), use_cache=False).logits[0, :-1]
            logp = logits.log_softmax(-1)[range(len(r) - 1), r.input_ids[1:]]
            logp[[t - 1 for t,l in enumerate(r.loss_mask) if l]].sum().backward()
    else:
        with lean(m), quiet(): token_logprobs(m.get_base_model(), rows)[0].sum().backward()
    return {k:p.grad for k,p in m.named_parameters() if p.grad is not None}

def check_gradients(model, rows=ROWS):
    "The trainer's gradients are those of plain transformers"
    a, b = (gradients(deepcopy(model), rows, plainly) for plainly in (False, True))
    assert a.keys() == b.keys() and len(a) > 4
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-4*b[k].abs().max().item() + 1e-6, rtol=1e-3)

@pytest.mark.parametrize('name', [n for n in OTHERS if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[n] in SUPPORTED] + ['gpt_oss'])
def test_gradients_are_those_of_plain_transformers(name):
    "Packed or not, lean or not"
    check_gradients(build(name))

def test_training_a_model_that_falls_back(tmp_path):
    "GPT-2 learns its rows; misfits are refused in one line"
    model = build('gpt2', **still('gpt2'))
    made = train(model, ROWS, tmp_path/'a', epochs=4, learning_rate=1e-2, batch_size=2,
                 target_modules='all-linear', gradient_checkpointing=False)
    assert made['loss_last'] < made['loss_first']
    lm = LocalModel(model, TOKENIZER)
    tuned = lm.adapter(made['adapter'])
    base, learned = (gather([v.score('go', ['to desk 1'])]) for v in (lm, tuned))
    assert base != learned and gather([lm.score('go', ['to desk 1'])]) == base
    assert 'target_modules' in refused(lambda: train(model, ROWS, tmp_path/'b'))
    assert 'reads only 256' in refused(lambda: token_logprobs(model,
                                                              [Row((5,)*300, (False,) + (True,)*299, 1., 't', True)]))

# -- models that people use

@lru_cache(None)
def family(name):
    "A tiny model of a family, which a test must not change"
    _, architecture, changes = FAMILIES[name]
    return build(architecture, **still(architecture) | changes)

def attention_layers(model):
    "The default of `target_modules`, or the matrices that this model has instead of q_proj and v_proj"
    names = {k.split('.')[-1] for k,_ in model.get_decoder().named_modules()}
    return next(t for t in (['q_proj', 'v_proj'], ['qkv_proj'], ['query_key_value'], ['c_attn']) if set(t) <= names)

def table():
    "The table of the guide"
    rows = ['| family | for example | acts with | is trained | `target_modules` | its test |', '|---'*6 + '|']
    for name,(example, *_) in FAMILIES.items():
        model = family(name)
        acts, packed = '`generate`' if unsupported(model) else 'the engine', can_pack(model, ROWS)
        targets = ', '.join(f'`{t}`' for t in attention_layers(model))
        how = 'packed' if packed else 'row by row'
        rows.append(f'| {name} | `{example}` | {acts} | {how} | {targets} | `test_family[{name}]` |')
    return '\n'.join(rows)

def test_the_table_of_the_guide():
    "It says what the code does"
    assert table() in GUIDE.read_text(encoding='utf-8'), f'write this table into {GUIDE.name}:\n{table()}'

@pytest.mark.parametrize('name', FAMILIES)
def test_family(name, tmp_path):
    "Answers of `generate`; gradients and the loss of plain transformers; an adapter that acts as it was trained"
    model = deepcopy(family(name))
    lm = check_answers(model, TWICE)
    check_gradients(model)
    made = train(model, ROWS, tmp_path, epochs=1, batch_size=len(ROWS), learning_rate=.01, lora_rank=4, warmup=0,
                 target_modules=attention_layers(model), gradient_checkpointing=False)
    masked = [plain(model, list(r.input_ids))[[t - 1 for t,m in enumerate(r.loss_mask) if m]] for r in ROWS]
    assert made['steps'] == 1 and made['loss_first'] == pytest.approx(-sum(m.mean().item() for m in masked)/3, abs=1e-3)
    tuned = apply_adapter(deepcopy(family(name)), made['adapter'], merge=False)
    answer, = gather([lm.adapter(made['adapter']).complete(TWICE[1], max_tokens=NEW)])
    ids = encode_segments(TOKENIZER, TWICE[1])
    row = Row(tuple(ids + answer.token_ids), (False,)*len(ids) + (True,)*len(answer.token_ids), 1., 't', True)
    with torch.no_grad(): scored, _ = token_logprobs(tuned, [row])
    torch.testing.assert_close(scored, torch.tensor(answer.logprobs), atol=1e-3, rtol=1e-3)
    with torch.no_grad(): assert (scored - token_logprobs(family(name), [row])[0]).abs().max() > 1e-3

@pytest.mark.parametrize('n', [pytest.param(8, marks=pytest.mark.slow), SHORT - NEW//2,
                               pytest.param(SHORT + 8, marks=pytest.mark.slow)])
def test_longrope(n):
    "A text that becomes long while the model writes; also one that stays short, and a long one"
    model = family('Phi-3, LongRoPE')
    lm, ids = LocalModel(model, TOKENIZER), [7 + i % 50 for i in range(n)]
    async def ask(): return (await lm.engine.ask(ids=ids, adapter='', max_tokens=NEW)).token_ids
    with torch.no_grad(), quiet():
        want = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, n), max_new_tokens=NEW, do_sample=False)
    assert gather([ask()])[0] == want[0, n:].tolist()
    check_gradients(model, [Row(tuple(want[0].tolist()), (False,)*n + (True,)*(want.shape[1] - n), 1., 't', True)])

@pytest.mark.parametrize('name', [n if n in ('roberta', 'axk2') else pytest.param(n, marks=pytest.mark.slow)
                                  for n in REFUSED])
def test_what_cannot_be_trained_is_refused(name, tmp_path):
    "Training one step is refused in one line, or has the loss of plain transformers; not each layer needs a gradient"
    model = build(name, **still(name))
    made = {}
    def step():
        made.update(train(model, ROWS, tmp_path, epochs=1, batch_size=len(ROWS), target_modules='all-linear',
                          gradient_checkpointing=False))
    if why := refused(step): return print(why)
    masked = [plain(model, list(r.input_ids))[[t - 1 for t,m in enumerate(r.loss_mask) if m]] for r in ROWS]
    assert made['loss_first'] == pytest.approx(-sum(m.mean().item() for m in masked)/3, abs=1e-3)

def test_a_model_with_dropout_has_no_starting_policy(tmp_path):
    "It has another one at each look"
    kw = dict(epochs=1, batch_size=len(ROWS), target_modules='all-linear', gradient_checkpointing=False, kl=.1)
    assert 'the dropout of RobertaForCausalLM blurs' in refused(lambda: train(build('roberta'), ROWS, tmp_path, **kw))
    assert train(build('roberta', **still('roberta')), ROWS, tmp_path, **kw)['steps'] == 1

def test_layers_that_only_select_tokens_cannot_be_trained(tmp_path):
    why = refused(lambda: train(build('axk2'), ROWS, tmp_path, target_modules=['weights_proj'],
                                gradient_checkpointing=False))
    assert 'the loss does not depend on the adapter' in why, why

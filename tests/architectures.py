"Tiny models of every text architecture that transformers can build, with random weights"
import copy
import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from a3t.models.base import toy_tokenizer
from a3t.models.local import quiet

ENCODERS = ('bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm roc_bert '
            'roformer xlm-roberta xlm-roberta-xl reformer').split() # their tokens see what follows, unless is_decoder is set
NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
TOKENIZER = toy_tokenizer()
VOCABULARY, WINDOW, POSITIONS = len(TOKENIZER), 8, 256

# how large the parts of a tiny model are, under the names that configurations use
SIZES = dict(
    vocab_size=VOCABULARY, decoder_vocab_size=VOCABULARY, vocab_size_per_layer_input=VOCABULARY, unpadded_vocab_size=VOCABULARY,
    hidden_size=32, n_embd=32, d_model=32, dim_model=32, embedding_size=32, hidden_dim=32, emb_dim=32, word_embed_proj_dim=32,
    intermediate_size=48, n_inner=48, ffn_dim=48, encoder_ffn_dim=48, decoder_ffn_dim=48, dff=48, dim_ff=48, ffn_hidden_size=48, d_inner=48, d_ff=48,
    moe_intermediate_size=16, shared_expert_intermediate_size=16, shared_intermediate_size=16, expert_ffn_hidden_size=16,
    dense_intermediate_size=48, intermediate_size_mlp=48, shared_experts_intermediate_size=16,
    num_hidden_layers=2, n_layer=2, n_layers=2, num_layers=2, decoder_layers=2, encoder_layers=2, num_blocks=2,
    num_attention_heads=4, n_head=4, n_heads=4, num_heads=4, decoder_attention_heads=4, encoder_attention_heads=4,
    num_key_value_heads=2, num_kv_heads=2, head_dim=8, dim_head=8, kv_channels=8, global_head_dim=8,
    num_experts=4, num_local_experts=4, n_routed_experts=4, moe_num_experts=4, num_experts_per_tok=2, moe_topk=2, moe_k=2, n_group=1, topk_group=1,
    kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, qk_head_dim=8, o_lora_rank=8,
    index_topk=16, index_head_dim=8, index_n_heads=2, first_k_dense_replace=1,
    sliding_window=WINDOW, sliding_window_size=WINDOW, attention_window_size=WINDOW, window_size=WINDOW, attention_chunk_size=WINDOW, local_attention=WINDOW,
    max_position_embeddings=POSITIONS, n_positions=POSITIONS, n_ctx=POSITIONS, max_seq_len=POSITIONS, model_max_length=POSITIONS, max_sequence_length=POSITIONS,
    hidden_size_per_layer_input=8, laurel_rank=4, state_size=8, time_step_rank=4, rotary_dim=4, linear_num_heads=4, linear_head_dim=8,
    mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, mamba_dt_rank=4, chunk_size=8, initializer_range=.2, init_std=.2, tie_word_embeddings=False,
    pad_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id, eos_token_id=TOKENIZER.eos_token_id,
)
MLA = dict(head_dim=4, num_key_value_heads=4) # keys from a small common vector: as many heads as queries, rotary positions in a part of each
SHARED = dict(num_hidden_layers=4, layers_block_type=['linear_attention', 'hybrid']*2, attention_hidden_size=64, attention_head_dim=16, n_mamba_heads=2)
# what fits together only with other sizes than those above, or needs a setting to continue texts at all
OWN = dict(
    bamba=dict(attn_layer_indices=[1]), jamba=dict(attn_layer_period=2, attn_layer_offset=1),
    zamba=SHARED | dict(mamba_dt_rank=4), zamba2=SHARED | dict(hybrid_layer_ids=[1, 3], mamba_headdim=16, n_mamba_heads=4, num_query_groups=2),
    **dict.fromkeys('axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash youtu'.split(), MLA),
    **dict.fromkeys(('dots3_note', 'dots3_note_text'), dict(num_key_value_heads=4)),
    mamba2=dict(num_heads=8), reformer=dict(is_decoder=True, axial_pos_embds_dim=(16, 16), axial_pos_shape=(16, 16)),
    blt=dict(encoder_hash_byte_group_vocab=64), roc_bert=dict(is_decoder=True, pronunciation_vocab_size=16, shape_vocab_size=16),
    cohere_compass_text=dict(rope_parameters={k:dict(rope_type='default', rope_theta=1e4) for k in ('full_attention', 'sliding_attention')}),
    dbrx=dict(attn_config=dict(kv_n_heads=2, rope_theta=1e4), ffn_config=dict(ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2)),
    dots1=dict(num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=1),
    gpt_neo=dict(attention_types=[[['global', 'local'], 1]]),
    gemma3n_text=dict(num_hidden_layers=2, num_kv_shared_layers=0, activation_sparsity_pattern=[.5, 0.], intermediate_size=[48, 48]),
    granitemoehybrid=dict(layer_types=['linear_attention', 'full_attention']),
    lfm2_moe=dict(layer_types=['conv', 'full_attention'], num_dense_layers=1, num_experts_per_tok=2),
    nemotron=dict(num_key_value_heads=2), prophetnet=dict(num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4, num_decoder_attention_heads=4),
    qwen4_exp_text=dict(num_key_value_heads=2, hc_lowrank=8),
    recurrent_gemma=dict(num_hidden_layers=3, lru_width=32), xlnet=dict(d_head=8, d_model=32, n_head=4), xlstm=dict(num_heads=2),
    xmod=dict(default_language='en_XX', is_decoder=True), zaya=dict(num_experts_per_tok=1, router_hidden_size=16),
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
    model.generation_config = GenerationConfig(eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id)
    return model.eval()

def default(cls):
    "A configuration with its own default values"
    return cls()

"Tiny models of every text architecture that transformers can build, with random weights"
import copy
import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from a3t.models.base import toy_tokenizer
from a3t.models.local import quiet

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
    mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, mamba_dt_rank=4, chunk_size=8, initializer_range=.2, init_std=.2,
    pad_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id, eos_token_id=TOKENIZER.eos_token_id,
)
# what the table above does not shrink, or what does not fit together then
OWN = {}

def small(config):
    "The table's values for the fields that a configuration has"
    res = {k:v for k,v in SIZES.items() if getattr(config, k, None) is not None}
    if kinds := getattr(config, 'layer_types', None):
        res['layer_types'] = list(dict.fromkeys(kinds))*(2 if len(set(kinds)) == 1 else 1)
        res['num_hidden_layers'] = len(res['layer_types'])
    for k in getattr(config, 'sub_configs', {}):
        if (sub := getattr(config, k, None)) is not None: res[k] = sub.to_dict() | small(sub)
    return res

@quiet()
def build(name, **changes):
    "A tiny model of an architecture"
    cls = CONFIG_MAPPING[name]
    own = OWN.get(name, {})
    config = cls(**small(cls()) | own | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id)
    return model.eval()

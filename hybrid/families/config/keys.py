"""The keys of config.json: those that are read, those that say nothing of the result, those that must be neutral.

A key that is in none of the tables here is told to the user by name.
"""

from collections.abc import Mapping
from typing import Any

from hybrid.families.config.values import ConfigValues
from hybrid.shown import listed


def keys(text: str) -> frozenset[str]:
    """Split a text of keys."""
    return frozenset(text.split())


# What is read of every family; `Family.keys` has what is read of some.
READ = keys(
    "model_type architectures hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    " head_dim vocab_size max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters"
    " original_max_position_embeddings partial_rotary_factor hidden_act tie_word_embeddings sliding_window layer_types"
    " quantization_config dtype torch_dtype bos_token_id eos_token_id"
)

# Keys that change no logits: training, classification, bookkeeping (whatever begins with _ too), and how others run it.
HARMLESS = keys(
    "transformers_version name_or_path auto_map use_cache cache_implementation"
    " attention_dropout hidden_dropout residual_dropout embd_pdrop resid_pdrop attn_pdrop dropout classifier_dropout"
    " initializer_range initializer_factor rope_init pretraining_tp pad_token_id sep_token_id decoder_start_token_id"
    " unk_token_id output_hidden_states output_attentions return_dict torchscript use_bfloat16 use_return_dict"
    " chunk_size_feed_forward is_decoder tie_encoder_decoder cross_attention_hidden_size gradient_checkpointing"
    " id2label label2id num_labels problem_type finetuning_task task_specific_params prefix tokenizer_class"
    " model_max_length max_sequence_length attn_implementation"
    " experts_implementation distributed_config unsloth_version unsloth_fixed"
    " bos_token eos_token pad_token unk_token router_aux_loss_coef output_router_logits z_loss_weight tf_legacy_loss"
    " transformers.js_config number_of_conv_states"
    # Sampling, which moved to generation_config.json; transformers drops what is left of it here.
    " max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups"
    " diversity_penalty temperature top_k top_p min_p typical_p repetition_penalty length_penalty"
    " no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores"
    " return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values"
    " exponential_decay_length_penalty suppress_tokens begin_suppress_tokens"
)

_OFF = (None, False)
_ONE = (None, 1)
_NONE = (None,)
# Keys of other architectures that change the result, and the values at which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),  # transformers sees all of the text for null too
    **dict.fromkeys(
        keys(
            "is_encoder_decoder add_cross_attention use_bidirectional_attention use_bidirectional bidirectional"
            " attention_bias qkv_bias add_qkv_bias attn_bias attention_out_bias o_bias mlp_bias use_bias bias norm_bias"
            " lm_head_bias qk_norm use_qk_norm qk_layernorm use_qk_layernorm rope_interleave rope_interleaved"
            " interleaved_rope rotary_interleaved alibi use_alibi parallel_attn use_parallel_residual"
            " attn_temperature_tuning scale_attn_by_inverse_layer_idx use_dynamic_ntk use_logn_attn logn_attn"
            " attention_output_gate attn_output_gate headwise_attn_output_gate elementwise_attn_output_gate"
            " num_kv_shared_layers num_experts num_local_experts n_routed_experts n_shared_experts scale_embeddings"
        ),
        _OFF,
    ),
    **dict.fromkeys(
        keys(
            "rotary_pct rotary_percent residual_multiplier embedding_multiplier logits_scaling logit_scale"
            " scale_emb scale_depth lm_head_multiplier key_multiplier attention_in_multiplier attention_out_multiplier"
            " logits_mup_width_multiplier mup_width_scale input_emb_scale"
        ),
        _ONE,
    ),
    **dict.fromkeys(
        keys(
            "attention_multiplier attention_scale softmax_scale query_pre_attn_scalar attn_scale attn_logit_softcapping"
            " final_logit_softcapping logit_softcapping attn_logit_softcap final_logit_softcap clip_qkv"
            " attention_chunk_size sliding_window_pattern"
            " no_rope_layer_interval rotary_dim rope_local_base_freq hidden_activation dim_model_base mlp_multipliers"
            " kv_lora_rank q_lora_rank kv_sharing_modes transformers_weights fusion_config text_config vision_config"
            " audio_config decoder generator per_layer_config quantization compression_config quant_config"
            " quantize_config"
        ),
        _NONE,
    ),
    "no_rope_layers": (None, []),
    "pruned_heads": (None, {}),
    "position_embedding_type": (None, "rope", "rotary"),
    "scale_attn_weights": (None, True),
}
_TRIVIAL: tuple[Any, ...] = (None, False, "", [], {})
_TELLING = ("use_sliding_window",)  # false would be a claim too: transformers' Mistral slides all the same


def check_keys(values: ConfigValues, own: frozenset[str], neutral: Mapping[str, tuple[Any, ...]]) -> tuple[str, ...]:
    """Refuse what would change the result, and tell of keys that nobody here knows. Raises UnsupportedModelError.

    `own` are the keys that are read besides READ; `neutral` replaces entries of NEUTRAL.
    """
    read, neutral = READ | own, {**NEUTRAL, **neutral}
    unknown = []
    for key, value in values.table.items():
        if key in read or key in HARMLESS or key.startswith("_"):
            continue
        if key not in neutral:
            unknown += [] if value in _TRIVIAL and key not in _TELLING else [key]
        elif value not in neutral[key]:
            family = values.table["model_type"]
            raise values.unsupported(key, f"which {family} models here do not have; without it the text would be wrong")
    return (f"config.json has keys that are not known, and not read: {listed(unknown)}",) if unknown else ()

"""The side files of folders in Hugging Face's layout: each key read, refused or listed.

`read` is the one function that opens such a file. `FILES` says of each kind which keys
mean something to us (``reads``), which have one value that we compute (``only``: any
other is refused), and which change no number (``idle``). A key that stands in none of
them is told to the user by its name. A key that is read has a value of its kind
(`KINDS`) wherever it stands.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlm_jax import characters, terminal
from rlm_jax.errors import UserError, told


class Keys(NamedTuple):
    """What is known of the keys of one kind of file."""

    reads: frozenset[str] = frozenset()
    only: Mapping[str, tuple[Any, ...]] = {}  # the values that we compute
    idle: frozenset[str] = frozenset()


# What transformers writes into any config.json and no encoder or decoder computes with.
_COMMON = frozenset(
    "_name_or_path _commit_hash name_or_path architectures transformers_version "
    "torch_dtype dtype initializer_range use_cache output_attentions return_dict "
    "output_hidden_states use_return_dict torchscript finetuning_task id2label "
    "label2id num_labels problem_type gradient_checkpointing output_past "
    "task_specific_params tokenizer_class prefix bos_token_id sep_token_id "
    "cls_token_id decoder_start_token_id classifier_dropout summary_type "
    "summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout attention_dropout attention_probs_dropout_prob "
    "chunk_size_feed_forward max_length min_length do_sample early_stopping num_beams "
    "temperature top_k top_p repetition_penalty length_penalty no_repeat_ngram_size "
    "num_return_sequences forced_bos_token_id forced_eos_token_id bad_words_ids "
    "suppress_tokens begin_suppress_tokens remove_invalid_values typical_p "
    "encoder_no_repeat_ngram_size diversity_penalty num_beam_groups output_scores "
    "return_dict_in_generate exponential_decay_length_penalty reorder_and_upcast_attn "
    "pretraining_tp _attn_implementation attn_implementation language "
    "unsloth_version unsloth_fixed model_name directionality pooler_fc_size "
    "pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type "
    "tf_legacy_loss cross_attention_hidden_size is_composition fuse_qkv".split()
)
_NO_CODE = {
    "auto_map": (None,),
    "quantization_config": (None,),
    "pruned_heads": (None, {}, []),
}
_TOKENIZER = Keys(
    frozenset(
        "do_lower_case strip_accents tokenize_chinese_chars unk_token sep_token "
        "pad_token cls_token mask_token eos_token additional_special_tokens "
        "extra_special_tokens added_tokens_decoder model_max_length "
        "add_prefix_space".split()
    ),
    {
        "do_basic_tokenize": (True,),
        "never_split": (None, []),
        "truncation_side": ("right",),
        "wordpieces_prefix": ("##",),
        "split_special_tokens": (False, None),
    },
    frozenset(
        "tokenizer_class name_or_path special_tokens_map_file max_length stride "
        "clean_up_tokenization_spaces padding_side model_input_names trim_offsets "
        "errors bos_token backend is_local pad_to_multiple_of pad_token_type_id "
        "vocab_file tokenizer_file local_files_only processor_class legacy from_slow "
        "use_fast use_default_system_prompt chat_template add_bos_token add_eos_token "
        "sp_model_kwargs fix_mistral_regex init_inputs truncation_strategy padding "
        "truncation unk_id extra_ids spaces_between_special_tokens "
        "model_specific_special_tokens add_special_tokens dropout _commit_hash "
        "return_token_type_ids return_tensors merges_file auto_map cache_dir "
        "cls_token_id pad_token_id sep_token_id unk_token_id mask_token_id "
        "use_auth_token revision subfolder trust_remote_code".split()
    ),
)
_BERT = Keys(
    frozenset(
        "model_type vocab_size num_hidden_layers hidden_size num_attention_heads "
        "intermediate_size max_position_embeddings type_vocab_size pad_token_id "
        "layer_norm_eps hidden_act position_embedding_type hidden_dropout_prob "
        "projection_dim".split()
    ),
    {
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "is_encoder_decoder": (False,),
        "tie_word_embeddings": (True,),
        **_NO_CODE,
    },
    _COMMON | {"eos_token_id", "max_trained_positions"},
)
_LAST = "last_hidden_state"
_DECODER = frozenset("model_type vocab_size tie_word_embeddings eos_token_id".split())

FILES: dict[str, Keys] = {
    "config.json of bert": _BERT,
    "config.json of gpt2": Keys(
        _DECODER
        | frozenset(
            "n_embd n_layer n_head n_inner n_positions activation_function "
            "layer_norm_epsilon scale_attn_weights scale_attn_by_inverse_layer_idx "
            "add_cross_attention".split()
        ),
        {"is_encoder_decoder": (False,), **_NO_CODE},
        _COMMON | {"n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop", "pad_token_id"},
    ),
    "config.json of llama": Keys(
        _DECODER
        | frozenset(
            "num_hidden_layers hidden_size num_attention_heads num_key_value_heads "
            "head_dim intermediate_size max_position_embeddings rms_norm_eps "
            "rope_theta rope_scaling rope_parameters hidden_act attention_bias "
            "mlp_bias sliding_window use_sliding_window partial_rotary_factor".split()
        ),
        {"is_encoder_decoder": (False,), **_NO_CODE},
        # Qwen 2 tells of windows that it does not use.
        _COMMON | {"pad_token_id", "rope_interleaved", "max_window_layers"},
    ),
    "config.json of t5": Keys(
        frozenset(
            "model_type vocab_size d_model d_kv d_ff num_layers num_decoder_layers "
            "num_heads relative_attention_num_buckets feed_forward_proj dropout_rate "
            "relative_attention_max_distance layer_norm_epsilon pad_token_id "
            "eos_token_id tie_word_embeddings cross_attention_every decoder_kv_heads "
            "legacy_cross_bias decoder_start_token_id scale_decoder_outputs".split()
        ),
        {"is_encoder_decoder": (True,), **_NO_CODE},
        _COMMON - {"decoder_start_token_id"}
        | frozenset("n_positions initializer_factor is_gated_act dense_act_fn".split()),
    ),
    "generation_config.json": Keys(
        frozenset({"eos_token_id"}),
        {},
        _COMMON
        | frozenset(
            "_from_model_config max_new_tokens pad_token_id min_p cache_implementation "
            "trust_remote_code max_time stop_strings transformers_version "
            "guidance_scale low_memory num_assistant_tokens "
            "num_assistant_tokens_schedule assistant_confidence_threshold".split()
        ),
    ),
    "tokenizer_config.json": _TOKENIZER,
    "special_tokens_map.json": Keys(
        frozenset(
            "unk_token sep_token pad_token cls_token mask_token eos_token "
            "additional_special_tokens extra_special_tokens".split()
        ),
        {},
        frozenset({"bos_token"}),
    ),
    "pooling": Keys(
        frozenset(
            "pooling_mode pooling_mode_cls_token pooling_mode_mean_tokens "
            "pooling_mode_max_tokens pooling_mode_mean_sqrt_len_tokens "
            "pooling_mode_weightedmean_tokens pooling_mode_lasttoken".split()
        ),
        {"include_prompt": (True,)},
        frozenset({"word_embedding_dimension", "embedding_dimension"}),
    ),
    "normalise": Keys(
        only={
            "module_input_name": ("sentence_embedding", None),
            "module_output_name": ("sentence_embedding", None),
        }
    ),
    "sentence_bert_config.json": Keys(
        frozenset("max_seq_length do_lower_case query_length document_length".split()),
        {
            "transformer_task": ("feature-extraction",),
            "module_output_name": ("token_embeddings", None),
            "processing_kwargs": ({}, None),
            "query_expansion": (None,),
            "tokenizer_name_or_path": (None,),
            "model_args": ({}, None),
            "tokenizer_args": ({}, None),
            "config_args": ({}, None),
            "modality_config": (
                None,
                {"text": {"method": "forward", "method_output_name": None}},
                {"text": {"method": "forward", "method_output_name": _LAST}},
            ),
        },
        frozenset({"unpad_inputs"}),
    ),
    "config_sentence_transformers.json": Keys(
        frozenset({"prompts", "default_prompt_name", "similarity_fn_name"}),
        {"model_type": ("SentenceTransformer",), "truncate_dim": (None,)},
        frozenset({"__version__"}),
    ),
    "module": Keys(
        frozenset({"type", "path"}),
        {"kwargs": (None, [], {})},
        frozenset({"idx", "name"}),
    ),
}


_MOST = 2**31 - 1  # ids and sizes are int32


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= _MOST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _any_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_SIZES = (
    "vocab_size num_hidden_layers hidden_size num_attention_heads intermediate_size "
    "max_position_embeddings type_vocab_size n_embd n_layer n_head n_positions d_model "
    "d_kv d_ff num_layers num_heads relative_attention_num_buckets "
    "relative_attention_max_distance cross_attention_every"
)
_COUNTS = (
    "n_inner num_key_value_heads head_dim num_decoder_layers decoder_kv_heads "
    "projection_dim pad_token_id decoder_start_token_id"
)
_NUMBERS = (
    "layer_norm_eps layer_norm_epsilon rms_norm_eps hidden_dropout_prob dropout_rate "
    "rope_theta partial_rotary_factor"
)
_FLAGS = (
    "scale_attn_weights scale_attn_by_inverse_layer_idx add_cross_attention mlp_bias "
    "tie_word_embeddings attention_bias use_sliding_window legacy_cross_bias "
    "scale_decoder_outputs do_lower_case strip_accents tokenize_chinese_chars "
    "add_prefix_space"
)
_WORDS = (
    "model_type hidden_act position_embedding_type activation_function type path "
    "feed_forward_proj similarity_fn_name default_prompt_name"
)

KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    key: (wanted, fits)
    for names, wanted, fits in (
        (_SIZES, "a whole number of 1 or more", _whole(1)),
        (_COUNTS, "a whole number of 0 or more", _whole(0)),
        (_NUMBERS, "a finite number of 0 or more", _number),
        (_FLAGS, "true or false", _any_of(bool)),
        (_WORDS, "a text", _any_of(str)),
        ("rope_scaling rope_parameters prompts", "a JSON object", _any_of(dict)),
        ("additional_special_tokens", "a list", _any_of(list)),
        ("extra_special_tokens", "a list or a JSON object", _any_of(list, dict)),
    )
    for key in names.split()
}
"""Key -> what its value is, in words and as a test; null says nothing, as no key."""


def read(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The keys of a side file that mean something to us; none where there is no file.

    Args:
      path: of the file.
      kind: one of `FILES`.

    Raises:
      UserError: it is no JSON object, or a key has a value that we do not compute.
    """
    path = Path(path)
    content = read_json(path)
    return {} if content is None else check(content, kind, path)


def read_json(path: Path) -> Any:
    """What a JSON file holds, or None where there is no such file.

    Raises:
      UserError: the file is not JSON.
    """
    try:
        return characters.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); copy or download it again."
        ) from error


def check(content: Any, kind: str, where: str | os.PathLike) -> dict[str, Any]:
    """`read` of what a file holds, without what is null; ``where`` names it."""
    if not isinstance(content, dict):
        raise UserError(f"{where} is no JSON object; copy or download it again.")
    if half := characters.half_character(content):
        raise UserError(f"{where} holds half a character ({half}); correct it.")
    keys, found, unknown = FILES[kind], {}, []
    for key, value in content.items():
        if key in keys.reads:
            if value is not None:
                check_kind(key, value, where)
                found[key] = value
        elif key in keys.only:
            if value not in keys.only[key]:
                allowed = " or ".join(map(repr, keys.only[key]))
                raise UserError(
                    f"{where} says {key}={told(value)}; only models with "
                    f"{key}={allowed} can be loaded."
                )
        elif key not in keys.idle:
            unknown.append(key)
    if unknown:
        terminal.say(
            f"note: {where} has keys that mean nothing here: {', '.join(unknown)}"
        )
    return found


def check_kind(key: str, value: Any, where: str | os.PathLike) -> None:
    """Raises UserError where a value is not of its key's kind; ``where`` names it."""
    wanted, fits = KINDS.get(key, ("", lambda value: True))
    if not fits(value):
        raise UserError(
            f"{where} says {key}={told(value)}, which does not fit: give {wanted}."
        )

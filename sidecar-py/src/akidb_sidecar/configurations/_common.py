"""Keys that the configurations of all families share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from akidb_sidecar.configurations._values import Values

IGNORED = (
    # What the file and its model are called, and which program wrote it.
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "name_or_path",
    "sentence_transformers",
    "tokenizer_class",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    # In which type the weights are stored; here the device decides in which it computes.
    "dtype",
    "torch_dtype",
    # What the reference returns in addition to the last hidden state, and how it comes to it.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "experts_implementation",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "tie_last_hidden_states",
    "torchscript",
    "use_cache",
    # Training.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_range",
    "tf_legacy_loss",
    "use_bfloat16",
    # Heads on top of the encoder.
    "classifier_dropout",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    # Special tokens, which the tokenizer's files place.
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "mask_token_id",
    "pad_token_id",
    "prefix",
    "sep_token_id",
    "unk_token_id",
    # How words are generated.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_past",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)
"""Keys that cannot change a vector."""

_OWN_CODE = ("AutoConfig", "AutoModel")
"""The classes by which the reference loads an encoder."""


def judge(
    values: Values, own_code: re.Pattern[str] | None = None, positions: tuple[str, ...] = ("absolute",)
) -> None:
    """Refuse what no family computes.

    ``own_code`` matches code in ``auto_map`` that computes the same; ``positions`` are the values of
    ``position_embedding_type`` that do.
    """
    values.ignore(("model_type", *IGNORED))
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        values.must_be(key, False)
    values.must_be("position_embedding_type", *positions)
    for key in ("pruned_heads", "per_layer_config", "attribute_map"):
        values.must_be(key, {})
    values.must_be("transformers_weights", "model.safetensors")
    for key in (
        "configuration_files",
        "compression_config",
        "lora_adaptations",
        "cross_attention_hidden_size",
    ):
        values.must_be(key)
    for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_every_n_layers"):
        values.must_be(key, 0)
    _judge_code(values, own_code)


def judge_encoder(
    values: Values, own_code: re.Pattern[str] | None = None, positions: tuple[str, ...] = ("absolute",)
) -> None:
    """Do so for a network whose tokens see all of their text."""
    judge(values, own_code, positions)
    for key in ("is_causal", "causal"):
        values.must_be(key, False)
    values.must_be("use_bidirectional_attention", True)
    for key in ("quantization", "quantization_config"):
        values.must_be(key)


def judge_activation(values: Values, key: str, *supported: str) -> None:
    """Refuse an activation but these, of which one is the default where the key is missing."""
    if key in values and values.get(key) is None:
        raise values.bad(key, " or ".join(f"`{name}`" for name in supported))
    values.must_be(key, *supported)


def width_and_heads(values: Values) -> tuple[int, int]:
    """Return the width of a token's vector, and the number of heads that share it evenly."""
    width, heads = values.size("hidden_size"), values.size("num_attention_heads")
    if width % heads:
        raise ModelError("bad_model", f"`hidden_size` {width} is not a multiple of {heads} attention heads")
    if values.size("head_dim", width // heads) != width // heads:
        raise ModelError(
            "unsupported_model", f"`head_dim` in `config.json` is not supported unless it is {width // heads}"
        )
    return width, heads


def _judge_code(values: Values, own_code: re.Pattern[str] | None) -> None:
    """Refuse a model that asks for code of its own in place of the network that its ``model_type`` names.

    A class for a head changes no vector.
    """
    classes = values.object_at("auto_map")
    classes.ignore_rest()
    for name in _OWN_CODE:
        code = classes.get(name)
        if code is None or (own_code and isinstance(code, str) and own_code.fullmatch(code)):
            continue
        raise ModelError(
            "unsupported_model",
            f"`auto_map` in `config.json` replaces the `{name}` of its model type by code of its own, "
            "which is never run: vectors without it would be wrong",
        )

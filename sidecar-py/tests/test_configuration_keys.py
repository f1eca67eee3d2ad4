"""Keys of ``config.json``: what is refused, what is harmless, what is unknown, and who is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from conftest import TESTS

from akidb_sidecar import configurations
from akidb_sidecar._errors import ModelError
from akidb_sidecar.configurations import _values

if TYPE_CHECKING:
    from pathlib import Path

GOLDEN = TESTS / "golden"
FAMILIES = {
    "bert": "tiny-bert",
    "camembert": "tiny-xlm-roberta",
    "modernbert": "tiny-modernbert",
    "nomic_bert": "tiny-nomic-bert",
    "qwen3": "tiny-qwen3",
    "roberta": "tiny-xlm-roberta",
    "xlm-roberta": "tiny-xlm-roberta",
}
ENCODERS = tuple(set(FAMILIES) - {"qwen3"})


def config(model_type: str) -> dict[str, Any]:
    if model_type == "qwen3":
        return QWEN3
    content: dict[str, Any] = json.loads((GOLDEN / FAMILIES[model_type] / "config.json").read_text())
    return {**content, "model_type": model_type}


def read(folder: Path, content: object) -> configurations.File:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text)
    return configurations.read(folder)


QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "quantization": {"group_size": 64, "bits": 4},
    "quantization_config": {"group_size": 64, "bits": 4},
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151669,
}
BGE = {
    "_name_or_path": "/root/.cache/torch/sentence_transformers/BAAI_bge-small-en/",
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.30.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
LABSE = {
    **BGE,
    "directionality": "bidi",
    "gradient_checkpointing": False,
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
}
E5_MULTILINGUAL = {
    **BGE,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "xlm-roberta",
    "output_past": True,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
NOMIC = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining",
    },
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "eos_token_id": None,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 8192,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "transformers_version": "4.37.2",
    "type_vocab_size": 2,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
    "vocab_size": 30528,
}
MODERNBERT = {
    "architectures": ["ModernBertModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "reference_compile": False,
    "repad_logits_with_grad": False,
    "sep_token_id": 50282,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "torch_dtype": "float32",
    "transformers_version": "4.48.0",
    "vocab_size": 50368,
}


@pytest.mark.parametrize("known", [QWEN3, BGE, LABSE, E5_MULTILINGUAL, NOMIC, MODERNBERT])
def test_the_files_of_widely_used_models_are_read_without_a_warning(
    tmp_path: Path, known: dict[str, Any]
) -> None:
    assert read(tmp_path, known).warnings == ()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_keys_that_are_not_known_are_named_in_one_warning(tmp_path: Path, model_type: str) -> None:
    unknown = {"zeta_scale": 2.0, "alpha\x1b[31m": [1], "nothing": None}
    (warning,) = read(tmp_path, {**config(model_type), **unknown}).warnings
    assert "`alpha\\u001b[31m`, `zeta_scale`;" in warning
    assert len(warning.splitlines()) == 1
    assert "nothing" not in warning


def test_many_keys_that_are_not_known_are_counted(tmp_path: Path) -> None:
    unknown = {f"key_{number:03}_{'x' * 200}": number for number in range(500)}
    (warning,) = read(tmp_path, {**BGE, **unknown}).warnings
    assert "and 480 more" in warning
    assert len(warning) < 3000


@pytest.mark.parametrize("model_type", FAMILIES)
def test_numbers_that_are_none_may_stand_in_keys_that_are_not_needed(tmp_path: Path, model_type: str) -> None:
    text = json.dumps({**config(model_type), "initializer_range": "?", "new": "??"})
    text = text.replace('"?"', "Infinity").replace('"??"', "[NaN, -Infinity, 1e999]")
    assert "`new`" in read(tmp_path, text).warnings[0]


def test_of_a_key_that_is_there_twice_the_last_one_counts(tmp_path: Path) -> None:
    text = json.dumps(BGE).replace('"hidden_act"', '"hidden_act": "relu", "hidden_act"')
    assert read(tmp_path, text).model_type == "bert"
    text = json.dumps(BGE).replace('"hidden_act": "gelu"', '"hidden_act": "gelu", "hidden_act": "relu"')
    with pytest.raises(ModelError, match=r"`hidden_act` in .* is `relu`"):
        read(tmp_path, text)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf{}", json.dumps(BGE).encode("utf-16"), b'{"a": "\xff"}'])
def test_encodings_that_the_reference_cannot_read_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        configurations.read(tmp_path)


OTHER_NETWORKS: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (True, 1, "yes"),
    "attribute_map": ({"hidden_act": "x"},),
    "auto_map": ([], "modeling.Model", {"AutoModel": "modeling.Model"}, {"AutoConfig": ["a.B", None]}),
    "compression_config": ({}, {"format": "x"}),
    "configuration_files": (["config.4.0.0.json"],),
    "is_decoder": (True, 1),
    "is_encoder_decoder": (True,),
    "lora_adaptations": (["retrieval.query"],),
    "moe_every_n_layers": (2,),
    "n_routed_experts": (64,),
    "num_experts": (8, "8"),
    "num_local_experts": (8,),
    "per_layer_config": ({"0": {"intermediate_size": 8}},),
    "position_embedding_type": ("alibi", "relative_key", "relative_key_query", "rotary", 1, ["absolute"]),
    "pruned_heads": ({"0": [1]},),
    "quantization_config": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
        {"quant_method": "awq", "bits": 4, "group_size": 64},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "compressed-tensors"},
        {"load_in_4bit": True},
        "int8",
    ),
    "transformers_weights": ("adapter_model.bin", "other.safetensors"),
}
ENCODERS_ONLY: dict[str, tuple[object, ...]] = {
    "causal": (True,),
    "head_dim": (8, "16", 0),
    "is_causal": (True, 1),
    "quantization": ({"group_size": 64, "bits": 4}, {"mode": "mxfp4"}),
    "use_bidirectional_attention": (False,),
}
FAMILIES_ONLY: dict[str, dict[str, tuple[object, ...]]] = {
    "bert": {"feed_forward_type": ("geglu",), "hidden_act": ("relu", "gelu_new", "gelu_pytorch_tanh", None)},
    "roberta": {"hidden_act": ("quick_gelu", None), "pad_token_id": (-1, 1e9, True, "1")},
    "modernbert": {
        "hidden_activation": ("silu", "gelu_pytorch_tanh", None),
        "sliding_window": (0, "64", 1.5),
        "rope_scaling": ({"rope_type": "yarn", "factor": 4.0}, {"type": "linear", "factor": 2.0}, "yarn"),
        "rope_parameters": ({"full_attention": {"type": "linear"}}, {"rope_theta": 1e4}, {"other": {}}),
    },
    "nomic_bert": {
        "activation_function": ("gelu", "geglu"),
        "hidden_act": ("gelu", "relu", None),
        "rope_scaling": ({"rope_type": "dynamic", "factor": 2.0},),
        "rope_theta": (0, "10000", True),
        "rotary_emb_scale_base": (512,),
        "scale_attn_weights": (False, 1),
    },
    "qwen3": {
        "causal": (False,),
        "hidden_act": ("gelu", None),
        "is_causal": (False, None, 0, 1),
        "layer_types": (["full_attention"], "full_attention", ["sliding_attention"] * 28, [1] * 28),
        "partial_rotary_factor": (0.5,),
        "rope_parameters": ({"full_attention": {"rope_theta": 1e6}}, {"rope_type": "llama3"}, [1]),
        "rope_scaling": ({"type": "yarn", "factor": 4.0}, {"rope_type": "default", "type": "linear"}),
        "use_bidirectional_attention": (True,),
    },
}
REFUSED = [
    (model_type, key, value)
    for model_type in FAMILIES
    for keys in (
        OTHER_NETWORKS,
        ENCODERS_ONLY if model_type in ENCODERS else {},
        FAMILIES_ONLY.get(model_type, {}),
    )
    for key, values in keys.items()
    for value in values
]


@pytest.mark.parametrize(("model_type", "key", "value"), REFUSED)
def test_a_value_that_makes_another_network_is_refused_by_key(
    tmp_path: Path, model_type: str, key: str, value: object
) -> None:
    with pytest.raises(ModelError) as refused:
        read(tmp_path, {**config(model_type), key: value})
    assert refused.value.code in ("unsupported_model", "bad_model")
    named = key if key != "quantization_config" or model_type != "qwen3" else "quantiz"
    assert named in refused.value.message
    assert len(refused.value.message.splitlines()) == 1


HARMLESS: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False, None),
    "attribute_map": ({},),
    "auto_map": (
        None,
        {},
        {"AutoTokenizer": ["tokenizer.T", None], "AutoModelForSequenceClassification": "modeling.Head"},
    ),
    "dtype": ("float16", "bfloat16", None),
    "num_experts": (0, None),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "transformers_weights": ("model.safetensors",),
}
HARMLESS_HERE: dict[str, dict[str, tuple[object, ...]]] = {
    "bert": {"hidden_act": ("gelu", "gelu_python"), "is_causal": (False,), "head_dim": (12,)},
    "modernbert": {
        "hidden_activation": ("gelu_python",),
        "rope_scaling": (None, {}, {"rope_type": "default"}),
        "layer_types": (None,),
    },
    "nomic_bert": {
        "auto_map": (
            {
                "AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig",
                "AutoModel": "modeling_hf_nomic_bert.NomicBertModel",
            },
        ),
        "hidden_act": ("swish",),
        "rope_scaling": (None, {}, {"rope_type": "default"}),
        "rotary_emb_fraction": (1, 1.0),
    },
    "qwen3": {
        "hidden_act": ("swish",),
        "is_causal": (True,),
        "layer_types": (None, ["full_attention"] * 28),
        "rope_scaling": ({}, {"type": "default"}, {"rope_type": "default", "rope_theta": 5e5}),
        "use_sliding_window": (True, None),  # the first of 28 layers with a window would be the 29th
    },
}


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        (model_type, key, value)
        for model_type in FAMILIES
        for keys in (HARMLESS, HARMLESS_HERE.get(model_type, {}))
        for key, values in keys.items()
        for value in values
    ],
)
def test_a_value_that_changes_nothing_is_read_without_a_warning(
    tmp_path: Path, model_type: str, key: str, value: object
) -> None:
    assert read(tmp_path, {**config(model_type), key: value}).warnings == ()


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": None}, 10_000.0),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_theta": 2e6}}, 2e6),
        ({"rope_scaling": {"rope_theta": 3e6, "rope_type": "default"}}, 3e6),
        ({"rope_scaling": {"rope_theta": 3e6}, "rope_parameters": {"rope_theta": 2e6}}, 3e6),
        ({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 2e6}}, 1e6),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 2e6}}, 2e6),
    ],
)
def test_the_base_of_the_angles_is_taken_from_where_the_reference_takes_it(
    tmp_path: Path, changes: dict[str, object], theta: float
) -> None:
    configuration = read(tmp_path, {**QWEN3, **changes}).configuration
    assert isinstance(configuration, configurations.Qwen3Configuration)
    assert configuration.theta == theta


def test_the_newer_of_two_names_of_nomic_wins(tmp_path: Path) -> None:
    both = {"hidden_size": 48, "num_attention_heads": 3, "layer_norm_eps": None}
    for content in ({**NOMIC, **both}, dict(reversed({**NOMIC, **both}.items()))):
        configuration = read(tmp_path, content).configuration
        assert isinstance(configuration, configurations.NomicBertConfiguration)
        assert (configuration.dimension, configuration.heads, configuration.epsilon) == (48, 3, 1e-12)
    with pytest.raises(ModelError, match=r"`n_layer` in .* is `many`"):
        read(tmp_path, {**NOMIC, "n_layer": "many"})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_table_in_the_documentation_has_every_key(model_type: str) -> None:
    text = (TESTS.parents[1] / "docs" / "MODELS.md").read_text()
    _, _, section = text.partition("\n### `config.json`\n")
    section, _, _ = section.partition("\n### ")
    values = _values.Values(config(model_type))
    configurations.FAMILIES[model_type](values)
    known = values.known()
    assert len(known) > 80
    assert not {key for key in known if f"`{key}`" not in section}

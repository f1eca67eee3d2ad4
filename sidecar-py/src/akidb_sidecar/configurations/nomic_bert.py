"""Nomic's BERT. Nussbaum et al. 2024, https://arxiv.org/abs/2402.01613."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from akidb_sidecar.configurations import _common, _rotary

if TYPE_CHECKING:
    from akidb_sidecar.configurations._values import Values

OLDER_KEYS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
"""What older files call the keys of the newer ones, which win where a file has both."""
FLAGS_FOR_OTHER_NETWORKS = (
    "prenorm",
    "scale_attn_by_inverse_layer_idx",
    "parallel_block",
    "use_rms_norm",
    "qkv_proj_bias",
    "mlp_fc1_bias",
    "mlp_fc2_bias",
    "rotary_emb_interleaved",
)
KEYS_FOR_OTHER_NETWORKS = ("rotary_scaling_factor", "rotary_emb_scale_base")
IGNORED = (
    "attn_pdrop",
    "dense_seq_output",
    "embd_pdrop",
    "fused_bias_fc",
    "fused_dropout_add_ln",
    "max_trained_positions",
    "pad_vocab_size_multiple",
    "parallel_block_tied_norm",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "use_flash_attn",
    "use_xentropy",
    # Of experts, of which it has none.
    "expert_choice_router",
    "ffn_div",
    "moe_impl",
    "moe_normalize_expert_weights",
    "moe_resid_pdrop",
    "moe_top_k",
    "num_shared_experts",
)
OWN_CODE = re.compile(r"(nomic-ai/[\w.-]+--)?(configuration|modeling)_hf_nomic_bert\.NomicBert(Config|Model)")
"""Nomic's code from before the reference had this network, which computes the same."""


@dataclass(frozen=True)
class NomicBertConfiguration:
    """The sizes of an encoder."""

    dimension: int
    heads: int
    layers: int
    inner: int
    vocabulary: int
    positions: int
    types: int
    theta: float
    epsilon: float


def read(values: Values) -> NomicBertConfiguration:
    """Read the configuration of a NomicBERT."""
    values.rename(OLDER_KEYS)
    _common.judge_encoder(values, OWN_CODE)
    for key in FLAGS_FOR_OTHER_NETWORKS:
        values.must_be(key, False)
    for key in KEYS_FOR_OTHER_NETWORKS:
        values.must_be(key)
    _common.judge_activation(values, "hidden_act", "silu", "swish")
    _common.judge_activation(values, "activation_function", "swiglu", "silu", "swish")
    values.must_be("scale_attn_weights", True)
    values.must_be("rotary_emb_fraction", 1.0, 1)
    values.ignore(IGNORED)
    dimension, heads = _common.width_and_heads(values)
    return NomicBertConfiguration(
        dimension=dimension,
        heads=heads,
        layers=values.size("num_hidden_layers"),
        inner=values.size("intermediate_size"),
        vocabulary=values.size("vocab_size"),
        positions=values.size("max_position_embeddings", 2048),
        types=values.size("type_vocab_size"),
        theta=_rotary.base(values, values.number("rotary_emb_base", 1000.0)),
        epsilon=values.number("layer_norm_eps", 1e-12),
    )

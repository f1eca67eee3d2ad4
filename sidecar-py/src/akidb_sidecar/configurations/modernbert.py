"""ModernBERT. Warner et al. 2024, https://arxiv.org/abs/2412.13663."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError
from akidb_sidecar.configurations import _common, _rotary

if TYPE_CHECKING:
    from akidb_sidecar.configurations._values import Values

EVERYWHERE, IN_WINDOW = "full_attention", "sliding_attention"
KINDS = (EVERYWHERE, IN_WINDOW)
"""What a layer attends to, as ``layer_types`` names it."""
IGNORED = (
    "classifier_activation",
    "classifier_bias",
    "classifier_pooling",
    "decoder_bias",
    "deterministic_flash_attn",
    "embedding_dropout",
    "initializer_cutoff_factor",
    "layer_norm_eps",  # many files have it; the network reads `norm_eps`
    "mlp_dropout",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
)


@dataclass(frozen=True)
class ModernBertConfiguration:
    """The sizes of an encoder."""

    dimension: int
    heads: int
    kinds: list[str]
    """What each layer attends to."""
    inner: int
    vocabulary: int
    positions: int
    window: int
    """Tokens to each side of a token, in the layers that attend to a window."""
    thetas: dict[str, float]
    """Of each kind of layer."""
    epsilon: float


def read(values: Values) -> ModernBertConfiguration:
    """Read the configuration of a ModernBERT."""
    # The reference does not read the key for this network; the files of mmBERT say `sans_pos`.
    _common.judge_encoder(values, positions=("absolute", "sans_pos"))
    _common.judge_activation(values, "hidden_activation", "gelu", "gelu_python")
    for key in ("norm_bias", "attention_bias", "mlp_bias"):
        values.must_be(key, False)
    values.ignore(IGNORED)
    dimension, heads = _common.width_and_heads(values)
    return ModernBertConfiguration(
        dimension=dimension,
        heads=heads,
        kinds=_kinds(values),
        inner=values.size("intermediate_size"),
        vocabulary=values.size("vocab_size"),
        positions=values.size("max_position_embeddings", 8192),
        # `sliding_window` counts one side, and wins.
        window=values.size("sliding_window", values.size("local_attention", 128) // 2),
        thetas=_thetas(values),
        epsilon=values.number("norm_eps", 1e-5),
    )


def _kinds(values: Values) -> list[str]:
    """Return the kind of each layer: newer files list them, older ones say which attend everywhere."""
    layers = values.size("num_hidden_layers")
    kinds = values.get("layer_types")
    period = values.size("global_attn_every_n_layers", 3)
    if kinds is None:
        return [IN_WINDOW if index % period else EVERYWHERE for index in range(layers)]
    if not isinstance(kinds, list) or any(kind not in KINDS for kind in kinds) or len(kinds) != layers:
        raise values.bad("layer_types", f"a list of {layers} times `{EVERYWHERE}` or `{IN_WINDOW}`")
    return kinds


def _thetas(values: Values) -> dict[str, float]:
    """Return the base of the rotary angles of each kind of layer; older files name them otherwise."""
    everywhere = values.number("global_rope_theta", 160_000.0)
    # Null stands for that of the other layers, no number for the default.
    in_window = values.number("local_rope_theta", everywhere if "local_rope_theta" in values else 10_000.0)
    by_kind = values.object_at("rope_parameters")
    thetas = {
        EVERYWHERE: _rotary.of_kind(by_kind.object_at(EVERYWHERE), everywhere),
        IN_WINDOW: _rotary.of_kind(by_kind.object_at(IN_WINDOW), in_window),
    }
    if by_kind.unknown():
        raise ModelError(
            "bad_model",
            "`rope_parameters` in `config.json` must be an object with one for each kind of layer",
        )
    # What is here is meant for all layers.
    for_all = values.object_at("rope_scaling")
    return {kind: _rotary.of_kind(for_all, theta) for kind, theta in thetas.items()}

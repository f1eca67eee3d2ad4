"""BERT, and RoBERTa and its multilingual kin: BERT whose positions begin after the padding token's number.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805; Liu et al. 2019, https://arxiv.org/abs/1907.11692;
Conneau et al. 2019, https://arxiv.org/abs/1911.02116. In RoBERTa position ``pad_token_id`` was that of
padding; texts are packed here without any, so that many rows at the start of the table are never used, and
the longest text is as much shorter than the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError
from akidb_sidecar.configurations import _common

if TYPE_CHECKING:
    from akidb_sidecar.configurations._values import Values

IGNORED = (
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)
PADDING_TOKEN = 1
"""Of RoBERTa, where ``config.json`` does not say which it is."""


@dataclass(frozen=True)
class BertConfiguration:
    """The sizes of an encoder."""

    dimension: int
    heads: int
    layers: int
    inner: int
    vocabulary: int
    positions: int
    """Rows of the table of positions."""
    padding: int | None
    """The token whose position all of its kind have, and that is not counted; of RoBERTa."""
    types: int
    epsilon: float
    prefix: str
    """What the names of the tensors may begin with."""

    @property
    def first_position(self) -> int:
        """That of a text's first token."""
        return 0 if self.padding is None else self.padding + 1


def read(values: Values) -> BertConfiguration:
    """Read the configuration of a BERT."""
    return _read(values, padding=None, prefix="bert.")


def read_roberta(values: Values) -> BertConfiguration:
    """Read the configuration of a RoBERTa, XLM-RoBERTa or CamemBERT."""
    return _read(values, values.size("pad_token_id", PADDING_TOKEN, least=0), prefix="roberta.")


def _read(values: Values, padding: int | None, prefix: str) -> BertConfiguration:
    _common.judge_encoder(values)
    _common.judge_activation(values, "hidden_act", "gelu", "gelu_python")
    values.must_be("feed_forward_type", "original")  # another one is of Jina's code
    values.ignore(IGNORED)
    dimension, heads = _common.width_and_heads(values)
    positions = values.size("max_position_embeddings", 512)
    configuration = BertConfiguration(
        dimension=dimension,
        heads=heads,
        layers=values.size("num_hidden_layers"),
        inner=values.size("intermediate_size"),
        vocabulary=values.size("vocab_size"),
        positions=positions,
        padding=padding,
        types=values.size("type_vocab_size"),
        epsilon=values.number("layer_norm_eps", 1e-12),
        prefix=prefix,
    )
    first_position = configuration.first_position
    if positions <= first_position:
        raise ModelError(
            "bad_model", f"of {positions} positions none is left where {first_position} is the first"
        )
    return configuration

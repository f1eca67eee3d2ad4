"""RoBERTa and its multilingual kin: BERT whose positions begin behind the number of the padding token.

Liu et al. 2019, https://arxiv.org/abs/1907.11692; Conneau et al. 2019, https://arxiv.org/abs/1911.02116. The
network is BERT's, in MLX as in the kernels. Its positions are counted from ``pad_token_id + 1`` on, because
position ``pad_token_id`` was that of padding; texts are packed here without any, so that many rows at the
start of the table are never used, and the longest text is as much shorter than the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_sidecar.models import bert
from akidb_sidecar.models._configuration import size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from akidb_sidecar._weights import Weights

PADDING_TOKEN = 1
"""Where ``config.json`` does not say which it is."""


def read(config: Mapping[str, object], weights: Weights) -> bert.Parameters:
    """Take the encoder's tensors; those of the pooler and of training heads are left alone."""
    if weights.has("roberta.embeddings.word_embeddings.weight"):
        weights = weights.under("roberta.")
    first_position = size(config, "pad_token_id", PADDING_TOKEN, least=0) + 1
    return bert.read_encoder(config, weights, first_position)

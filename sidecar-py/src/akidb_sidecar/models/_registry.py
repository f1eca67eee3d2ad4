"""What computes which configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_sidecar.configurations import BertConfiguration, ModernBertConfiguration, NomicBertConfiguration
from akidb_sidecar.models import bert, modernbert, nomic_bert, qwen3

if TYPE_CHECKING:
    from akidb_sidecar._weights import Weights
    from akidb_sidecar.configurations import Configuration
    from akidb_sidecar.models import Parameters


def read(configuration: Configuration, weights: Weights) -> Parameters:
    """Take the tensors of a model from its weights."""
    if isinstance(configuration, BertConfiguration):
        return bert.read(configuration, weights)
    if isinstance(configuration, ModernBertConfiguration):
        return modernbert.read(configuration, weights)
    if isinstance(configuration, NomicBertConfiguration):
        return nomic_bert.read(configuration, weights)
    return qwen3.read(configuration, weights)

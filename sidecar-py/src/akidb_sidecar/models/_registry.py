"""Every supported ``model_type``, and what reads a model of it. No other place names them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError
from akidb_sidecar.models import bert, modernbert, nomic_bert, qwen3, xlm_roberta

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from akidb_sidecar._weights import Weights
    from akidb_sidecar.models import Parameters

READERS: dict[str, Callable[[Mapping[str, object], Weights], Parameters]] = {
    "bert": bert.read,
    "camembert": xlm_roberta.read,
    "modernbert": modernbert.read,
    "nomic_bert": nomic_bert.read,
    "qwen3": qwen3.read,
    "roberta": xlm_roberta.read,
    "xlm-roberta": xlm_roberta.read,
}


def known(model_type: object) -> str:
    """Return the ``model_type`` of a ``config.json``, which must be a supported one."""
    if isinstance(model_type, str) and model_type in READERS:
        return model_type
    supported = ", ".join(f"`{name}`" for name in sorted(READERS))
    raise ModelError(
        "unsupported_model", f"model type `{model_type}` is not supported; supported are {supported}"
    )

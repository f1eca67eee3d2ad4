"""A model's ``config.json``: which family it is of, and what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError
from akidb_sidecar.configurations import bert, modernbert, nomic_bert, qwen3
from akidb_sidecar.configurations._values import Values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Configuration = (
    bert.BertConfiguration
    | modernbert.ModernBertConfiguration
    | nomic_bert.NomicBertConfiguration
    | qwen3.Qwen3Configuration
)
FAMILIES: dict[str, Callable[[Values], Configuration]] = {
    "bert": bert.read,
    "camembert": bert.read_roberta,
    "modernbert": modernbert.read,
    "nomic_bert": nomic_bert.read,
    "qwen3": qwen3.read,
    "roberta": bert.read_roberta,
    "xlm-roberta": bert.read_roberta,
}
"""Every supported ``model_type``, and what reads its configuration."""
MOST_NAMED = 20


@dataclass(frozen=True)
class File:
    """What was read."""

    model_type: str
    configuration: Configuration
    warnings: tuple[str, ...]
    """For people: one line each."""


def read(model_path: Path) -> File:
    """Read the file of a model's directory; raise :class:`ModelError` where it cannot be obeyed."""
    values = Values(_object(model_path))
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(f"`{name}`" for name in FAMILIES)
        raise ModelError(
            "unsupported_model",
            f"model type {values.shown('model_type')} is not supported; supported are {supported}",
        )
    return File(model_type, FAMILIES[model_type](values), _warnings(values.unknown()))


def _object(model_path: Path) -> dict[str, object]:
    try:
        # Exactly as the reference does it: no other encoding, no byte order mark.
        content = json.loads((model_path / "config.json").read_bytes().decode())
    except FileNotFoundError:
        raise ModelError("bad_model", f"`{model_path}` has no `config.json`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("bad_model", f"`config.json` in `{model_path}` cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError("bad_model", f"`config.json` in `{model_path}` is not a JSON object")
    return content


def _warnings(unknown: list[str]) -> tuple[str, ...]:
    if not unknown:
        return ()
    names = ", ".join(f"`{name}`" for name in unknown[:MOST_NAMED])
    more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
    consequence = "if one of them changes what the model computes, the vectors are wrong"
    return (f"`config.json` has keys that are not known and were ignored: {names}{more}; {consequence}",)

"""Values of a ``config.json``, judged as they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST = 1 << 24
"""No size of a model is beyond it."""


def size(config: Mapping[str, object], key: str, default: int | None = None, *, least: int = 1) -> int:
    """Return a whole number from ``least`` on; ``default`` stands for one that is not there, or null."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise _bad(key, value, f"a whole number from {least} to {LARGEST}")
    return value


def number(config: Mapping[str, object], key: str, default: float) -> float:
    """Return a number above 0."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise _bad(key, value, "a number above 0")
    return float(value)


def flag(config: Mapping[str, object], key: str, *, default: bool) -> bool:
    """Return a truth value."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _bad(key, value, "true or false")
    return value


def width_and_heads(config: Mapping[str, object]) -> tuple[int, int]:
    """Return the width of a token's vector, and the number of heads that share it evenly."""
    width, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    if width % heads:
        raise ModelError("bad_model", f"`hidden_size` {width} is not a multiple of {heads} attention heads")
    return width, heads


def _bad(key: str, value: object, wanted: str) -> ModelError:
    return ModelError("bad_model", f"`{key}` in `config.json` is `{str(value)[:100]}`: it must be {wanted}")

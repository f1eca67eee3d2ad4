"""How matrices are quantized by MLX, as ``config.json`` says it for all of them or for single ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from akidb_sidecar.configurations._values import Values

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
BITS_PER_WORD = 32


@dataclass(frozen=True)
class Layout:
    """How the integers of a matrix are stored."""

    group_size: int
    bits: int

    def shape(self, inputs: int) -> tuple[int, int]:
        """Return words and groups of a row of this many weights."""
        if inputs % self.group_size:
            raise ModelError(
                "bad_model", f"rows of {inputs} weights have no whole number of groups of {self.group_size}"
            )
        return inputs * self.bits // BITS_PER_WORD, inputs // self.group_size


class Quantization:
    """Which matrices of a checkpoint are stored in which layout."""

    def __init__(self, default: Layout, single: Mapping[str, Layout]) -> None:
        self._default = default
        self._single = single

    def layout(self, name: str) -> Layout:
        """Return the layout of a matrix."""
        return self._single.get(name) or self._single.get(f"model.{name}", self._default)


def read(values: Values) -> Quantization | None:
    """Read it; ``None`` where nothing is said of it. Some files say it twice, and either must be readable."""
    found = [_read(values, key) for key in ("quantization", "quantization_config")]
    return next((quantization for quantization in found if quantization), None)


def _read(values: Values, key: str) -> Quantization | None:
    stated = values.get(key)
    if not stated:
        return None
    if not isinstance(stated, dict):
        raise values.bad(key, "an object")
    single = {name: _layout(entry, stated) for name, entry in stated.items() if isinstance(entry, dict)}
    return Quantization(_layout(stated, {}), single)


def _layout(entry: dict[str, object], default: dict[str, object]) -> Layout:
    method = entry.get("quant_method", entry.get("mode", default.get("mode", "affine")))
    if method != "affine":
        raise ModelError(
            "unsupported_model",
            f"weights quantized by `{str(method)[:100]}` are not supported; MLX's `affine` ones are",
        )
    group_size = entry.get("group_size", default.get("group_size"))
    bits = entry.get("bits", default.get("bits"))
    if (
        group_size not in GROUP_SIZES
        or bits not in BITS
        or type(bits) is not int
        or type(group_size) is not int
    ):
        raise ModelError(
            "unsupported_model",
            f"`quantization` in `config.json` has {bits} bits in groups of {group_size}; supported are "
            f"{', '.join(map(str, BITS))} bits in groups of {', '.join(map(str, GROUP_SIZES))}",
        )
    return Layout(group_size, bits)

"""A model's weights: safetensors files, judged before they are trusted."""

from __future__ import annotations

import json
import operator
import struct
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_HEADER_BYTES = 100 * 1024 * 1024


class Weights:
    """Tensors by name. Names are taken once, so that what a model does not need can be freed."""

    def __init__(self, tensors: dict[str, mx.array], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    @classmethod
    def read(cls, model_path: Path) -> Weights:
        """Read every ``*.safetensors`` of a directory."""
        files = sorted(model_path.glob("*.safetensors"))
        if not files:
            raise ModelError(
                "bad_model", f"`{model_path}` has no `*.safetensors`; other formats are never loaded"
            )
        tensors: dict[str, mx.array] = {}
        for file in files:
            try:
                _check_header(file)
                loaded = mx.load(str(file))
            except (OSError, RuntimeError, ValueError) as error:
                raise ModelError("bad_model", f"`{file.name}` cannot be read: {_one_line(error)}") from error
            tensors.update(loaded)  # type: ignore[arg-type]
        return cls(tensors)

    def under(self, prefix: str) -> Weights:
        """Return the same tensors, named from ``prefix`` on."""
        return Weights(self._tensors, self._prefix + prefix)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self._prefix + name in self._tensors

    def take(self, name: str, *shape: int) -> mx.array:
        """Return a tensor, which must have this shape, and forget it."""
        full_name = self._prefix + name
        tensor = self._tensors.pop(full_name, None)
        if tensor is None:
            raise ModelError("bad_model", f"the weights have no tensor `{full_name}`")
        if tensor.shape != shape:
            raise ModelError("bad_model", f"tensor `{full_name}` has shape {tensor.shape} instead of {shape}")
        if not mx.issubdtype(tensor.dtype, mx.floating):
            raise ModelError(
                "bad_model", f"tensor `{full_name}` holds {tensor.dtype} instead of floating point"
            )
        return tensor


def _check_header(file: Path) -> None:
    """Check that every tensor that the header names lies inside the file."""
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(size_bytes - 8, LONGEST_HEADER_BYTES):
            raise ModelError(
                "bad_model", f"`{file.name}` is damaged: its header cannot have {header_bytes} bytes"
            )
        try:
            header = json.loads(opened.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed_bytes = max(map(operator.index, ends), default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError("bad_model", f"`{file.name}` is damaged: its header is not valid") from error
    if header_bytes + 8 + needed_bytes != size_bytes:
        raise ModelError(
            "bad_model",
            f"`{file.name}` is damaged: "
            f"it has {size_bytes} bytes where {header_bytes + 8 + needed_bytes} are needed",
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

"""A model's weights: safetensors files, judged before they are trusted."""

from __future__ import annotations

import json
import operator
import struct
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar import _layout
from akidb_sidecar._errors import ModelError
from akidb_sidecar._quantization import Quantization, QuantizedMatrix

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_HEADER_BYTES = 100 * 1024 * 1024


class Weights:
    """Tensors by name. Names are taken once, so that what a model does not need can be freed."""

    def __init__(
        self,
        tensors: dict[str, mx.array],
        quantization: Quantization | None = None,
        prefix: str = "",
        dtype: mx.Dtype | None = None,
    ) -> None:
        self._tensors = tensors
        self._quantization = quantization
        self._prefix = prefix
        self._dtype = dtype

    @classmethod
    def read(cls, model_path: Path, quantization: Quantization | None = None) -> Weights:
        """Read the files that the directory's index names; where it has none, every ``*.safetensors``."""
        tensors: dict[str, mx.array] = {}
        for file in _files(model_path):
            try:
                _check_header(file)
                loaded = mx.load(str(file))
            except (OSError, RuntimeError, ValueError) as error:
                raise ModelError("bad_model", f"`{file.name}` cannot be read: {_one_line(error)}") from error
            twice = tensors.keys() & loaded
            if twice:
                raise ModelError(
                    "bad_model", f"tensor `{min(twice)}` is in `{file.name}` and in another file, too"
                )
            tensors.update(loaded)  # type: ignore[arg-type]
        return cls(tensors, quantization)

    @property
    def is_quantized(self) -> bool:
        """Whether some of the matrices are."""
        return self._quantization is not None

    def under(self, prefix: str) -> Weights:
        """Return the same tensors, named from ``prefix`` on."""
        return Weights(self._tensors, self._quantization, self._prefix + prefix, self._dtype)

    def converted(self, dtype: mx.Dtype) -> Weights:
        """Return the same tensors, which :meth:`take` then gives as numbers of this type."""
        return Weights(self._tensors, self._quantization, self._prefix, dtype)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self._prefix + name in self._tensors

    def take(self, name: str, *shape: int) -> mx.array:
        """Return a tensor of floating-point numbers, which must have this shape, and forget it."""
        tensor = self._take(name, shape)
        if not mx.issubdtype(tensor.dtype, mx.floating):
            raise ModelError(
                "bad_model",
                f"tensor `{self._prefix + name}` holds {_dtype(tensor)} instead of floating point",
            )
        return tensor if self._dtype is None else tensor.astype(self._dtype)

    def take_matrix(self, name: str, outputs: int, inputs: int) -> mx.array | QuantizedMatrix:
        """Return the ``weight`` under a name, plain or quantized as it is stored, and forget it."""
        if not self.has(f"{name}.scales"):
            return self.take(f"{name}.weight", outputs, inputs)
        layout = self._quantization.layout(self._prefix + name) if self._quantization else None
        if layout is None:
            raise ModelError(
                "bad_model",
                f"`{self._prefix + name}` is quantized, but `config.json` does not say how in `quantization`",
            )
        words, groups = layout.shape(inputs)
        weight = self._take(f"{name}.weight", (outputs, words))
        if weight.dtype != mx.uint32:
            raise ModelError(
                "bad_model", f"tensor `{self._prefix + name}.weight` holds {_dtype(weight)} instead of uint32"
            )
        scales = self.take(f"{name}.scales", outputs, groups)
        return QuantizedMatrix(weight, scales, self.take(f"{name}.biases", outputs, groups), layout)

    def _take(self, name: str, shape: tuple[int, ...]) -> mx.array:
        full_name = self._prefix + name
        tensor = self._tensors.pop(full_name, None)
        if tensor is None:
            raise ModelError("bad_model", f"the weights have no tensor `{full_name}`")
        if tensor.shape != shape:
            raise ModelError("bad_model", f"tensor `{full_name}` has shape {tensor.shape} instead of {shape}")
        return tensor


def _files(model_path: Path) -> list[Path]:
    shards = _layout.shards(model_path)
    for name in shards:
        if not (model_path / name).is_file():
            raise ModelError("bad_model", f"`{name}` is missing, which `{_layout.INDEX}` names")
    files = [model_path / name for name in shards] or sorted(model_path.glob("*.safetensors"))
    if not files:
        raise ModelError(
            "bad_model", f"`{model_path}` has no `*.safetensors`; other formats are never loaded"
        )
    return files


def _check_header(file: Path) -> None:
    """Check that the tensors fill the file, one behind the other. MLX compares their sizes and shapes."""
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(size_bytes - 8, LONGEST_HEADER_BYTES):
            raise ModelError(
                "bad_model", f"`{file.name}` is damaged: its header cannot have {header_bytes} bytes"
            )
        try:
            header = json.loads(opened.read(header_bytes), object_pairs_hook=_without_duplicates)
            offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            places = sorted((operator.index(start), operator.index(end)) for start, end in offsets)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError("bad_model", f"`{file.name}` is damaged: its header is not valid") from error
    end = 0
    for place_start, place_end in places:
        if place_start != end:
            raise ModelError("bad_model", f"`{file.name}` is damaged: its tensors overlap or leave gaps")
        end = place_end
    if header_bytes + 8 + end != size_bytes:
        raise ModelError(
            "bad_model",
            f"`{file.name}` is damaged: it has {size_bytes} bytes where {header_bytes + 8 + end} are needed",
        )


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _dtype(tensor: mx.array) -> str:
    return str(tensor.dtype).removeprefix("mlx.core.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

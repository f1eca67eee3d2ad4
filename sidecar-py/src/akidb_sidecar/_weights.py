"""A model's weights, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar import _layout, _safetensors
from akidb_sidecar._errors import ModelError
from akidb_sidecar._quantization import QuantizedMatrix

if TYPE_CHECKING:
    from pathlib import Path

    from akidb_sidecar.configurations._quantization import Quantization

OLDER_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""What checkpoints that came from TensorFlow call the weights of a layer norm."""


class Weights:
    """Tensors by name. Names are taken once, so that what a model does not need can be freed."""

    def __init__(
        self,
        tensors: dict[str, mx.array],
        unreadable: dict[str, str] | None = None,
        quantization: Quantization | None = None,
        prefix: str = "",
    ) -> None:
        """``unreadable`` says of which type the tensors are that cannot be read."""
        self._tensors = tensors
        self._unreadable = unreadable or {}
        self._quantization = quantization
        self._prefix = prefix

    @classmethod
    def read(cls, model_path: Path) -> Weights:
        """Read the files that hold the weights of a model's directory."""
        tensors: dict[str, mx.array] = {}
        unreadable: dict[str, str] = {}
        for file in _layout.weights_files(model_path):
            readable, others = _safetensors.load(file)
            for name, tensor in readable.items():
                newer = _newer_name(name)
                if newer in tensors:
                    raise ModelError("bad_model", f"`{file.name}` has the tensor `{newer}` for a second time")
                tensors[newer] = tensor
            unreadable |= {_newer_name(name): dtype for name, dtype in others.items()}
        return cls(tensors, unreadable)

    def under(self, prefix: str) -> Weights:
        """Return the same tensors, named from ``prefix`` on."""
        return self._with(self._quantization, self._prefix + prefix)

    def under_if_there(self, prefix: str, name: str) -> Weights:
        """Do so where that name stands under the prefix: a model with a head puts its encoder under one."""
        return self.under(prefix) if self.has(prefix + name) else self

    def quantized_as(self, quantization: Quantization | None) -> Weights:
        """Return the same tensors, of which :meth:`take_matrix` then reads the quantized ones in this way."""
        return self._with(quantization, self._prefix)

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
        return tensor

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
        if tensor is None and full_name in self._unreadable:
            raise ModelError(
                "bad_model",
                f"tensor `{full_name}` is stored as `{self._unreadable[full_name]}`, which cannot be read; "
                "store it as F32, F16 or BF16",
            )
        if tensor is None:
            raise ModelError("bad_model", f"the weights have no tensor `{full_name}`")
        if tensor.shape != shape:
            raise ModelError("bad_model", f"tensor `{full_name}` has shape {tensor.shape} instead of {shape}")
        return tensor

    def _with(self, quantization: Quantization | None, prefix: str) -> Weights:
        return Weights(self._tensors, self._unreadable, quantization, prefix)


def _newer_name(name: str) -> str:
    for older, newer in OLDER_NAMES.items():
        name = name.replace(older, newer)
    return name


def _dtype(tensor: mx.array) -> str:
    return str(tensor.dtype).removeprefix("mlx.core.")

"""The device that computes: chosen before anything is computed, and before a model's module is imported.

MLX's wheels for macOS name the GPU as their default device even where none is available, as in a
virtual machine or a sandbox, and throw when it is first used. So it is used once, here.

This is also where MLX is imported for the first time: after its BLAS, because the first library to define a
symbol wins, and with :data:`TF32` off.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal

from akidb_sidecar import _blas
from akidb_sidecar._device_errors import device_errors
from akidb_sidecar._errors import DeviceLostError, ModelError

TF32 = "MLX_ENABLE_TF32"
"""Unless it is 0, MLX multiplies float32 with 11 bits of each number where a GPU is faster with those:
NVIDIA's, and Apple's from the M5 and macOS 26.2 on."""

PAUSES_SECONDS = (1.0, 2.0, None)
"""What follows each attempt at a GPU that fails while it computes."""

os.environ.setdefault(TF32, "0")
BLAS = _blas.load()

import mlx.core as mx  # noqa: E402

if TYPE_CHECKING:
    from akidb_sidecar._engine import DeviceChoice


def choose(choice: DeviceChoice) -> tuple[str, ...]:
    """Make the device MLX's default; return warnings.

    Raise :class:`ModelError` when it has to be a GPU and none can be used.
    """
    if choice == "cpu":
        mx.set_default_device(mx.Device(mx.cpu))
        return ()
    if chosen() == "cpu":
        if choice == "gpu":
            raise _unusable("this MLX has none")
        return ()
    try:
        _try()
    except (DeviceLostError, RuntimeError) as error:
        if choice == "gpu" and isinstance(error, DeviceLostError):
            raise  # the next process may find it well
        if choice == "gpu":
            raise _unusable(str(error)) from error
        mx.set_default_device(mx.Device(mx.cpu))
        return (f"the CPU computes, because the GPU cannot be used: {error}",)
    return ()


def chosen() -> Literal["gpu", "cpu"]:
    """Return what computes."""
    return "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"


def _try() -> None:
    """Compute something small; MLX throws where that is not possible.

    A GPU that is just being reset, which may be the fault of another program, is given time.
    """
    for pause in PAUSES_SECONDS:
        try:
            with device_errors():
                mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))
        except DeviceLostError:
            if pause is None:
                raise
            time.sleep(pause)
        else:
            return


def _unusable(reason: str) -> ModelError:
    return ModelError(
        "bad_configuration",
        f"`--device gpu` is given, but no GPU can be used ({reason}): use `--device auto` or `--device cpu`",
    )

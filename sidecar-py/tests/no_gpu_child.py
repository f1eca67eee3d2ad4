"""The sidecar's commands, where MLX names a GPU that cannot be used, as on a Mac without one."""

from __future__ import annotations

import sys
from typing import Any

from akidb_sidecar import __main__, _blas

_blas.load()

import mlx.core as mx  # noqa: E402

_evaluate, _set_device = mx.eval, mx.set_default_device


def _throw(*_arrays: Any) -> None:
    raise RuntimeError("[metal::load_device] No Metal device found")


def _choose(device: mx.Device | mx.DeviceType) -> None:
    """Compute on the CPU if that is what is chosen."""
    now = mx.Device(mx.gpu) if device == mx.Device(mx.gpu) else mx.Device(mx.cpu)
    mx.default_device = lambda: now
    mx.eval = _throw if now == mx.Device(mx.gpu) else _evaluate
    _set_device(mx.Device(mx.cpu))


_choose(mx.Device(mx.gpu))
mx.set_default_device = _choose
sys.exit(__main__.main())

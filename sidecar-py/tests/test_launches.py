"""How many kernels a GPU has to launch for a batch: each costs time, however small it is."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import pytest
from graph_operations import kernels, with_kernels_of_a_gpu
from qwen3_checkpoint import Checkpoint

from akidb_sidecar import _device, configurations
from akidb_sidecar._weights import Weights
from akidb_sidecar.models import _attention, _registry
from akidb_sidecar.models._linear import Precision

import mlx.core as mx  # isort: skip - after its BLAS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mlx, pytest.mark.device]

LENGTHS = array("I", [5 + 55 * text // 63 for text in range(64)])
"""Of 64 texts, from 5 to 60 tokens."""
QWEN3 = {
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
"""The layers and heads of Qwen3-Embedding-0.6B; its widths change no count."""


@pytest.fixture(autouse=True)
def _kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if _device.chosen() == "cpu":
        pytest.skip("a CPU launches nothing; `pytest --gpu-branches` tests this")
    with_kernels_of_a_gpu(monkeypatch, _attention.FUSED_SIZES)
    mx.enable_compile()  # nothing is computed, so nothing is compiled either
    yield
    mx.disable_compile()


def count(folder: Path) -> int:
    parameters = _registry.read(configurations.read(folder).configuration, Weights.read(folder))
    model = parameters.model(Precision(mx.float16, keep_quantized=True))
    ids = mx.array([5] * sum(LENGTHS))
    return kernels(model(ids, LENGTHS, lambda: None, mx.float16)).total()


@pytest.fixture
def qwen3_path(tmp_path: Path) -> Path:
    Checkpoint(QWEN3, dtype=mx.bfloat16, bits=4).write(tmp_path)
    return tmp_path


def test_a_batch_of_minilm_needs_fewer_than_200_kernels(minilm_path: Path) -> None:
    assert 100 < count(minilm_path) < 200


def test_a_batch_of_qwen3_needs_fewer_than_750_kernels(qwen3_path: Path) -> None:
    assert 28 * 15 < count(qwen3_path) < 750


def test_finer_groups_would_need_more_kernels(
    minilm_path: Path, qwen3_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (minilm_path, qwen3_path):
        coarse = count(folder)
        with monkeypatch.context() as patch:
            patch.setattr(_attention, "LARGEST_WASTE", 1.15)
            patch.setattr(_attention, "SLACK_TOKENS", 2)
            assert count(folder) > 1.7 * coarse

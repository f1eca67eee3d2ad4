"""The types in which a GPU computes: which is taken, how exact it is, and what its range does not hold."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import cosine, pack, rows
from qwen3_checkpoint import Checkpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from precision import golden

from akidb_sidecar import _device, _mlx_engine
from akidb_sidecar._engine import Batch, Engine
from akidb_sidecar._errors import OutputError
from akidb_sidecar._mlx_engine import MlxEngine
from akidb_sidecar.models._linear import RangeError, held
from akidb_sidecar.models._rotary import Rotary
from akidb_sidecar.models._steps import after_layer

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from collections.abc import Callable

    from akidb_sidecar._engine import GpuDtype

pytestmark = [pytest.mark.mlx, pytest.mark.device]

TEXTS = [[5, 6, 7], [9], list(range(1, 40))]
BRANCHES_OF_A_GPU = "a CPU computes in float32 whatever it is told; `pytest --gpu-branches` tests this"


def embed(engine: Engine, texts: list[list[int]] = TEXTS) -> list[array[float]]:
    lengths, token_ids = pack(texts)
    return rows(array("f", bytes(engine.embed(Batch(lengths, token_ids, "last")))), len(texts))


@pytest.fixture
def gpu() -> None:
    if _device.chosen() == "cpu":
        pytest.skip(BRANCHES_OF_A_GPU)


@pytest.mark.parametrize("name", golden.MODELS[1:])
def test_by_default_vectors_are_as_exact_as_promised(name: str) -> None:
    model = golden.read(name)
    engine = _mlx_engine.load(model.folder, 512)
    promised = 0.999 if "4bit" in name else 0.9999
    for text in model.texts:
        lengths, token_ids = pack([text.token_ids])
        vector = array("f", bytes(engine.embed(Batch(lengths, token_ids, model.pooling))))
        assert cosine(vector, text.vector) >= promised


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("choice", "dtype"),
    [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "float32"), ("stored", "bfloat16")],
)
def test_the_type_is_the_one_that_is_asked_for(choice: GpuDtype, dtype: str, tmp_path: Path) -> None:
    Checkpoint({}, dtype=mx.bfloat16).write(tmp_path)
    engine = _mlx_engine.load(tmp_path, 64, gpu_dtype=choice)
    assert (engine.info.dtype, engine.info.warnings) == (dtype, ())
    exact = embed(_mlx_engine.load(tmp_path, 64, gpu_dtype="float32"))
    for vector, wanted in zip(embed(engine), exact, strict=True):
        assert cosine(vector, wanted) >= 0.999
        assert (list(vector) == list(wanted)) is (dtype == "float32")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("factor", [1e7, 1e-7], ids=["too large", "too small"])
def test_weights_beyond_the_range_of_float16_are_computed_in_float32(factor: float, tmp_path: Path) -> None:
    """The gated product is linear in one of its factors: what is taken from one matrix another gives back."""
    checkpoint = Checkpoint({}, dtype=mx.bfloat16)
    name = "layers.0.mlp.{}_proj.weight"
    checkpoint.stored[name.format("up")] *= factor
    checkpoint.stored[name.format("down")] *= 1 / factor
    checkpoint.write(tmp_path)
    engine = _mlx_engine.load(tmp_path, 64)
    assert engine.info.dtype == "float32"
    assert ["float16 cannot hold the weights" in warning for warning in engine.info.warnings] == [True]
    exact = embed(_mlx_engine.load(tmp_path, 64, gpu_dtype="float32"))
    assert [list(vector) for vector in embed(engine)] == [list(vector) for vector in exact]


@pytest.mark.usefixtures("gpu")
def test_a_model_whose_numbers_become_too_large_for_float16_is_computed_in_float32(tmp_path: Path) -> None:
    checkpoint = Checkpoint({})
    for layer in range(2):
        checkpoint.stored[f"layers.{layer}.mlp.up_proj.weight"] *= 1e5
        checkpoint.stored[f"layers.{layer}.mlp.down_proj.weight"] *= 1e-2
    checkpoint.write(tmp_path)
    engine = _mlx_engine.load(tmp_path, 64)
    assert (engine.info.dtype, engine.info.warnings) == ("float16", ())
    exact = embed(_mlx_engine.load(tmp_path, 64, gpu_dtype="float32"))
    for _ in range(2):
        for vector, wanted in zip(embed(engine), exact, strict=True):
            assert cosine(vector, wanted) >= 0.9999
        assert engine.info.dtype == "float32"
        assert ["become too large" in warning for warning in engine.info.warnings] == [True]


class FakeModel:
    """A model in which one token is too large for float16, and another one for everything."""

    dimension, vocabulary, longest_text = 2, 10, 8
    TOO_LARGE, HOPELESS = 7, 8

    def __init__(self) -> None:
        self.computed: list[mx.Dtype] = []

    def __call__(
        self, token_ids: mx.array, lengths: array[int], on_step: Callable[[], None], dtype: mx.Dtype
    ) -> mx.array:
        del lengths, on_step
        self.computed.append(dtype)
        is_lost = token_ids == self.HOPELESS
        if dtype == mx.float16:
            is_lost = is_lost | (token_ids == self.TOO_LARGE)
        return mx.broadcast_to(mx.where(is_lost, mx.inf, 1.0)[:, None], (token_ids.size, 2))


@pytest.mark.parametrize("first", [[[1]], [[FakeModel.TOO_LARGE]]], ids=["later", "at once"])
def test_a_batch_with_too_large_numbers_is_computed_once_more(first: list[list[int]]) -> None:
    model = FakeModel()
    engine = MlxEngine(model, "fake", 8, mx.float16)
    embed(engine, first)
    stays = first == [[1]]
    for _ in range(2):
        model.computed.clear()
        assert list(embed(engine, [[2, 3], [FakeModel.TOO_LARGE]])[1]) == [1.0, 1.0]
        assert model.computed == ([mx.float16, mx.float32] if stays else [mx.float32])
    assert engine.info.dtype == ("float16" if stays else "float32")
    model.computed.clear()
    embed(engine, [[4]])
    assert model.computed == [mx.float16 if stays else mx.float32]


def test_numbers_that_no_type_holds_are_an_error_and_nothing_else_suffers() -> None:
    engine = MlxEngine(FakeModel(), "fake", 8, mx.float16)
    with pytest.raises(OutputError):
        embed(engine, [[FakeModel.HOPELESS]])
    assert list(embed(engine, [[1]])[0]) == [1.0, 1.0]
    assert engine.info.dtype == "float16"


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize(
    ("values", "fits"),
    [([1.0, -2.5, 0.0], True), ([0.0, 0.0], True), ([65_000.0, 1e-9], True), ([1.0, 1e5], False),
     ([-1e30], False), ([1e-7, 2e-7], False), ([float("inf"), 1.0], True)],
    ids=str,
)  # fmt: skip
def test_float16_holds_what_it_can_hold(values: list[float], fits: bool, dtype: mx.Dtype) -> None:
    stored = mx.array(values).astype(dtype)
    if fits:
        assert mx.array_equal(held(stored, mx.float16), stored.astype(mx.float16))
    else:
        with pytest.raises(RangeError):
            held(stored, mx.float16)
    assert held(stored, mx.float32).dtype == mx.float32


def test_the_speeds_of_rotary_positions_are_as_exact_as_float32() -> None:
    for size, theta in ((64, 1e6), (128, 1e6), (64, 160_000.0), (96, 10_000.0)):
        exact = [theta ** (-2 * pair / size) for pair in range(size // 2)]
        cosines, sines = Rotary(size, theta).table(2)
        assert cosines[1].tolist() == pytest.approx(mx.cos(mx.array(exact)).tolist(), rel=1e-7, abs=0)
        # Of a small angle, the sine is as exact as the angle.
        assert sines[1, -1].item() == pytest.approx(exact[-1], rel=1e-7)


@pytest.mark.usefixtures("gpu")
def test_only_much_is_computed_in_steps() -> None:
    steps = 0

    def on_step() -> None:
        nonlocal steps
        steps += 1

    for tokens, dimension, expected in ((2016, 384, 0), (2016, 1024, 1), (1024, 4096, 0), (8192, 384, 1)):
        steps = 0
        after_layer(mx.zeros((tokens, dimension)), on_step)
        assert steps == expected


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("recommended", "cache"), [(8 << 30, int(0.05 * (8 << 30))), (96 << 30, 1 << 30), (None, 1 << 30)]
)
def test_a_gpu_keeps_its_buffers_and_its_weights(
    recommended: int | None, cache: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, int] = {}
    information = {} if recommended is None else {"max_recommended_working_set_size": recommended}
    monkeypatch.setattr(mx, "device_info", lambda _device: information)
    monkeypatch.setattr(mx, "set_cache_limit", lambda limit: told.update({"cache": limit}))

    def set_wired_limit(limit: int) -> None:
        told["wired"] = limit
        raise ValueError("older than macOS 15")

    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    Checkpoint({}).write(tmp_path)
    engine = _mlx_engine.load(tmp_path, 64)
    assert told["cache"] == cache
    assert cache < told["wired"] < cache + (1 << 30)
    assert len(embed(engine)) == len(TEXTS)

"""The C kernels against MLX, against themselves as other machines build them, and without a compiler."""

from __future__ import annotations

import dataclasses
import errno
import math
import mmap
import os
import platform
import random
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from engines import in_kernels, in_mlx, mlx_engine_of

from akidb_sidecar import _kernel_engine, _kernels, _mlx_engine, _prepare, configurations
from akidb_sidecar._engine import Batch, Engine, Pooling
from akidb_sidecar._errors import BatchError, OutputError
from akidb_sidecar._kernel_engine import KernelEngine
from akidb_sidecar._mlx_engine import MlxEngine
from akidb_sidecar._weights import Weights
from akidb_sidecar.models import bert
from akidb_sidecar.models._bert_kernels import KernelBert
from akidb_sidecar.models._linear import Linear

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.mlx

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
LONGEST = 256
VOCABULARY, PLACES = 30522, 512
SAME_COSINE = 0.999999
OTHER_BUILDS = (
    [("-march=x86-64",), ("-march=x86-64", "-mavx2", "-mfma")]
    if platform.machine() == "x86_64"
    else [("-O1",)]
)


@pytest.fixture(scope="module")
def model_path() -> Path:
    return Path(_prepare.prepare("all-minilm-l6-v2").path)


@pytest.fixture(scope="module")
def kernel_engine(model_path: Path) -> KernelEngine:
    engine = in_kernels(model_path, LONGEST)
    assert engine.info.warnings == ()
    return engine


@pytest.fixture(scope="module")
def mlx_engine(model_path: Path) -> MlxEngine:
    return in_mlx(model_path, LONGEST)


def read_parameters(model_path: Path) -> bert.Parameters:
    configuration = configurations.read(model_path).configuration
    assert isinstance(configuration, configurations.BertConfiguration)
    return bert.read(configuration, Weights.read(model_path))


def small_parameters(dimension: int = 64, heads: int = 2, inner: int = 128) -> bert.Parameters:
    """Return two layers of random numbers: 50 words, 40 places."""
    key = mx.random.key(1)

    def numbers(*shape: int) -> mx.array:
        nonlocal key
        key, use = mx.random.split(key)
        return mx.random.normal(shape, key=use) * 0.3

    def linear(inputs: int, outputs: int) -> Linear:
        return Linear(numbers(outputs, inputs), numbers(outputs))

    def norm() -> bert.LayerNorm:
        return bert.LayerNorm(1 + numbers(dimension), numbers(dimension), 1e-12)

    layers = [
        bert.LayerParameters(
            query=linear(dimension, dimension),
            key=linear(dimension, dimension),
            value=linear(dimension, dimension),
            attention_output=linear(dimension, dimension),
            attention_norm=norm(),
            up=linear(dimension, inner),
            down=linear(inner, dimension),
            output_norm=norm(),
        )
        for _ in range(2)
    ]
    words, positions, padding = numbers(50, dimension), numbers(40, dimension), numbers(dimension)
    return bert.Parameters(words, positions, 3, padding, norm(), layers, heads, inner)


def made_up_batch(
    lengths: Sequence[int], pooling: Pooling = "mean", threads: int = 1, vocabulary: int = VOCABULARY
) -> Batch:
    generator = random.Random(sum(lengths))  # noqa: S311 - repeatable
    token_ids = array("I", (generator.randrange(vocabulary) for _ in range(sum(lengths))))
    return Batch(array("I", lengths).tobytes(), token_ids.tobytes(), pooling, threads)


def varied_lengths(seed: int, longest: int = LONGEST) -> list[int]:
    generator = random.Random(seed)  # noqa: S311 - repeatable
    return [generator.randint(1, generator.choice((8, 40, longest))) for _ in range(generator.randint(1, 24))]


def rows(vectors: memoryview, dimension: int) -> list[memoryview[float]]:
    numbers = vectors.cast("B").cast("f")
    return [numbers[start : start + dimension] for start in range(0, len(numbers), dimension)]


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    product = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return product / (math.hypot(*left) * math.hypot(*right))


def assert_alike(left: memoryview, right: memoryview, dimension: int = 384) -> None:
    pairs = zip(rows(left, dimension), rows(right, dimension), strict=True)
    assert min(cosine(a, b) for a, b in pairs) >= SAME_COSINE


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_kernels_give_the_vectors_of_mlx(
    kernel_engine: Engine, mlx_engine: Engine, pooling: Pooling, threads: int
) -> None:
    for lengths in ([1], [LONGEST, 1, 33], varied_lengths(1), varied_lengths(2)):
        batch = made_up_batch(lengths, pooling, threads)
        assert_alike(kernel_engine.embed(batch), mlx_engine.embed(batch))


@pytest.mark.parametrize(("dimension", "heads", "inner"), [(64, 2, 128), (128, 1, 96), (96, 3, 32)])
def test_kernels_give_the_vectors_of_mlx_for_other_shapes(dimension: int, heads: int, inner: int) -> None:
    kernels = _kernels.load()
    assert KernelBert.fits(kernels, small_parameters(dimension, heads, inner))
    ours = KernelBert(kernels, small_parameters(dimension, heads, inner))
    engine = mlx_engine_of(small_parameters(dimension, heads, inner), "bert", 40)
    for pooling in POOLINGS:
        batch = made_up_batch([40, 1, 13, 2], pooling, vocabulary=50)
        vectors = memoryview(ours.embed(2, pooling, batch.lengths, batch.token_ids))
        assert_alike(vectors, engine.embed(batch), dimension)


@pytest.mark.parametrize("flags", OTHER_BUILDS)
def test_kernels_of_other_machines_give_the_same_vectors(
    kernel_engine: Engine,
    model_path: Path,
    flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = _kernels.Kernels(dataclasses.replace(_kernels.LIBRARY, tunings=(flags,)).load())
    model = KernelBert(kernels, read_parameters(model_path))
    batch = made_up_batch(varied_lengths(3))
    assert_alike(
        memoryview(model.embed(2, "mean", batch.lengths, batch.token_ids)), kernel_engine.embed(batch)
    )


def test_number_of_threads_does_not_change_a_bit(kernel_engine: Engine) -> None:
    generator = random.Random(1)  # noqa: S311 - repeatable
    batches = [made_up_batch(varied_lengths(seed, longest=60)[:4]) for seed in range(8)]
    expected = [bytes(kernel_engine.embed(batch)) for batch in batches]
    for _ in range(200):
        number = generator.randrange(len(batches))
        batch = dataclasses.replace(batches[number], threads=generator.randint(1, 5))
        assert bytes(kernel_engine.embed(batch)) == expected[number]


def test_neighbours_do_not_change_a_bit(kernel_engine: Engine) -> None:
    text = made_up_batch([33])
    (alone,) = rows(kernel_engine.embed(text), 384)
    other = made_up_batch([90, 7])
    lengths = array("I", [90, 7, 33]).tobytes()
    together = Batch(lengths, other.token_ids + text.token_ids, "mean", 2)
    assert bytes(rows(kernel_engine.embed(together), 384)[2]) == bytes(alone)


@pytest.mark.parametrize("which", ["kernel_engine", "mlx_engine"])
@pytest.mark.parametrize(
    ("lengths", "token_ids"),
    [
        ([], []),
        ([0], []),
        ([2, 0], [5, 6]),
        ([2], [5, VOCABULARY]),
        ([1], [2**32 - 1]),
        ([3], [5, 6]),
        ([1], [5, 6]),
        ([PLACES + 1], [5] * (PLACES + 1)),
        ([2**32 - 1], [5]),
    ],
)
def test_batches_that_no_table_holds_are_refused(
    request: pytest.FixtureRequest, which: str, lengths: list[int], token_ids: list[int]
) -> None:
    engine: Engine = request.getfixturevalue(which)
    with pytest.raises(BatchError):
        engine.embed(Batch(array("I", lengths).tobytes(), array("I", token_ids).tobytes(), "mean", 1))


def test_longest_text_and_last_token_are_not_refused(kernel_engine: Engine, mlx_engine: Engine) -> None:
    token_ids = array("I", [VOCABULARY - 1] * PLACES).tobytes()
    batch = Batch(array("I", [PLACES]).tobytes(), token_ids, "mean", 2)
    assert_alike(kernel_engine.embed(batch), mlx_engine.embed(batch))


def test_vectors_that_are_not_finite_are_refused() -> None:
    parameters = small_parameters()
    damaged = parameters.layers[1].output_norm
    parameters.layers[1] = dataclasses.replace(
        parameters.layers[1], output_norm=dataclasses.replace(damaged, weight=damaged.weight * math.nan)
    )
    model = KernelBert(_kernels.load(), parameters)
    batch = made_up_batch([3, 4], vocabulary=50)
    with pytest.raises(OutputError):
        model.embed(1, "mean", batch.lengths, batch.token_ids)


def test_other_threads_of_python_go_on_during_a_batch(kernel_engine: Engine) -> None:
    beats = 0
    done = threading.Event()

    def beat() -> None:
        nonlocal beats
        while not done.wait(0.005):
            beats += 1

    thread = threading.Thread(target=beat)
    thread.start()
    started = time.monotonic()
    before = beats
    kernel_engine.embed(made_up_batch([200] * 20))
    seen, spent = beats - before, time.monotonic() - started
    done.set()
    thread.join()
    assert seen > spent / 0.005 / 10


def test_calls_from_several_threads_wait_for_one_another(kernel_engine: Engine) -> None:
    batches = [made_up_batch(varied_lengths(seed, longest=40), threads=1 + seed % 3) for seed in range(6)]
    expected = [bytes(kernel_engine.embed(batch)) for batch in batches]
    answers: dict[int, bytes] = {}

    def embed(number: int) -> None:
        answers[number] = bytes(kernel_engine.embed(batches[number]))

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(6)] == expected


@pytest.mark.usefixtures("cpu_computes")
def test_mlx_takes_over_with_a_warning_where_there_is_no_compiler(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    engine = _mlx_engine.load(model_path, LONGEST)
    assert isinstance(engine, MlxEngine)
    assert any("no C compiler" in warning for warning in engine.info.warnings)


@pytest.mark.usefixtures("cpu_computes")
def test_mlx_takes_over_with_a_warning_where_the_compiler_fails(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    engine = _mlx_engine.load(model_path, LONGEST)
    assert isinstance(engine, MlxEngine)
    assert any("`false" in warning or "/false`" in warning for warning in engine.info.warnings)
    assert list((tmp_path / "akidb").iterdir()) == []


def test_mlx_takes_over_where_a_head_is_narrower_than_a_panel() -> None:
    assert not KernelBert.fits(_kernels.load(), small_parameters(dimension=72, heads=2))


def test_kernels_are_built_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(not_a_folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    loaded = _kernels.LIBRARY.load()
    assert loaded.functions.akidb_panel() > 0
    (warning,) = loaded.warnings
    assert "XDG_CACHE_HOME" in warning
    assert list(tmp_path.iterdir()) == [not_a_folder]


class NoHugePages(mmap.mmap):
    """As of a Linux that was built without them."""

    def madvise(self, *_advice: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


def test_kernels_compute_where_there_are_no_huge_pages(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmap, "mmap", NoHugePages)
    in_kernels(model_path, LONGEST)


@pytest.mark.usefixtures("cpu_computes")
@pytest.mark.parametrize("error", [PermissionError(errno.EPERM, "no"), RuntimeError("no")])
def test_mlx_takes_over_with_a_warning_where_the_kernels_cannot_be_loaded(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse() -> _kernels.Kernels:
        raise error

    monkeypatch.setattr(_kernels, "load", refuse)
    engine = _mlx_engine.load(model_path, LONGEST)
    assert isinstance(engine, MlxEngine)
    assert any("MLX computes the model" in warning for warning in engine.info.warnings)


@pytest.mark.parametrize("refusal", ["missing", "forbidden"])
def test_cores_are_counted_where_a_sandbox_hides_which_may_be_used(
    monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    def refuse(_pid: int) -> set[int]:
        raise PermissionError

    if refusal == "missing":
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    assert _kernel_engine._usable_cores() == os.cpu_count()

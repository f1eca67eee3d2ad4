"""Which device computes, where there is a GPU, none, and one that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from conftest import Child, GoldenText, cosine

from akidb_sidecar import _device, _kernels, _protocol
from akidb_sidecar._engine import DeviceChoice
from akidb_sidecar._errors import EXIT_CONFIGURATION, DeviceLostError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

NO_GPU = Path(__file__).with_name("no_gpu_child.py")
FAILURE = "[metal::load_device] No Metal device found"
RESET = (
    "[METAL] Command buffer execution failed: Innocent Victim "
    "(00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"
)


class FakeArray:
    def __matmul__(self, _other: FakeArray) -> FakeArray:
        return self


class FakeMlx:
    """What :mod:`_device` uses of MLX, without a GPU, or with one that works or does not."""

    cpu, gpu = "cpu", "gpu"

    def __init__(self, device: str, *, works: bool = True, resets: int = 0) -> None:
        self.device, self._works, self._resets = device, works, resets

    def Device(self, kind: str) -> str:  # noqa: N802 - as MLX has it
        return kind

    def default_device(self) -> str:
        return self.device

    def set_default_device(self, device: str) -> None:
        self.device = device

    def ones(self, _shape: tuple[int, ...]) -> FakeArray:
        return FakeArray()

    def eval(self, _array: FakeArray) -> None:
        if self.device == "gpu" and not self._works:
            raise RuntimeError(FAILURE)
        if self.device == "gpu" and self._resets:
            self._resets -= 1
            raise RuntimeError(RESET)


def choose(monkeypatch: pytest.MonkeyPatch, mlx: FakeMlx, choice: DeviceChoice) -> tuple[str, ...]:
    monkeypatch.setattr(_device, "mx", mlx)
    return _device.choose(choice)


@pytest.mark.parametrize(
    ("choice", "default", "device"),
    [
        ("auto", "gpu", "gpu"),
        ("auto", "cpu", "cpu"),
        ("gpu", "gpu", "gpu"),
        ("cpu", "gpu", "cpu"),
        ("cpu", "cpu", "cpu"),
    ],
)
def test_a_device_that_works_is_used(
    monkeypatch: pytest.MonkeyPatch, choice: DeviceChoice, default: str, device: str
) -> None:
    mlx = FakeMlx(default)
    assert choose(monkeypatch, mlx, choice) == ()
    assert (mlx.device, _device.chosen()) == (device, device)


def test_auto_falls_back_to_the_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    mlx = FakeMlx("gpu", works=False)
    (warning,) = choose(monkeypatch, mlx, "auto")
    assert mlx.device == "cpu"
    assert warning == f"the CPU computes, because the GPU cannot be used: {FAILURE}"


@pytest.mark.parametrize(("resets", "device"), [(1, "gpu"), (2, "gpu"), (3, "cpu")])
def test_a_gpu_that_is_being_reset_is_given_time(
    monkeypatch: pytest.MonkeyPatch, resets: int, device: str
) -> None:
    mlx = FakeMlx("gpu", resets=resets)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    warnings = choose(monkeypatch, mlx, "auto")
    assert (mlx.device, len(warnings)) == (device, 0 if device == "gpu" else 1)
    assert pauses == [1.0, 2.0][:resets]


def test_a_gpu_that_was_asked_for_and_stays_lost_is_left_to_the_next_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    with pytest.raises(DeviceLostError):
        choose(monkeypatch, FakeMlx("gpu", resets=9), "gpu")


def test_a_gpu_that_cannot_be_used_is_not_tried_where_the_cpu_was_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlx = FakeMlx("gpu", works=False)
    assert choose(monkeypatch, mlx, "cpu") == ()
    assert mlx.device == "cpu"


@pytest.mark.parametrize(
    ("mlx", "reason"), [(FakeMlx("gpu", works=False), FAILURE), (FakeMlx("cpu"), "this MLX has none")]
)
def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, mlx: FakeMlx, reason: str
) -> None:
    with pytest.raises(ModelError) as caught:
        choose(monkeypatch, mlx, "gpu")
    assert caught.value.code == "bad_configuration"
    assert caught.value.message == (
        f"`--device gpu` is given, but no GPU can be used ({reason}): use `--device auto` or `--device cpu`"
    )


@pytest.mark.parametrize(("given", "seen"), [({}, "0"), ({"MLX_ENABLE_TF32": "1"}, "1")])
def test_products_of_float32_are_not_cut_to_tf32_unless_a_person_wants_it(
    given: dict[str, str], seen: str
) -> None:
    code = "import os; from akidb_sidecar import _device; print(os.environ['MLX_ENABLE_TF32'])"
    environment = {name: value for name, value in os.environ.items() if name != "MLX_ENABLE_TF32"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{seen}\n"


@pytest.mark.parametrize(
    ("platform", "choice", "compiles"),
    [
        ("linux", "auto", True),
        ("linux", "cpu", True),
        ("linux", "gpu", False),
        ("darwin", "auto", False),
        ("darwin", "cpu", True),
        ("darwin", "gpu", False),
    ],
)
def test_kernels_are_compiled_ahead_where_a_cpu_is_expected_to_compute(
    monkeypatch: pytest.MonkeyPatch, platform: str, choice: DeviceChoice, *, compiles: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(type(_kernels.LIBRARY), "prepare", lambda _library: "/cache/kernels.so")
    assert _kernels.prepare(choice) == ("at /cache/kernels.so" if compiles else "not needed for a GPU")


def worker(start: Callable[..., Child], program: tuple[str, ...], model: Path, choice: str) -> Child:
    flags = ("--model-path", model, "--max-tokens", "256", "--device", choice)
    return start(*program, "worker", *flags)


@pytest.mark.mlx
def test_a_worker_whose_gpu_cannot_be_used_computes_on_the_cpu_and_says_so(
    start: Callable[..., Child], minilm_path: Path, golden_texts: list[GoldenText]
) -> None:
    child = worker(start, (str(NO_GPU),), minilm_path, "auto")
    ready = child.ready()
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert "own kernels" in ready.blas
    assert ready.warnings == [f"the CPU computes, because the GPU cannot be used: {FAILURE}"]
    assert cosine(child.embed(golden_texts[0].token_ids), golden_texts[0].vector) >= 0.9999


@pytest.mark.mlx
def test_a_worker_that_was_told_to_use_the_cpu_says_nothing_of_the_gpu(
    start: Callable[..., Child], minilm_path: Path
) -> None:
    ready = worker(start, (str(NO_GPU),), minilm_path, "cpu").ready()
    assert (ready.device, ready.warnings) == ("cpu", [])


@pytest.mark.mlx
@pytest.mark.parametrize("program", [(str(NO_GPU),), ("-m", "akidb_sidecar")])
def test_a_worker_that_must_have_a_gpu_and_has_none_is_not_tried_again(
    start: Callable[..., Child], minilm_path: Path, program: tuple[str, ...]
) -> None:
    if program != (str(NO_GPU),) and _device.chosen() == "gpu":
        pytest.skip("this machine has a GPU")
    child = worker(start, program, minilm_path, "gpu")
    child.expect(_protocol.Hello)
    fatal = child.expect(_protocol.Fatal)
    assert fatal.code == "bad_configuration"
    assert "use `--device auto` or `--device cpu`" in fatal.message
    assert child.exit_code() == EXIT_CONFIGURATION


def test_every_choice_has_a_meaning() -> None:
    assert get_args(DeviceChoice) == ("auto", "gpu", "cpu")

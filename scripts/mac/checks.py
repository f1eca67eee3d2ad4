"""The checks: each drives the built gateway, or asks the system."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psutil
from bench.processes import PYTHON, REPOSITORY, fetch, memory_bytes
from bench.systems import GATEWAY
from precision.golden import GOLDEN, LONGEST_TEXT, MINILM, cosine, read
from qwen3 import checkpoint
from stress.gateway import Gateway, send

from mac.report import Check, NotApplicableError

if TYPE_CHECKING:
    from collections.abc import Iterator

ON_MAC = sys.platform == "darwin"
WORKPLACE = REPOSITORY / "target" / "mac"
ONLY_A_MAC = NotApplicableError("only a Mac can show it")
PROMISED_COSINE, EXACT_COSINE = 0.9999, 0.99999
END_SECONDS = 2.0
SPEED_SECONDS = 5.0
TEXTS_OF_REQUEST = 64


def all_checks() -> list[Check]:
    """Return them in the order of ``docs/MAC.md``."""
    return [
        Check("machine", "macOS 14 or later on Apple silicon", machine),
        Check("versions", "those of this checkout", versions),
        Check("device", "one worker on the `gpu` in `float16`, without warnings", device),
        Check("vectors", f"least cosine of all golden texts >= {PROMISED_COSINE}", vectors),
        Check("vectors in float32", f"least cosine >= {EXACT_COSINE}", vectors_in_float32),
        Check("vectors of the CPU", f"device `cpu`, least cosine >= {EXACT_COSINE}", vectors_of_the_cpu),
        Check("speed", "more texts per second than with `--device cpu`", speed),
        Check("memory", "`/health` says what the system says of the worker, within a quarter", memory),
        Check("too long a text", "status 200, cut at the model's limit", too_long_a_text),
        Check("long text of Qwen3", "status 200, the same worker as before", long_text),
        Check("killed worker", "every request answered 200, a new worker within 30 s", killed_worker),
        Check("Ctrl-C", f"exit code 0, no process left after {END_SECONDS:.0f} s", interrupted),
        Check("killed gateway", f"no worker left after {END_SECONDS:.0f} s", killed_gateway),
        Check("tests of any device", "all pass on the GPU", tests_of_any_device),
    ]


def machine() -> tuple[bool, str]:
    """Say what this is."""
    memory_gib = psutil.virtual_memory().total / 2**30
    if not ON_MAC:
        raise NotApplicableError(f"{platform.system()} {platform.machine()}, {memory_gib:.0f} GiB")
    release = platform.mac_ver()[0]
    chip = _said(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"])
    is_expected = int(release.split(".")[0]) >= 14 and platform.machine() == "arm64"
    return is_expected, f"macOS {release}, {chip}, {memory_gib:.0f} GiB"


def versions() -> tuple[bool, str]:
    """Say what runs."""
    said = _said([str(GATEWAY), "--version"])
    return bool(said), f"{said}, MLX {version('mlx')}, Python {platform.python_version()}"


def device() -> tuple[bool, str]:
    """Ask what computes by default."""
    with _gateway("device") as gateway:
        (worker,) = gateway.health()
    found = (
        f"`{worker['device']}` in `{worker['dtype']}`, warnings: {'; '.join(worker['warnings']) or 'none'}"
    )
    if not ON_MAC:
        raise NotApplicableError(found)
    return (worker["device"], worker["dtype"], worker["warnings"]) == ("gpu", "float16", []), found


def vectors() -> tuple[bool, str]:
    """Compare with the golden ones."""
    return _vectors("vectors", PROMISED_COSINE)


def vectors_in_float32() -> tuple[bool, str]:
    """Do so in the type of the reference."""
    return _vectors("vectors-float32", EXACT_COSINE, "--gpu-dtype", "float32")


def vectors_of_the_cpu() -> tuple[bool, str]:
    """Do so without the GPU."""
    return _vectors("vectors-cpu", EXACT_COSINE, "--device", "cpu")


def _vectors(name: str, promised: float, *flags: str) -> tuple[bool, str]:
    entries: list[dict[str, Any]] = json.loads((GOLDEN / "minilm.json").read_text())
    texts = [entry["text"] for entry in entries if entry["token_count"] < LONGEST_TEXT]
    golden = [text.vector for text in read(MINILM).texts]
    with _gateway(name, *flags) as gateway:
        answers = [_embed(gateway, [text])["embeddings"][0] for text in texts]
        answers_at_once = _embed(gateway, texts)["embeddings"]
        (worker,) = gateway.health()
    pairs = [*zip(answers, golden, strict=True), *zip(answers_at_once, golden, strict=True)]
    least = min(cosine(ours, theirs) for ours, theirs in pairs)
    is_on_wanted_device = "cpu" not in flags or worker["device"] == "cpu"
    found = f"{least:.7f} on the {worker['device']} in {worker['dtype']} ({worker['blas']})"
    return least >= promised and is_on_wanted_device, found


def speed() -> tuple[bool, str]:
    """Compare the default with the CPU."""
    by_default, on_cpu = _texts_per_second("speed"), _texts_per_second("speed-cpu", "--device", "cpu")
    found = f"{by_default:.0f} texts/s by default, {on_cpu:.0f} with `--device cpu`"
    if not ON_MAC:
        raise NotApplicableError(found)
    return by_default > on_cpu, found


def _texts_per_second(name: str, *flags: str) -> float:
    texts = [entry["text"] for entry in json.loads((GOLDEN / "minilm.json").read_text())]
    texts = (texts * 2)[:TEXTS_OF_REQUEST]
    with _gateway(name, *flags) as gateway:
        _embed(gateway, texts)
        seconds = []
        end = time.monotonic() + SPEED_SECONDS
        while time.monotonic() < end:
            started = time.monotonic()
            _embed(gateway, texts)
            seconds.append(time.monotonic() - started)
    return TEXTS_OF_REQUEST / statistics.median(seconds)


def memory() -> tuple[bool, str]:
    """Compare what is told of a worker's memory with what the system says."""
    with _gateway("memory") as gateway:
        _embed(gateway, ["Hello world"] * TEXTS_OF_REQUEST)
        time.sleep(2)  # until a heartbeat has told of it
        (worker,) = gateway.health()
        told, system = worker["rss_bytes"], _memory_of(worker["pid"])
    found = f"told {told / 1e6:.0f} MB, system {system / 1e6:.0f} MB"
    return 0.75 * system <= told <= 1.25 * system, found


def _memory_of(pid: int) -> int:
    if not ON_MAC:
        return memory_bytes(pid)
    said = re.search(r"phys_footprint: (\d+) (B|KB|MB|GB)", _said(["/usr/bin/footprint", str(pid)]))
    if said is None:
        raise RuntimeError("`footprint` says nothing of `phys_footprint`")
    return int(said[1]) << 10 * ("B", "KB", "MB", "GB").index(said[2])


def too_long_a_text() -> tuple[bool, str]:
    """Send more than the model takes."""
    with _gateway("too-long") as gateway:
        usage = _embed(gateway, ["word " * 3000])["usage"]
    return usage["truncated"] == 1, f"status 200, {usage['total_tokens']} tokens, {usage['truncated']} cut"


def long_text() -> tuple[bool, str]:
    """Have one text computed for long: of 32,000 tokens on a Mac, where a watchdog watches the GPU."""
    folder, words = GOLDEN / "tiny-qwen3-4bit", 600
    if ON_MAC:
        folder, words = checkpoint.FOLDER, 32_000
        if not (folder / "model.safetensors").exists():
            checkpoint.write(folder, 4)
    with _gateway("long", "--request-timeout", "5m", model=str(folder)) as gateway:
        (before,) = gateway.health()
        started = time.monotonic()
        usage = _embed(gateway, ["a " * words])["usage"]
        took = time.monotonic() - started
        (after,) = gateway.health()
    found = f"status 200, {usage['total_tokens']} tokens in {took:.1f} s"
    return before["pid"] == after["pid"] and usage["total_tokens"] > words / 2, found


def killed_worker() -> tuple[bool, str]:
    """Kill the only worker, and go on asking."""
    with _gateway("killed-worker") as gateway:
        (before,) = gateway.health()
        send(before["pid"], signal.SIGKILL)
        started = time.monotonic()
        answered = 0
        while time.monotonic() - started < 30:
            _embed(gateway, [f"text {answered}"])
            answered += 1
            if [worker["pid"] for worker in gateway.health()] not in ([], [before["pid"]]):
                break
        took = time.monotonic() - started
        pids = [worker["pid"] for worker in gateway.health()]
    return pids != [before["pid"]], f"{answered} answered, a new worker after {took:.1f} s"


def interrupted() -> tuple[bool, str]:
    """Do what Ctrl-C does."""
    with _gateway("interrupted") as gateway:
        processes = _processes(gateway)
        processes[0].send_signal(signal.SIGINT)
        code = processes[0].wait(30)
        left, took = _left(processes)
    return code == 0 and not left, f"exit code {code}, {left} processes left after {took:.1f} s"


def killed_gateway() -> tuple[bool, str]:
    """Kill the gateway, which cannot tell its workers."""
    with _gateway("killed-gateway") as gateway:
        processes = _processes(gateway)
        processes[0].kill()
        left, took = _left(processes[1:])
    return len(processes) > 1 and not left, f"{left} workers left after {took:.1f} s"


def tests_of_any_device() -> tuple[bool, str]:
    """Run the tests that mean any device on the GPU; elsewhere `make test-python` runs them."""
    if not ON_MAC:
        raise ONLY_A_MAC
    command = [str(PYTHON), "-m", "pytest", "-m", "device", "--no-header"]
    done = subprocess.run(  # noqa: S603
        command, cwd=REPOSITORY / "sidecar-py", capture_output=True, text=True, check=False
    )
    return done.returncode == 0, (done.stdout.strip().splitlines() or ["it said nothing"])[-1]


@contextlib.contextmanager
def _gateway(name: str, *flags: str, model: str = MINILM) -> Iterator[Gateway]:
    with Gateway(name, ["--model", model, *flags], 1, {}, WORKPLACE) as gateway:
        yield gateway


def _embed(gateway: Gateway, texts: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = fetch(gateway.url, json.dumps({"texts": texts}), timeout_seconds=300)
    return answer


def _processes(gateway: Gateway) -> list[psutil.Process]:
    (worker,) = gateway.health()
    process = psutil.Process(worker["pid"])
    parent = process.parent()
    if parent is None:
        raise RuntimeError("the worker has no parent")
    return [parent, process]


def _left(processes: list[psutil.Process]) -> tuple[int, float]:
    """Return how many live on after the time that they have to end, and how long that took."""
    started = time.monotonic()
    while any(map(_lives, processes)) and time.monotonic() - started < END_SECONDS:
        time.sleep(0.02)
    return sum(map(_lives, processes)), time.monotonic() - started


def _lives(process: psutil.Process) -> bool:
    """Whether it does; one that nobody has asked for its exit code yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()

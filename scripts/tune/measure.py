"""Start a gateway with one value of a setting, put it under load, and note what came of it."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

from bench import environments, texts
from bench.measure import Corpus
from bench.processes import REPOSITORY, Child, ChildError, memory_bytes, tree
from bench.systems import Server, load_command
from stress import load as recordings
from stress.gateway import PATH, Gateway

from tune.settings import BULK, TIMEOUTS, Load, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKPLACE = REPOSITORY / "target" / "tune"
OVERLOAD_BODIES = 300
BULK_LEAD_SECONDS = 0.3
TIMEOUTS_PER_RUN = 3
"""An overload lasts for this many timeouts, so that the queue is full for most of it."""


class Tuner:
    """Measures one model on this machine."""

    def __init__(self, model: Path, workers: int, seconds: float) -> None:
        self._model = model
        self._workers = workers
        self._seconds = seconds
        self._corpus = Corpus(model)
        self._server = Server("akidb", "", lambda _port: [], PATH)

    def compare(self, setting: Setting, value: str) -> dict[str, dict[str, float]]:
        """Return what each load got, by its title, and the memory of all processes."""
        workers = int(value) if setting.flag == "--workers" else self._workers
        flags = [] if setting.flag == "--workers" else [setting.flag, value]
        with self._gateway(f"{setting.name}-{value}", flags, workers) as gateway:
            results = {load.title: self._under(gateway, load) for load in setting.loads}
            megabytes = sum(memory_bytes(pid) for pid in tree(gateway.pid)) / 1e6
        return results | {"memory": {"megabytes": megabytes}}

    def overload(self, timeout_seconds: float) -> dict[str, float]:
        """Offer more than can be computed; return what became of it."""
        milliseconds = round(timeout_seconds * 1000)
        with self._gateway(
            f"timeout-{milliseconds}ms", ["--request-timeout", f"{milliseconds}ms"], self._workers
        ) as gateway:
            requests = [[text] for text in texts.generate("natural", OVERLOAD_BODIES)]
            recording = recordings.record(gateway, requests, WORKPLACE / "overload")
            capacity = recordings.capacity(gateway, recording, self._seconds)
            phase = (TIMEOUTS.offered * capacity, max(self._seconds, TIMEOUTS_PER_RUN * timeout_seconds))
            with recordings.open_loop(gateway, recording, [phase], timeout_seconds, WORKPLACE) as child:
                report = child.receive(phase[1] + timeout_seconds + recordings.PATIENCE_SECONDS)
        measured: dict[str, Any] = report["phases"][0]
        return {
            "offered": measured["offered"],
            "answered": measured["statuses"].get("200", 0),
            "refused": measured["statuses"].get("503", 0),
            "p50_ms": measured["admitted"]["p50_ms"],
            "p99_ms": measured["admitted"]["p99_ms"],
        }

    def _gateway(self, title: str, flags: list[str], workers: int) -> Gateway:
        return Gateway(title, ["--model", str(self._model), *flags], workers, {}, WORKPLACE)

    def _under(self, gateway: Gateway, load: Load) -> dict[str, float]:
        with self._bulk(gateway) if load.next_to_bulk else contextlib.nullcontext():
            report: dict[str, Any] = json.loads(environments.run(self._command(gateway, load), "load"))
        if report["errors"] or not report["requests"]:
            raise ChildError(f"{load.title}: {report['errors']} errors: {report['first_error']}")
        return {name: report[name] for name in ("texts_per_second", "p50_ms", "p95_ms")}

    @contextlib.contextmanager
    def _bulk(self, gateway: Gateway) -> Iterator[None]:
        """Have the bulk load run until the block ends."""
        with Child("bulk", self._command(gateway, BULK, endless=True), {}, workplace=WORKPLACE):
            time.sleep(BULK_LEAD_SECONDS)
            yield

    def _command(self, gateway: Gateway, load: Load, *, endless: bool = False) -> list[str]:
        return load_command(
            gateway.address,
            PATH,
            self._corpus.bodies(self._server, load.shape, load.per_request),
            connections=load.connections,
            warm_up=self._seconds / 3,
            seconds=3600 if endless else self._seconds,
        )

"""Bodies with the answers of the quiet server to them, and the load generator ``load``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import environments
from bench.processes import Child, fetch
from bench.systems import LOAD, load_command

from stress.gateway import PATH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stress.gateway import Gateway

CAPACITY_CONNECTIONS = 32
"""Enough for two workers with two batches each, and few enough to wait for far less than a second."""
CAPACITY_WARM_UP_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""Beyond the last deadline."""


@dataclass(frozen=True)
class Recording:
    """Files for ``load``: bodies with their tokens, and the right answer to each."""

    bodies: Path
    answers: Path
    mean_tokens: float


def record(gateway: Gateway, requests: Sequence[Sequence[str]], folder: Path) -> Recording:
    """Ask for the texts of every request, one after the other, while nobody else asks."""
    folder.mkdir(parents=True, exist_ok=True)
    recording = Recording(folder / "bodies.jsonl", folder / "answers.jsonl", 0.0)
    total = 0
    with recording.bodies.open("w") as bodies, recording.answers.open("w") as answers:
        for texts in requests:
            body = json.dumps({"texts": texts})
            answer = fetch(gateway.url, body)
            tokens = answer["usage"]["total_tokens"]
            total += tokens
            bodies.write(json.dumps({"texts": len(texts), "tokens": tokens, "body": body}) + "\n")
            answers.write(json.dumps({"embeddings": answer["embeddings"]}) + "\n")
    return Recording(recording.bodies, recording.answers, total / len(requests))


def capacity(gateway: Gateway, recording: Recording, seconds: float) -> float:
    """Return the tokens per second of a closed loop."""
    command = load_command(
        gateway.address,
        PATH,
        recording.bodies,
        connections=CAPACITY_CONNECTIONS,
        warm_up=CAPACITY_WARM_UP_SECONDS,
        seconds=seconds,
    )
    report = json.loads(environments.run(command, "load"))
    rate: float = report["tokens_per_second"]
    return rate


def open_loop(
    gateway: Gateway,
    recording: Recording,
    phases: Sequence[tuple[float, float]],
    deadline_seconds: float,
    workplace: Path,
) -> Child:
    """Return the load generator, to be entered; it writes its report as a line when it has every answer.

    ``phases`` are tokens per second, and seconds.
    """
    rates = ",".join(f"{tokens / recording.mean_tokens:.3f}" for tokens, _ in phases)
    flags = [*_where(gateway, recording), "--expected", str(recording.answers), "--rate", rates]
    flags += ["--seconds", ",".join(str(seconds) for _, seconds in phases)]
    flags += ["--deadline", f"{round(deadline_seconds * 1000)}ms"]
    return Child("load", [str(LOAD), "open", *flags], {}, talks=True, workplace=workplace)


def success(phase: dict[str, Any]) -> float:
    """Return the share of 200 among everything that was to be sent."""
    answered: int = phase["statuses"].get("200", 0)
    offered: int = phase["offered"]
    return answered / max(1, offered)


def _where(gateway: Gateway, recording: Recording) -> list[str]:
    return ["--address", gateway.address, "--path", PATH, "--bodies", str(recording.bodies)]

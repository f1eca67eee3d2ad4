"""``make failover``: HAProxy with two gateways under load, one of which goes and comes."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import environments, texts
from bench.processes import REPOSITORY, Child, ChildError, free_port, run_command
from bench.progress import Progress
from bench.systems import LOAD
from stress import load
from stress.gateway import PATH, Gateway
from stress.verdict import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKPLACE = REPOSITORY / "target" / "failover"
CONFIGURATION = REPOSITORY / "deploy" / "haproxy" / "haproxy.cfg"
PORTS = {"front": 8000, "first": 8081, "second": 8082}
BODIES, LONG_EVERY, LONG_BYTES = 100, 10, 60_000
"""Every tenth body is nearly 64 KB long."""
REQUESTS_PER_SECOND = 40.0
DEADLINE = "30s"
HEALTHY_SECONDS = 2.0
"""HAProxy notices within this time that a gateway is back."""


def main(arguments: Sequence[str]) -> int:
    """Run; the exit code is 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m services.failover", description=__doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="how long there is load, in each of the two runs",
    )
    failed = run(parser.parse_args(arguments).seconds)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)  # noqa: T201 - the verdict
    return int(bool(failed))


def run(seconds: float) -> list[str]:
    """Stop and start one gateway under load, then kill it; return what failed."""
    progress = Progress()
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    flags = ["--model", environments.MODEL]
    first, second = (Gateway(name, flags, 1, {}, WORKPLACE) for name in ("first", "second"))
    front = f"127.0.0.1:{free_port()}"
    (WORKPLACE / "haproxy.cfg").write_text(configuration(front, first, second))
    haproxy = Child(
        "haproxy",
        ["haproxy", "-db", "-f", str(WORKPLACE / "haproxy.cfg")],
        {},
        workplace=WORKPLACE,
    )
    results: dict[str, dict[str, Any]] = {}
    with second, haproxy:
        first.__enter__()
        try:
            recording = load.record(second, requests(), WORKPLACE)
            haproxy.wait_for_answer(f"http://{front}/readyz", body=None)
            time.sleep(HEALTHY_SECONDS)
            for name, number in (
                ("stopped", signal.SIGTERM),
                ("killed", signal.SIGKILL),
            ):
                progress.say(f"under load for {seconds:g} s, one of two gateways is {name} and started again")
                results[name] = under_load(front, recording, seconds, partial(cycle, first, number))
        finally:
            first.__exit__(None, None, None)
    (WORKPLACE / "results.json").write_text(json.dumps(results, indent=1))
    rows = [[name, str(r["offered"]), statuses(r), str(r["wrong"])] for name, r in results.items()]
    lines = table(["one gateway is", "requests", "answers", "wrong vectors"], rows)
    print("\n".join(lines))  # noqa: T201 - the table
    return [problem for name, result in results.items() for problem in judge(name, result)]


def judge(name: str, result: dict[str, Any]) -> list[str]:
    """Say what a client noticed."""
    good = result["statuses"].get("200", 0)
    problems = []
    if good != result["offered"] or not good:
        problems.append(
            f"{name}: {result['offered'] - good} of {result['offered']} requests failed: {statuses(result)}"
        )
    if result["wrong"] or result["compared"] != good:
        problems.append(f"{name}: {result['wrong']} of {result['compared']} vectors are wrong")
    return problems


def statuses(result: dict[str, Any]) -> str:
    """Return how many answers there were of each kind."""
    return ", ".join(f"{count} x {code}" for code, count in result["statuses"].items())


def requests() -> list[list[str]]:
    """Return texts for the bodies, some of which are long."""
    usual = texts.generate("natural", BODIES)
    return [
        [text if number % LONG_EVERY else (text + " ") * (LONG_BYTES // (len(text) + 1))]
        for number, text in enumerate(usual)
    ]


def configuration(front: str, first: Gateway, second: Gateway) -> str:
    """Return the committed configuration with this run's ports."""
    text = CONFIGURATION.read_text()
    addresses = {"front": front, "first": first.address, "second": second.address}
    for name, port in PORTS.items():
        usual = f"127.0.0.1:{port}"
        if text.count(usual) != 1:
            raise ChildError(f"{CONFIGURATION.name} does not have {usual} once")
        text = text.replace(usual, addresses[name])
    return text


def cycle(gateway: Gateway, number: signal.Signals) -> None:
    """End a gateway in one way, leave it away for a while, and start it again."""
    gateway.signal(number)
    gateway.__exit__(None, None, None)
    time.sleep(1.0)
    gateway.__enter__()
    time.sleep(HEALTHY_SECONDS)


def under_load(
    front: str, recording: load.Recording, seconds: float, act: Callable[[], None]
) -> dict[str, Any]:
    """Do something again and again while requests come; return the load generator's figures."""
    flags = ["--address", front, "--path", PATH, "--bodies", str(recording.bodies)]
    flags += ["--expected", str(recording.answers), "--rate", str(REQUESTS_PER_SECOND)]
    flags += ["--seconds", str(seconds), "--deadline", DEADLINE]
    started = time.monotonic()
    command = [str(LOAD), "open", *flags]
    with Child("load", command, {}, talks=True, workplace=WORKPLACE) as generator:
        time.sleep(1.0)
        act()
        # The whole of it under load: so long did the one before take.
        took = time.monotonic() - started
        while time.monotonic() - started + took < seconds:
            act()
        report = generator.receive()
    phase: dict[str, Any] = report["phases"][0]
    return phase


if __name__ == "__main__":
    run_command(main)

"""One round: every system, one after the other, each started anew."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import environments, phases, systems, texts
from bench.processes import WORKPLACE, Child, ChildError, fetch, free_port, memory_bytes, tree

if TYPE_CHECKING:
    from pathlib import Path

    from bench.progress import Progress
    from bench.systems import Server

CORPUS = {"natural": 4000, "short": 3000, "long": 600}
"""Texts of each shape."""
LARGE = {"natural": 64, "short": 128, "long": 12}
"""Texts in a large batch of the engine: about 2,000 tokens each time."""
MAX_TOKENS = 256
CONNECTIONS = (1, 4, 10, 20, 64)
MANY_TEXTS = 32
MANY_CONNECTIONS = 4
TEXTS_AT_A_TIME = 128
"""Texts that in-process peers are given at once; they sort them by length themselves."""
PEER_BATCHES = (1, 8, 32, 64)
ENGINE_SETUPS = {"engine-1-thread": (1, 1), "engine-2-threads": (1, 2), "engine-2-processes": (2, 1)}
"""Processes and threads of each."""
RESTART_PATIENCE_SECONDS = 15.0
IN_PROCESS = ("engine", "torch", "onnxruntime")


class Point(NamedTuple):
    """What was measured. ``connections`` is 0 in process; ``batch`` is a batch size of a peer in process."""

    system: str
    shape: str
    per_request: int
    connections: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    only: tuple[str, ...]
    seconds: float
    quick: bool
    model: Path
    onnx_model: Path

    @property
    def warm_up(self) -> float:
        """Seconds of load before anything counts."""
        return 0.3 + self.seconds / 4


@dataclass
class Round:
    """What one round gave. ``broken`` says for a system why it could not be measured."""

    peak: dict[int, float] = field(default_factory=dict)
    points: dict[Point, dict[str, Any]] = field(default_factory=dict)
    systems: dict[str, dict[str, float]] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


class Corpus:
    """The texts, their tokens, and the files of bodies that the load generator reads."""

    def __init__(self, model: Path) -> None:
        self.texts = {shape: texts.generate(shape, count) for shape, count in CORPUS.items()}
        WORKPLACE.mkdir(parents=True, exist_ok=True)
        texts_file = WORKPLACE / "texts.json"
        texts_file.write_text(json.dumps(self.texts))
        flags = ["--model", str(model), "--max-tokens", str(MAX_TOKENS), "--texts", str(texts_file)]
        tokenized = json.loads(environments.run([str(systems.LOAD), "tokenize", *flags], "tokenize"))
        self.ids: dict[str, list[list[int]]] = tokenized["ids"]
        self.tokenizer_bytes: int = tokenized["tokenizer_bytes"]
        self.path = WORKPLACE / "corpus.json"
        self.path.write_text(json.dumps({"texts": self.texts, "ids": self.ids, "max_tokens": MAX_TOKENS}))

    def mean_tokens(self) -> dict[str, float]:
        """Return the mean length of each shape's texts, in tokens with the special ones."""
        return {shape: sum(map(len, ids)) / len(ids) for shape, ids in self.ids.items()}

    def bodies(self, server: Server, shape: str, per_request: int) -> Path:
        """Return the file of bodies, written on first use."""
        path = WORKPLACE / "bodies" / f"{server.dialect}-{shape}-{per_request}.jsonl"
        if path.is_file() and path.stat().st_mtime > self.path.stat().st_mtime:
            return path
        path.parent.mkdir(exist_ok=True)
        sentences, ids = self.texts[shape], self.ids[shape]
        with path.open("w") as file:
            for start in range(0, len(sentences) - per_request + 1, per_request):
                chosen = slice(start, start + per_request)
                body, tokens = server.body(sentences[chosen]), sum(map(len, ids[chosen]))
                file.write(json.dumps({"texts": per_request, "tokens": tokens, "body": body}) + "\n")
        return path


class Rounds:
    """Runs rounds after a plan."""

    def __init__(self, plan: Plan, corpus: Corpus, progress: Progress) -> None:
        self._plan = plan
        self._corpus = corpus
        self._progress = progress
        self._index = 0

    def run(self, label: str) -> Round:
        """Measure everything once."""
        result = Round()
        for name in IN_PROCESS:
            if name in self._plan.only:
                with self._noting_failures(name, result):
                    self._in_process(name, result, label)
        for server in systems.all_servers(self._plan.model, self._plan.onnx_model):
            if server.name in self._plan.only:
                with self._noting_failures(server.name, result):
                    self._server(server, result, label)
        self._index += 1
        return result

    @contextlib.contextmanager
    def _noting_failures(self, name: str, result: Round) -> Any:  # noqa: ANN401 - a generator
        try:
            yield
        except (ChildError, OSError, ValueError, KeyError) as error:
            result.broken[name] = str(error) or type(error).__name__
            self._progress.say(f"FAILED: {name}: {result.broken[name]}")

    def _in_process(self, name: str, result: Round, label: str) -> None:
        if name == "engine":
            with self._engine_child("peak") as peak:
                peak.receive()
                self._peak(peak, result, label)
                for setup, (processes, threads) in ENGINE_SETUPS.items():
                    self._engine(setup, processes, threads, result, label)
                    self._peak(peak, result, label)
        else:
            self._peer(name, result, label)

    def _engine_child(self, name: str) -> Child:
        model = self._plan.model
        return Child(name, systems.engine_command(model, self._corpus.path), {}, talks=True)

    def _peak(self, child: Child, result: Round, label: str) -> None:
        """Measure it again; what counts is the highest of the round, because disturbances only lower it."""
        for threads in (1, 2):
            flops = child.ask({"what": "peak", "threads": threads})["flops"]
            result.peak[threads] = max(flops, result.peak.get(threads, 0.0))
        rates = ", ".join(f"{threads}: {flops / 1e9:.0f}" for threads, flops in result.peak.items())
        self._progress.say(f"{label}: float32 matmul peak in GFLOP/s by threads: {rates}")

    def _engine(self, setup: str, processes: int, threads: int, result: Round, label: str) -> None:
        with contextlib.ExitStack() as stack:
            names = [f"{setup}-{index}" for index in range(processes)]
            children = [stack.enter_context(self._engine_child(name)) for name in names]
            for child in children:
                child.receive()
            shapes = ("natural",) if self._plan.quick else texts.SHAPES
            for shape in shapes:
                for per_request in (1, LARGE[shape]):
                    question = {
                        "what": "embed",
                        "shape": shape,
                        "per_request": per_request,
                        "threads": threads,
                    }
                    question |= {"batches": 64, "seconds": self._plan.seconds}
                    for child in children:
                        child.send(question)
                    answers = [child.receive() for child in children]
                    self._note(Point(setup, shape, per_request), _together(answers), result, label)
            if self._plan.quick and processes == 1:
                question = {"what": "embed", "shape": "short", "per_request": 1, "threads": threads}
                answer = children[0].ask(question | {"batches": 64, "seconds": self._plan.seconds})
                self._note(Point(setup, "short", 1), answer, result, label)
            memory = sum(memory_bytes(child.pid) for child in children)
        result.systems[setup] = {"memory_bytes": memory}

    def _peer(self, name: str, result: Round, label: str) -> None:
        library = {"torch": "torch", "onnxruntime": "onnx"}[name]
        command = systems.peer_command(library, self._plan.model, self._corpus.path, threads=2)
        with Child(name, command, {}, talks=True) as child:
            child.receive()
            ready_seconds = time.monotonic() - child.started
            batches = (1, 32) if self._plan.quick else PEER_BATCHES
            for per_request, batch in ((1, 1), *((TEXTS_AT_A_TIME, batch) for batch in batches)):
                question = {"shape": "natural", "per_request": per_request, "batch": batch}
                answer = child.ask(question | {"seconds": self._plan.seconds})
                self._note(Point(name, "natural", per_request, batch=batch), answer, result, label)
            memory = memory_bytes(child.pid)
        result.systems[name] = {"memory_bytes": memory, "ready_seconds": ready_seconds}

    def _server(self, server: Server, result: Round, label: str) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with Child(server.name, server.command(port), server.variables) as child:
            answer, ready_seconds = child.wait_for_answer(url + server.path, server.body(["Hello world"]))
            facts = result.systems.setdefault(server.name, {})
            facts["ready_seconds"] = ready_seconds
            vector = server.vector(answer)
            if vector is not None:
                result.vectors[server.name] = vector
            for shape, per_request, connections in self._points(server):
                ours = server.computes and server.name.startswith("akidb")
                before = phases.read(url) if ours else {}
                measured = self._load(server, port, shape, per_request, connections)
                if ours:
                    measured |= phases.between(before, phases.read(url), measured, connections)
                self._note(Point(server.name, shape, per_request, connections), measured, result, label)
            members = [memory_bytes(pid) for pid in tree(child.pid)]
            facts |= {"memory_bytes": sum(members), "first_process_bytes": members[0]}
            facts["largest_other_bytes"] = max(members[1:], default=0)
            if server.name == "akidb":
                facts["restart_seconds"] = _restart(url)

    def _points(self, server: Server) -> list[tuple[str, int, int]]:
        if not server.computes:
            connections = (1, 20) if self._plan.quick else (1, 20, 64)
            return [("natural", 1, number) for number in connections]
        if self._plan.quick:
            short = [("short", 1, 1)] if server.name.startswith("akidb") else []
            return [("natural", 1, 1), ("natural", 1, 20), *short]
        points = []
        for shape in texts.SHAPES:
            everything = shape == "natural" or server.name.startswith("akidb")
            points += [(shape, 1, number) for number in (CONNECTIONS if everything else (1, 20))]
            points += [(shape, MANY_TEXTS, MANY_CONNECTIONS)] if everything else []
        return points

    def _load(
        self, server: Server, port: int, shape: str, per_request: int, connections: int
    ) -> dict[str, Any]:
        # Another round, other texts: a server that remembers texts shall not profit from the round before.
        command = systems.load_command(
            f"127.0.0.1:{port}",
            server.path,
            self._corpus.bodies(server, shape, per_request),
            skip=self._index * CORPUS[shape] // per_request // 3,
            connections=connections,
            warm_up=self._plan.warm_up,
            seconds=self._plan.seconds,
        )
        report: dict[str, Any] = json.loads(environments.run(command, "load"))
        if not report["requests"]:
            raise ChildError(f"no request succeeded at {connections} connections: {report['first_error']}")
        return report

    def _note(self, point: Point, measured: dict[str, Any], result: Round, label: str) -> None:
        result.points[point] = measured
        where = f"{point.connections} connections, " if point.connections else ""
        batch = f", batch {point.batch}" if point.batch else ""
        self._progress.say(
            f"{label}: {point.system}: {where}{point.per_request} {point.shape}{batch}: "
            f"{measured['texts_per_second']:.0f} texts/s, p50 {measured['p50_ms']:.2f} ms"
            + (f", {measured['errors']} ERRORS: {measured.get('first_error')}" if measured["errors"] else "")
        )


def _together(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Join what processes measured at the same time: rates add up, of times the larger one counts."""
    joined = dict(answers[0])
    for answer in answers[1:]:
        for name, value in answer.items():
            joined[name] = max(joined[name], value) if name.endswith("_ms") else joined[name] + value
    return joined


def _restart(url: str) -> float:
    """Kill a worker of ours and return the seconds until another one is ready in its place."""

    def worker() -> dict[str, Any]:
        try:
            health = fetch(f"{url}/health", timeout_seconds=5)
        except OSError:
            return {}
        first: dict[str, Any] = health["workers"][0]
        return first

    victim = worker()["pid"]
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    while time.monotonic() - killed < RESTART_PATIENCE_SECONDS:
        now = worker()
        if now.get("state") == "ready" and now.get("pid") != victim:
            return time.monotonic() - killed
        time.sleep(0.01)
    raise ChildError(f"a killed worker was not ready again after {RESTART_PATIENCE_SECONDS:.0f} s")

"""In the peers' environment: mosec's workers. ``python -m bench.mosec_server --address ... --port ...``.

``BENCH_MOSEC`` is what a worker does: ``model`` (sentence-transformers), ``json`` (numbers that need no
computing, as the JSON of a stock worker) or ``bytes`` (an answer that is ready-made). mosec reads the command
line itself.
"""

from __future__ import annotations

import json
import os
from typing import Any

from mosec import Server, Worker

from bench.echo import NUMBERS

LARGEST_BATCH = 64
MILLISECONDS_TO_WAIT = 1
"""The least that mosec takes: with one connection every longer wait would only cost it latency."""


class Model(Worker):  # type: ignore[misc]
    """Embeds the texts of all requests of a dynamic batch at once."""

    def __init__(self) -> None:
        import torch  # noqa: PLC0415
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415

        torch.set_num_threads(int(os.environ["BENCH_MOSEC_THREADS"]))
        self._encoder = SentenceTransformer(os.environ["BENCH_MODEL"], device="cpu")

    def forward(self, requests: list[Any]) -> list[Any]:
        """Embed."""
        texts = [text for request in requests for text in request["texts"]]
        vectors = self._encoder.encode(texts, show_progress_bar=False).tolist()
        answers, start = [], 0
        for request in requests:
            end = start + len(request["texts"])
            answers.append({"embeddings": vectors[start:end]})
            start = end
        return answers


class Stock(Worker):  # type: ignore[misc]
    """Answers JSON without computing."""

    def forward(self, request: Any) -> Any:  # noqa: ANN401
        """Echo."""
        return {"embeddings": [NUMBERS for _ in request["texts"]]}


class ReadyMade(Worker):  # type: ignore[misc]
    """Reads JSON, and answers bytes that were made before."""

    ANSWER = json.dumps({"embeddings": [NUMBERS]}).encode()

    def serialize(self, data: Any) -> bytes:  # noqa: ANN401
        """Leave it as it is."""
        answer: bytes = data
        return answer

    def forward(self, _request: Any) -> Any:  # noqa: ANN401
        """Echo."""
        return self.ANSWER


def main() -> None:
    """Serve."""
    server = Server()
    workers = int(os.environ["BENCH_MOSEC_WORKERS"])
    kind = os.environ["BENCH_MOSEC"]
    if kind == "model":
        server.append_worker(
            Model, num=workers, max_batch_size=LARGEST_BATCH, max_wait_time=MILLISECONDS_TO_WAIT, timeout=60
        )
    else:
        server.append_worker({"json": Stock, "bytes": ReadyMade}[kind], num=workers)
    server.run()


if __name__ == "__main__":
    main()

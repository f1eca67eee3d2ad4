"""In a child process of the peers' environment: sentence-transformers or ONNX Runtime, in process.

``python -m bench.peer torch|onnx MODEL CORPUS THREADS``; see :mod:`bench.child`. Texts go in, so that
tokenizing counts; for our own engine alone it does not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import child

if TYPE_CHECKING:
    from collections.abc import Callable

    Embed = Callable[[list[str], int], object]


def main() -> None:
    """Load the model, then measure what is asked for."""
    library, model, corpus_path, threads = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    corpus = json.loads(corpus_path.read_text())
    embed = {"torch": _torch, "onnx": _onnx}[library](model, threads, corpus["max_tokens"])

    embed(corpus["texts"]["natural"][:8], 8)  # what is done once is done now

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        texts, ids = corpus["texts"][question["shape"]], corpus["ids"][question["shape"]]
        size, batch = question["per_request"], question["batch"]
        calls = [
            (size, sum(map(len, ids[start : start + size])), _call(embed, texts[start : start + size], batch))
            for start in range(0, len(texts) - size + 1, size)
        ]
        return child.timed(calls, question["seconds"])

    child.serve(answer)


def _call(embed: Embed, texts: list[str], batch: int) -> Callable[[], object]:
    return lambda: embed(texts, batch)


def _torch(model: str, threads: int, _max_tokens: int) -> Embed:
    import torch  # noqa: PLC0415
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu")
    return lambda texts, batch: encoder.encode(texts, batch_size=batch, show_progress_bar=False)


def _onnx(model: str, threads: int, max_tokens: int) -> Embed:
    import numpy as np  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415

    options = onnxruntime.SessionOptions()  # its default is every graph optimisation, those of BERT included
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        f"{model}/onnx/model.onnx", options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding()

    def embed(texts: list[str], batch: int) -> list[Any]:
        by_length = sorted(texts, key=len, reverse=True)
        vectors = []
        for start in range(0, len(texts), batch):
            encodings = tokenizer.encode_batch(by_length[start : start + batch])
            ids = np.array([encoding.ids for encoding in encodings])
            mask = np.array([encoding.attention_mask for encoding in encodings])
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = session.run(None, inputs)[0]
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            vectors.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
        return vectors

    return embed


if __name__ == "__main__":
    main()

"""Counts what a GPU has to launch for a result: the operations of MLX's graph that are a kernel there."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    import pytest

VIEWS = {
    "AsStrided",
    "Broadcast",
    "ExpandDims",
    "Flatten",
    "Load",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unflatten",
}
"""They have no kernel where the layout allows it, as it nearly always does."""
_NODE = re.compile(r'^\{ (\d+) \[label ="(\w+)"')
_INPUT = re.compile(r'^"(\w+)" -> (\d+)$')
_OUTPUT = re.compile(r'^(\d+) -> "(\w+)"$')


def with_kernels_of_a_gpu(patch: pytest.MonkeyPatch, fused_sizes: tuple[int, ...]) -> None:
    """Have what is one kernel on a GPU be one operation here, too: results are wrong then, counts right."""
    attention = mx.fast.scaled_dot_product_attention

    def attend(query: mx.array, key: mx.array, value: mx.array, **rest: Any) -> mx.array:
        if query.shape[-1] in fused_sizes:
            return mx.abs(query)
        return attention(query, key, value, **rest)

    patch.setattr(mx.fast, "scaled_dot_product_attention", attend)
    patch.setattr(mx.fast, "layer_norm", lambda x, *_: mx.abs(x))
    patch.setattr(mx.fast, "rms_norm", lambda x, *_: mx.abs(x))


def kernels(result: mx.array) -> Counter[str]:
    """Return how many kernels of each operation a result needs; nothing is computed."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "graph.dot")
        mx.export_to_dot(file, result)
        lines = Path(file).read_text().splitlines()
    names = {found[1]: found[2] for line in lines if (found := _NODE.match(line))}
    # A fused function is one node, however often it is called.
    outputs = [found.groups() for line in lines if (found := _OUTPUT.match(line))]
    makers = {array: names[node] for node, array in outputs}
    inputs: dict[str, list[str]] = {}
    for line in lines:
        if found := _INPUT.match(line):
            inputs.setdefault(found[2], []).append(found[1])
    counted: Counter[str] = Counter()
    for node, _ in outputs:
        name = names[node]
        if name == "Reshape":
            if makers.get(inputs[node][0]) == "Transpose":
                counted["Copy"] += 1
        elif name == "Concatenate":
            counted["Copy"] += len(inputs[node])
        elif name not in VIEWS:
            counted["Compiled" if name.startswith("Compiled") else name] += 1
    return counted

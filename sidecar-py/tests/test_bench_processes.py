"""What the benchmarks ask the system about processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench.processes import memory_bytes, peak_bytes, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

CHILD = """
import subprocess, sys
kept = subprocess.Popen(["sleep", "60"])
print(kept.pid, flush=True)
sys.stdin.read()
kept.kill()
kept.wait()
"""


@pytest.fixture
def child() -> Iterator[tuple[int, int]]:
    """Yield a process and its own child."""
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


def test_a_tree_has_the_process_first_and_all_that_descend_from_it(child: tuple[int, int]) -> None:
    assert tree(child[0]) == list(child)
    assert tree(child[1]) == [child[1]]


def test_memory_is_told_in_bytes(child: tuple[int, int]) -> None:
    resident = psutil.Process().memory_info().rss
    # The system adds up both, but not at the same moments.
    assert resident / 2 < peak_bytes() < 10 * resident
    assert 0 < memory_bytes(child[0]) <= psutil.Process(child[0]).memory_info().rss


def test_a_process_that_is_gone_has_neither() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert (tree(process.pid), memory_bytes(process.pid)) == ([process.pid], 0)

from __future__ import annotations

import hashlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench import figures, phases, texts


def test_texts_are_the_same_everywhere_and_always() -> None:
    everything = json.dumps({shape: texts.generate(shape, 100) for shape in texts.SHAPES})
    assert hashlib.sha256(everything.encode()).hexdigest()[:16] == "d7d0a8e83bfa4866"


def test_a_smaller_count_gives_the_beginning() -> None:
    assert texts.generate("natural", 50) == texts.generate("natural", 80)[:50]


@pytest.mark.parametrize(("shape", "least", "most"), [("short", 8, 12), ("long", 120, 180)])
def test_texts_have_the_words_they_shall_have(shape: str, least: int, most: int) -> None:
    words = [len(text.split()) for text in texts.generate(shape, 300)]
    assert (min(words), max(words)) == (least, most)


def test_texts_hardly_ever_repeat() -> None:
    natural = texts.generate("natural", 4000)
    assert len(set(natural)) > 3950


def test_percentiles_are_values_that_were_measured() -> None:
    values = [40.0, 10.0, 30.0, 20.0]
    assert [figures.percentile(values, percent) for percent in (1, 25, 50, 51, 99, 100)] == [
        10,
        10,
        20,
        30,
        40,
        40,
    ]
    assert figures.percentile([7.0], 50) == 7
    ordered = [figures.percentile(values, percent) for percent in range(1, 101)]
    assert all(one <= other for one, other in pairwise(ordered))


def test_rounds_become_medians_and_errors_add_up() -> None:
    rounds = [{"p50_ms": 3.0, "errors": 1}, {"p50_ms": 1.0, "errors": 0}, {"p50_ms": 9.0, "errors": 2}]
    assert figures.medians(rounds) == {"p50_ms": 3.0, "errors": 3}


def test_phases_are_means_between_two_readings_and_http_is_what_is_left() -> None:
    def metrics(requests: int, batches: int, seconds: float) -> dict[tuple[str, str], float]:
        lines = ["# EOF", 'akidb_embedding_phase_seconds_bucket{le="0.1",phase="parse"} 3']
        for phase in phases.PER_REQUEST:
            name = "gil_wait_seconds" if phase == "queue" else "phase_seconds"
            label = "" if phase == "queue" else f'{{phase="{phase}"}}'
            lines.append(f"akidb_embedding_{name}_sum{label} {seconds * requests}")
            lines.append(f"akidb_embedding_{name}_count{label} {requests}")
        for phase in phases.PER_BATCH:
            lines.append(f'akidb_embedding_phase_seconds_sum{{phase="{phase}"}} {2 * seconds * batches}')
            lines.append(f'akidb_embedding_phase_seconds_count{{phase="{phase}"}} {batches}')
        return phases.parse("\n".join(lines))

    measured = {"texts_per_second": 100.0, "requests_per_second": 100.0}
    before, after = metrics(10, 5, 0.001), metrics(110, 30, 0.001)
    figures_in_ms = phases.between(before, after, measured, connections=2)
    assert figures_in_ms["phase_parse_ms"] == pytest.approx(1)
    assert figures_in_ms["phase_compute_ms"] == pytest.approx(2)
    assert figures_in_ms["phase_batch_texts"] == pytest.approx(4)
    assert figures_in_ms["phase_total_ms"] == pytest.approx(20)
    assert figures_in_ms["phase_http_ms"] == pytest.approx(20 - 4 * 1 - 2 * 2)

"""The ``config.json`` of models that people use; the gateway's tests read their other files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from conftest import TESTS

from akidb_sidecar import configurations

if TYPE_CHECKING:
    from pathlib import Path

MODELS: list[dict[str, Any]] = json.loads(
    (TESTS / "../../gateway/tests/data/popular_models.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_a_model_that_people_use_is_accepted_without_a_warning(tmp_path: Path, model: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model["files"]["config.json"]))
    file = configurations.read(tmp_path)
    assert file.warnings == ()
    assert file.configuration.dimension == model["expected"]["dimension"]
    assert file.configuration.positions >= model["expected"]["max_tokens"]

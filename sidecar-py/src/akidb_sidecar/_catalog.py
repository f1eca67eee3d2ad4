"""The models that have a name of ours, and a list of them and of what else the hub's local cache holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from akidb_sidecar import _cache, _layout, configurations
from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import CachedRevisionInfo


@dataclass(frozen=True)
class Model:
    """One line of the list. The first five fields are what is known of a model that is not here, too.

    Of one that is here, the gateway reads dimension and pooling, because it reads a model's files anyway.
    """

    name: str
    repository: str
    dimension: int | None
    pooling: str | None
    note: str
    state: Literal["ready", "not_downloaded"] = "not_downloaded"
    revisions: tuple[str, ...] = ()
    commit: str | None = None
    size_bytes: int | None = None
    path: str | None = None
    refusal: str | None = None
    """Why the workers cannot compute it."""


KNOWN = (
    Model("qwen3-0.6b-4bit", "mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ", 1024, "last", "default"),
    Model("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", 384, "mean", ""),
)
HUB_REPOSITORIES = {model.name: model.repository for model in KNOWN}


def run() -> int:
    """Print one line of JSON: a list of models."""
    from akidb_sidecar._prepare import print_json  # noqa: PLC0415 - it needs the names above

    print_json([asdict(model) for model in models()])
    return 0


def models() -> list[Model]:
    """Return the known models first, then the others; a model as often as commits of it are here."""
    cached = sorted(_cached(), key=lambda model: (model.repository, model.revisions == (), model.revisions))
    found: list[Model] = []
    for known in KNOWN:
        ready = [_packaged(known), *(_known(known, model) for model in cached)]
        found += [model for model in ready if model] or [known]
    return found + [model for model in cached if model.repository not in HUB_REPOSITORIES.values()]


def _known(known: Model, cached: Model) -> Model | None:
    if cached.repository != known.repository:
        return None
    return replace(cached, name=known.name, note=known.note)


def _packaged(known: Model) -> Model | None:
    from akidb_sidecar._prepare import packaged_minilm  # noqa: PLC0415

    if known.name != "all-minilm-l6-v2":
        return None
    try:
        packaged = packaged_minilm()
    except ModelError as error:
        return replace(known, note=error.message)
    if packaged is None:
        return None
    return replace(
        known,
        note="ships with the Python environment",
        state="ready",
        size_bytes=_layout.size_bytes(Path(packaged.path)),
        path=packaged.path,
    )


def _cached() -> Iterator[Model]:
    """Find every commit in the local cache that is whole."""
    _cache.set_up_library(show_progress=False)
    from huggingface_hub import CacheNotFound, scan_cache_dir  # noqa: PLC0415 - heavy

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        for revision in repository.revisions:
            model = _read(repository.repo_id, revision)
            if model is not None:
                yield model


def _read(repository: str, revision: CachedRevisionInfo) -> Model | None:
    snapshot = _cache.find(repository, revision.commit_hash)
    if snapshot is None:
        return None
    return Model(
        name=repository,
        repository=repository,
        dimension=None,
        pooling=None,
        note="",
        state="ready",
        revisions=tuple(sorted(revision.refs)),
        commit=snapshot.commit,
        size_bytes=_layout.size_bytes(snapshot.path),
        path=str(snapshot.path),
        refusal=_refusal(snapshot.path),
    )


def _refusal(path: Path) -> str | None:
    """Say why the workers cannot compute a model that is here, if its ``config.json`` says so."""
    try:
        configurations.read(path / _layout.transformer_folder(path))
    except ModelError as error:
        return error.message
    return None

"""The local cache of the hub's library: which commit a revision was, and what is there of it."""

from __future__ import annotations

import os
import re
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from akidb_sidecar import _layout
from akidb_sidecar._errors import ModelError

_COMMIT = re.compile(r"[0-9a-f]{40}")
"""Commits become parts of paths: nothing else may."""


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit, all of them. ``is_listed``: the hub's own list says that they are all."""

    path: Path
    commit: str
    is_listed: bool


def set_up_library(*, show_progress: bool) -> None:
    """Set what the library reads when it is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "3")
    if not (show_progress and sys.stderr.isatty()):
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def check_revision(revision: str) -> None:
    """Raise :class:`ModelError` when no revision can have this name: it becomes part of a path."""
    parts = revision.split("/")
    if not revision.isprintable() or any(part in ("", ".", "..") for part in parts) or revision[0] == "-":
        raise ModelError("model_not_found", f"`{revision}` cannot be a revision")


def is_commit(text: str) -> bool:
    """Whether a text is the whole name of a commit."""
    return _COMMIT.fullmatch(text) is not None


def folder(repository: str) -> Path:
    """Return where the library keeps a repository."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE).expanduser().absolute() / f"models--{repository.replace('/', '--')}"


def recorded_commit(repository: str, revision: str) -> str | None:
    """Return the commit that a revision was when it was last asked for and downloaded."""
    if is_commit(revision):
        return revision
    try:
        commit = (folder(repository) / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        return None
    return commit if is_commit(commit) else None


def record(repository: str, revision: str, commit: str) -> None:
    """Note which commit a revision is, once all of its files are here."""
    if commit == recorded_commit(repository, revision):
        return
    file = folder(repository) / "refs" / revision
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    new.write_text(commit)
    new.replace(file)


def find(repository: str, commit: str) -> Snapshot | None:
    """Return the files of a commit if all of them are here."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        found = snapshot_download(
            repository,
            revision=commit,
            allow_patterns=_layout.PATTERNS,
            ignore_patterns=_layout.IGNORED,
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    path = Path(found)
    is_listed = (folder(repository) / "trees" / f"{commit}.json").is_file()
    return Snapshot(path, commit, is_listed) if _layout.is_whole(path) else None

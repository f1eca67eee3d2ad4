"""Models from the Hugging Face hub: the local cache first, then a download of weights and JSON only."""

from __future__ import annotations

import http.client
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from akidb_sidecar import _cache, _download, _layout
from akidb_sidecar._errors import ModelError

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"
ANSWER_SECONDS = 2.5
ASK_SECONDS = 10.0

Asking = Literal["when_missing", "always", "never"]
"""When the hub is asked: for what is not in the cache, for what is newer, too, or not at all."""


@dataclass(frozen=True)
class Fetched:
    """A repository's files in the cache; ``downloaded`` says whether any of them came just now."""

    path: Path
    commit: str
    downloaded: bool


def fetch(repository: str, revision: str | None, *, asking: Asking, show_progress: bool) -> Fetched:
    """Return the directory with the repository's files, and the commit they are of."""
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    try:
        _check_address(endpoint)
    except ValueError as error:
        raise ModelError(
            "hub_unreachable", f"HF_ENDPOINT `{_shown(endpoint)}` is not an address: {error}"
        ) from None
    wanted = DEFAULT_REVISION if revision is None else revision
    _cache.set_up_library(show_progress=show_progress)
    _cache.check_revision(wanted)
    _check_name(repository)
    at = "" if revision is None else f" at revision `{revision}`"
    commit = _cache.recorded_commit(repository, wanted)
    cached = _cache.find(repository, commit) if commit else None
    if cached and (asking == "never" or (asking == "when_missing" and cached.is_listed)):
        return Fetched(cached.path, cached.commit, downloaded=False)
    if asking == "never":
        raise ModelError("not_downloaded", f"model `{repository}`{at} is not in the local cache")
    obstacle = _obstacle(endpoint)
    if obstacle:
        if cached and asking == "when_missing":
            return Fetched(cached.path, cached.commit, downloaded=False)
        missing = f"model `{repository}`{at} is neither a directory nor in the local cache"
        raise ModelError("hub_unreachable", f"{missing}, and {obstacle}" if not cached else obstacle)
    # What was recorded is completed; only who asks anew gets a newer commit.
    exactly = wanted if asking == "always" or commit is None else commit
    try:
        return _download_all(repository, wanted, exactly, endpoint)
    except ModelError:
        if cached and asking == "when_missing":
            return Fetched(cached.path, cached.commit, downloaded=False)
        raise


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 - heavy, and rarely needed
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # noqa: PLC0415

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise ModelError("model_not_found", f"model `{repository}` cannot be a hub repository") from None


def _obstacle(endpoint: str) -> str | None:
    """Say what keeps the hub from being asked, if anything does."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE forbids a download"
    return None if _is_reachable(endpoint) else f"{_shown(endpoint)} cannot be reached"


def _download_all(repository: str, wanted: str, exactly: str, endpoint: str) -> Fetched:
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = _shown(endpoint)
    missing = f"model `{repository}` is neither a directory nor in the local cache"
    try:
        return _ask_and_download(repository, wanted, exactly)
    except ModelError:
        raise
    except GatedRepoError:
        raise ModelError(
            "model_not_found",
            f"{missing}, and {hub} gives it only to accounts that accepted its terms: set HF_TOKEN",
        ) from None
    except RepositoryNotFoundError:
        raise ModelError("model_not_found", f"{missing}, and {hub} does not have it") from None
    except RevisionNotFoundError:
        raise ModelError(
            "model_not_found", f"{missing}, and {hub} does not have it at revision `{exactly}`"
        ) from None
    except Exception as error:  # noqa: BLE001 - errors of the HTTP library come through, whichever it is
        if isinstance(error, OSError) and error.errno is not None:
            where = _cache.folder(repository).parent
            raise ModelError(
                "cache_not_writable",
                f"cannot write into the model cache `{where}`: {error.strerror}; "
                "make room there, or name another folder with HF_HOME",
            ) from None
        reason = _without_token(" ".join(str(error).split()).replace(endpoint, hub))[:200]
        raise ModelError(
            "hub_unreachable",
            f"the download of `{repository}` from {hub} failed: {reason or type(error).__name__}",
        ) from None


def _ask_and_download(repository: str, wanted: str, exactly: str) -> Fetched:
    """Ask which commit it is and which files it has, judge that, and bring what is not here yet."""
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415
    from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # noqa: PLC0415

    api = HfApi()
    commit = api.model_info(repository, revision=exactly, timeout=ASK_SECONDS).sha
    if commit is None or not _cache.is_commit(commit):
        raise ModelError("hub_unreachable", f"the hub does not say which commit `{exactly}` is")
    tree = api.list_repo_tree(repository, recursive=True, revision=commit)
    sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    _layout.check_paths(sizes, repository)
    _layout.check_names(sizes, repository)
    home = _cache.folder(repository)
    snapshot = home / "snapshots" / commit
    names = list(filter_repo_objects(sizes, allow_patterns=_layout.PATTERNS, ignore_patterns=_layout.IGNORED))
    missing = [name for name in names if not (snapshot / name).exists()]
    if missing:
        home.mkdir(parents=True, exist_ok=True)
    for name in missing:
        if sizes[name] >= _download.LARGE_BYTES:
            _download.fetch_large(repository, name, commit)
    snapshot_download(
        repository, revision=commit, allow_patterns=_layout.PATTERNS, ignore_patterns=_layout.IGNORED
    )
    for name in names:
        _check_size(snapshot / name, sizes[name])
    _layout.check_directory(snapshot, repository)
    _cache.record(repository, wanted, commit)
    # As the library names it when it is there already: on macOS many folders are behind symbolic links.
    return Fetched(snapshot.resolve(), commit, downloaded=bool(missing))


def _check_size(file: Path, size_bytes: int) -> None:
    """Throw a file of the cache away that has another size than the hub says."""
    found = file.stat().st_size
    if found != size_bytes:
        file.resolve().unlink()
        file.unlink(missing_ok=True)
        raise _download.DamagedError(f"`{file.name}` has {found} bytes instead of {size_bytes}")


def _without_token(text: str) -> str:
    """Leave out what may be the token: messages of the HTTP library quote headers that they refuse."""
    from huggingface_hub import get_token  # noqa: PLC0415

    text = re.sub(r"Bearer\s.*", "Bearer ...", text)
    token = get_token()
    return text.replace(token, "...") if token else text


def _is_reachable(endpoint: str) -> bool:
    """Whether the hub, or the proxy in front of it, answers soon: downloads retry for too long.

    A silent name server has no time limit of its own, so a thread that may be left behind asks.
    """
    asking = threading.Thread(target=_ask, args=(endpoint, answered := threading.Event()), daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return answered.is_set()


def _ask(endpoint: str, answered: threading.Event) -> None:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the scheme was checked
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
    except urllib.error.URLError as error:
        # What the certificate is worth is for the library to say, which knows more authorities.
        if not isinstance(error.reason, ssl.SSLError):
            return
    except (OSError, ValueError, http.client.HTTPException):
        return
    answered.set()


def _shown(endpoint: str) -> str:
    """Return an address without the name and password that it may hold."""
    return re.sub(r"^([^/]*//)?[^/]*@", r"\1", endpoint)


def _check_address(url: str) -> None:
    """Raise ``ValueError`` when a URL is not one of the web's."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must start with https:// or http:// and a host")
    _ = parts.port  # the property judges it

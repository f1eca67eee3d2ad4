"""Models from the Hugging Face hub: the local cache first, then a download of weights and JSON only."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from akidb_sidecar._errors import ModelError

PATTERNS = ["*.safetensors", "*.json", "*.txt", "tokenizer.model"]
"""Never a pickle: no ``*.bin``, no ``*.pt``."""
DEFAULT_ENDPOINT = "https://huggingface.co"
ANSWER_SECONDS = 2.5


def fetch(repository: str, revision: str | None, *, show_progress: bool) -> tuple[Path, str]:
    """Return the directory with the repository's files, and the commit they are of."""
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    try:
        _check_address(endpoint)
    except ValueError as error:
        raise ModelError("hub_unreachable", f"HF_ENDPOINT `{endpoint}` is not an address: {error}") from None
    # The library reads these when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "3")
    if not show_progress:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - heavy, and rarely needed
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def snapshot(*, offline: bool) -> Path:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=PATTERNS, local_files_only=offline
            )
        )

    try:
        path = snapshot(offline=True)
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return path, path.name
    except HFValidationError:
        raise ModelError("model_not_found", f"model `{repository}` cannot be a hub repository") from None
    except LocalEntryNotFoundError:
        pass
    missing = f"model `{repository}` is neither a directory nor in the local cache"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ModelError("hub_unreachable", f"{missing}, and HF_HUB_OFFLINE forbids a download")
    if not _is_reachable(endpoint):
        raise ModelError("hub_unreachable", f"{missing}, and {endpoint} cannot be reached")
    try:
        path = snapshot(offline=False)
    except GatedRepoError:
        raise ModelError(
            "model_not_found",
            f"{missing}, and {endpoint} gives it only to accounts that accepted its terms: set HF_TOKEN",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at revision `{revision}`" if revision else ""
        raise ModelError("model_not_found", f"{missing}, and {endpoint} does not have it{at}") from None
    except Exception as error:  # noqa: BLE001 - errors of the HTTP library come through, whichever it is
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            "hub_unreachable", f"{missing}, and the download from {endpoint} failed: {reason}"
        ) from None
    return path, path.name


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


def _check_address(url: str) -> None:
    """Raise ``ValueError`` when a URL is not one of the web's."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must start with https:// or http:// and a host")
    _ = parts.port  # the property judges it

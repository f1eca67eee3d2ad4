"""Models from the Hugging Face hub: the local cache first, then a download of weights and JSON only."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from akidb_sidecar._errors import ModelError

PATTERNS = ["*.safetensors", "*.json", "*.txt", "tokenizer.model"]
"""Never a pickle: no ``*.bin``, no ``*.pt``."""
DEFAULT_ENDPOINT = "https://huggingface.co"
CONNECT_SECONDS = 2.0


def fetch(repository: str, revision: str | None, *, show_progress: bool) -> tuple[Path, str]:
    """Return the directory with the repository's files, and the commit they are of."""
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    try:
        _address(endpoint)
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
    """Whether the hub, or the proxy in front of it, accepts a connection soon: downloads retry too long."""
    scheme = urlsplit(endpoint).scheme
    proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme}_proxy".upper())
    try:
        socket.create_connection(_address(proxy or endpoint), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _address(url: str) -> tuple[str, int]:
    """Return host and port of a URL; raise ``ValueError`` when its port is no number."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

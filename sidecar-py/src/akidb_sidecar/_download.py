"""Large files from the hub, so that a download that was cut off goes on where it stopped.

The library gives up what it has of a file when its process ends. So a large file that comes by plain HTTP
is brought here first, into the place of the library's cache where it then finds it. What the hub keeps in its
chunk storage, Xet, is left to the library.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from akidb_sidecar import _cache

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

LARGE_BYTES = 1024 * 1024
"""A smaller file is fetched again sooner than asked where it stopped."""
_ETAG = re.compile(r"[0-9A-Za-z_-]{1,128}")


class DamagedError(Exception):
    """What arrived is not what the hub has."""


def fetch_large(repository: str, name: str, commit: str) -> None:
    """Bring one file into the cache, or leave it to the library."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # noqa: PLC0415

    url = hf_hub_url(repository, name, revision=commit)
    metadata = get_hf_file_metadata(url)
    etag = metadata.etag
    if etag is None or metadata.size is None or not _ETAG.fullmatch(etag) or _is_in_chunks(metadata):
        return
    home = _cache.folder(repository)
    blob = home / "blobs" / etag
    lock = home.parent / ".locks" / home.name / f"{etag}.lock"
    for file in (blob, lock):
        file.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the library's own, so that both never write the same file
        if not blob.exists():
            _fetch(url, metadata, blob, name)


def _is_in_chunks(metadata: HfFileMetadata) -> bool:
    from huggingface_hub.utils._runtime import is_xet_available  # noqa: PLC0415 - it has no public name

    return metadata.xet_file_data is not None and is_xet_available()


def _fetch(url: str, metadata: HfFileMetadata, blob: Path, name: str) -> None:
    from huggingface_hub.file_download import http_get  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

    assert metadata.size is not None  # noqa: S101 - for the type checker
    partial = blob.with_name(f"{blob.name}.incomplete")
    headers = build_hf_headers()
    if urlsplit(metadata.location)[:2] != urlsplit(url)[:2]:
        headers.pop("authorization", None)  # the token is for the hub alone
    with partial.open("ab", buffering=0) as file:  # unbuffered: what has arrived is kept whatever happens
        if file.tell() > metadata.size:
            file.truncate(0)
        http_get(
            metadata.location,
            file,
            resume_size=file.seek(0, 2),
            headers=headers,
            expected_size=metadata.size,
            displayed_filename=name,
        )
    if not _is_what_the_hub_has(partial, blob.name):
        partial.unlink()
        raise DamagedError(f"`{name}` arrived damaged; it was thrown away")
    partial.replace(blob)


def _is_what_the_hub_has(file: Path, etag: str) -> bool:
    """Compare a file with its tag: the SHA-256 of a large file, the SHA-1 of git for a small one."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return sha256(file) == etag
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        return _hash(file, hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)) == etag
    return True


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, without holding it in memory."""
    return _hash(file, hashlib.sha256())


def _hash(file: Path, digest: hashlib._Hash) -> str:
    buffer = bytearray(1 << 20)
    with file.open("rb", buffering=0) as opened:
        while received := opened.readinto(buffer):
            digest.update(memoryview(buffer)[:received])
    return digest.hexdigest()

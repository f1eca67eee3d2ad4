"""What can go wrong for a reason that a person can fix."""

import errno

from akidb_sidecar._printable import line

EXIT_SOFTWARE = 70
EXIT_CONFIGURATION = 78

_SHORTAGES = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_SIGNS_OF_SHORTAGE = (
    "Insufficient Memory",
    "Unable to allocate",
    "out of memory",
    "can't start new thread",
    "Resource temporarily unavailable",
)
"""What Metal, MLX, CUDA, Python and the C++ library say."""


def is_shortage(error: OSError | RuntimeError) -> bool:
    """Whether memory, threads or descriptors are short just now; another process may find more later."""
    if isinstance(error, OSError):
        return error.errno in _SHORTAGES
    return any(sign in str(error) for sign in _SIGNS_OF_SHORTAGE)


class ModelError(Exception):
    """A model that cannot be used. ``code`` is stable, ``message`` is one line for a person."""

    def __init__(self, code: str, message: str) -> None:
        # Paths and foreign messages may hold line breaks, escape sequences, and bytes that are not UTF-8.
        message = line(message.encode(errors="replace").decode())
        super().__init__(message)
        self.code = code
        self.message = message


class ProtocolError(Exception):
    """Bytes that are not of the protocol. The connection cannot be used any more."""


class BatchError(Exception):
    """A batch that is of the protocol but cannot be computed, such as one with a text of no tokens."""


class DeviceLostError(Exception):
    """The device failed for a reason unrelated to the batch; this process cannot use it any more."""


class OutputError(Exception):
    """The model gave a vector that cannot be right."""

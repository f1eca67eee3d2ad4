"""What can go wrong for a reason that a person can mend."""

from akidb_sidecar._printable import line

EXIT_SOFTWARE = 70
EXIT_CONFIGURATION = 78


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
    """The device failed for a reason that does not lie in the batch; this process cannot use it any more."""


class OutputError(Exception):
    """The model gave a vector that cannot be right."""

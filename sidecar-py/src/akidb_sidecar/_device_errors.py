"""Which errors of MLX are the device's, and not those of the work that it was given."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from akidb_sidecar._errors import DeviceLostError

if TYPE_CHECKING:
    from collections.abc import Iterator

METAL_FAILURE = "[METAL] Command buffer execution failed"
"""How MLX begins its report of a command buffer that Metal gave up; Metal's own words follow.

MLX 0.32 keeps what the completion handler is told, and raises it where it next waits or encodes, which may be
in a later batch: the texts at hand need not be those that failed. After a time-out, a hang or a page fault
macOS resets the GPU, discards the work of others with it (``InnocentVictim``), and may ignore whatever this
process submits from then on (``SubmissionsIgnored``). So the process is of no use, whatever its text was.
Read in MLX's sources and issues; not seen on a Mac.
"""
METAL_OUT_OF_MEMORY = ("CommandBufferCallbackErrorOutOfMemory", "Insufficient Memory")
"""The exception: nothing was reset, and the process can go on with less. As an error of the batch its texts
run one by one, and one that never fits is answered with an error. As a lost device every batch that is too
large would cost a worker, again and again. A process that has no memory for anything any more fails its
warm-up text, too, and is replaced for that.
"""
CUDA_DAMAGED_MEMORY = "uncorrectable ECC error encountered"
"""What CUDA says of broken hardware. Its other errors may be the work's; where they leave the process without
the use of the device it fails its warm-up text, too.
"""


@contextmanager
def device_errors() -> Iterator[None]:
    """Raise :class:`DeviceLostError` in place of an error of MLX that is the device's."""
    try:
        yield
    except RuntimeError as error:
        if _is_of_the_device(str(error)):
            raise DeviceLostError(str(error)) from error
        raise


def _is_of_the_device(text: str) -> bool:
    if METAL_FAILURE in text:
        return not any(sign in text for sign in METAL_OUT_OF_MEMORY)
    return CUDA_DAMAGED_MEMORY in text

"""Which errors of MLX are taken for those of the device."""

from __future__ import annotations

import pytest

from akidb_sidecar._device_errors import device_errors
from akidb_sidecar._errors import DeviceLostError

FAILED = "[METAL] Command buffer execution failed: "
OF_THE_DEVICE = (
    FAILED + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout).",
    FAILED + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang).",
    FAILED + "Ignored (for causing prior/excessive GPU errors) "
    "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored).",
    FAILED
    + "Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim).",
    FAILED + "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault).",
    FAILED + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity).",
    FAILED + "words that no version has used yet.",
    "cudaStreamSynchronize(stream) failed: uncorrectable ECC error encountered",
)
OF_THE_BATCH = (
    FAILED + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
    "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size",
    "[matmul] Last dimension of first input must match second to last dimension of second input.",
)


@pytest.mark.parametrize("text", OF_THE_DEVICE)
def test_a_lost_device_is_recognized(text: str) -> None:
    with pytest.raises(DeviceLostError) as raised, device_errors():
        raise RuntimeError(text)
    assert str(raised.value) == text


@pytest.mark.parametrize("text", OF_THE_BATCH)
def test_other_errors_stay_what_they_are(text: str) -> None:
    with pytest.raises(RuntimeError) as raised, device_errors():
        raise RuntimeError(text)
    assert type(raised.value) is RuntimeError
    assert str(raised.value) == text


def test_errors_of_other_types_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="METAL"), device_errors():
        raise ValueError(OF_THE_DEVICE[0])

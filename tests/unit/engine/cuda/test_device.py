import pytest
import torch

from tests.unit.engine.builders import an_engine
from trimtab_workers.engine.device import CudaDevice, open_device
from trimtab_workers.engine.errors import ConfigError


def test_cpu_needs_no_seam():
    """A CPU is no device to open."""
    assert open_device("cpu") is None


def test_torch_without_cuda(monkeypatch):
    """A torch built without CUDA is named with the field and the remedy."""
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"device is 'cuda:0', but torch .* built without CUDA"):
        open_device("cuda:0")


def test_no_gpu(monkeypatch):
    """A process without a GPU says so instead of serving on the CPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"):
        open_device("cuda")


def test_index_out_of_range(monkeypatch):
    """An index past the visible GPUs names their number."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"2 GPU\(s\) are visible"):
        open_device("cuda:2")


class Runtime:
    """CUDA's runtime, as far as pinning goes; refuses when told to."""

    def __init__(self, failure=0):
        self.failure, self.calls = failure, []

    def cudaHostRegister(self, address, size, flags):  # noqa: N802 - CUDA's name
        self.calls.append(("register", address, size, flags))
        return self.failure

    def cudaHostUnregister(self, address):  # noqa: N802 - CUDA's name
        self.calls.append(("unregister", address))


def test_pinning(monkeypatch):
    """A buffer's pages are pinned in one call for as long as the block runs, even if it fails."""
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    device = object.__new__(CudaDevice)
    buffer = torch.zeros(10, dtype=torch.int32)
    with pytest.raises(KeyError), device.pinned(buffer):
        raise KeyError
    assert runtime.calls == [
        ("register", buffer.data_ptr(), 40, 0),
        ("unregister", buffer.data_ptr()),
    ]


def test_pinning_refused(monkeypatch):
    """Refused pages name the bytes and what to raise, and nothing is unpinned."""
    runtime = Runtime(failure=2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    device = object.__new__(CudaDevice)
    with (
        pytest.raises(ConfigError, match=r"Pinning 3 bytes .* CUDA error 2"),
        device.pinned(torch.zeros(3, dtype=torch.uint8)),
    ):
        pass
    assert [call[0] for call in runtime.calls] == ["register"]


def test_engine_refuses_at_start(monkeypatch):
    """An engine that is told to use a GPU never serves on the CPU instead."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device is 'cuda'"):
        an_engine(device="cuda")

"""The seam to the accelerator: memory, streams, events, pinned host copies.

Whatever orders copies and kernels asks for streams and events here, so that its order can be
tested against a fake. `CudaDevice` is a thin cover of torch.cuda and has never run in this
project's tests (docs/benchmarks/gpu-not-run.md).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch

from trimtab_workers.engine.errors import ConfigError, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Items
    from contextlib import AbstractContextManager


class Event(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool:
        """Whether the work before it is done."""
        ...

    def synchronize(self) -> None:
        """Block the calling thread until it is."""
        ...

    def elapsed_time(self, _end: Event, /) -> float:
        """Milliseconds to a later event; both with timing, both done."""
        ...


class Stream(Protocol):
    """Work in order."""

    def wait_event(self, event: Event) -> None:
        """Let later work of this stream wait for an event of another one."""
        ...

    def wait_stream(self, stream: Stream) -> None:
        """Let later work of this stream wait for all that another one has."""
        ...

    def record_event(self, event: Event) -> Event:
        """Mark this point with an event."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device, as its driver counts them: other processes' use included."""

    free_bytes: int
    total_bytes: int


class Device(Protocol):
    """An accelerator.

    Attributes:
        place: Where tensors live.
        processors: Streaming multiprocessors.
    """

    place: torch.device
    processors: int

    def new_stream(self) -> Stream:
        """Make a stream that runs beside the current one."""
        ...

    def new_event(self) -> Event:
        """Make an event with timing."""
        ...

    def current_stream(self) -> Stream:
        """Return the stream that kernels go to."""
        ...

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Send what the block launches to a stream."""
        ...


class CudaDevice:
    """One NVIDIA GPU, by its index among the visible ones."""

    def __init__(self, index: int) -> None:
        self.place = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(index)
        self.processors = int(properties.multi_processor_count)
        self.product = str(properties.name)

    def new_stream(self) -> Stream:
        """Make a stream that runs beside the current one."""
        return cast("Stream", torch.cuda.Stream(self.place))  # type: ignore[no-untyped-call] # torch's own gap

    def new_event(self) -> Event:
        """Make an event with timing; without, waiting is not cheaper by anything that matters."""
        return cast("Event", torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call] # the same

    def current_stream(self) -> Stream:
        """Return the stream that kernels go to."""
        return cast("Stream", torch.cuda.current_stream(self.place))

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Send what the block launches to a stream."""
        return torch.cuda.stream(cast("torch.cuda.Stream", stream))

    def synchronize(self) -> None:
        """Block until the device is idle."""
        torch.cuda.synchronize(self.place)

    def memory(self) -> DeviceMemory:
        """Return free and total bytes."""
        return DeviceMemory(*torch.cuda.mem_get_info(self.place))

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return uninitialised bytes whose address never changes.

        Raises:
            OutOfMemoryError: They are not free; names both numbers.
        """
        try:
            return torch.empty(size_bytes, dtype=torch.uint8, device=self.place)
        except torch.OutOfMemoryError as error:
            memory = self.memory()
            raise OutOfMemoryError(
                f"The device {self.place} ({self.product}) has {memory.free_bytes} bytes free of "
                f"{memory.total_bytes}, but the arena needs {size_bytes}. Lower memory_bytes, or "
                "end the other processes on this device."
            ) from error

    @contextmanager
    def pinned(self, buffer: torch.Tensor) -> Iterator[torch.Tensor]:
        """Pin a host buffer's pages while the block runs, so that copies are asynchronous.

        One call covers a model's whole host copy. torch's pinned allocator rounds each of its
        buffers up to a power of two, 436 MB to 512 MB (engine.md §2). The pages must be writable
        and private or shared in memory: CUDA refuses file mappings that are read-only.

        Args:
            buffer: Contiguous, on the host.

        Raises:
            OutOfMemoryError: The kernel does not lock that much, or CUDA refuses the pages.
        """
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call] # the same
        size = buffer.numel() * buffer.element_size()
        failed = int(runtime.cudaHostRegister(buffer.data_ptr(), size, 0))
        if failed:
            raise OutOfMemoryError(
                f"Pinning {size} bytes of host memory failed with CUDA error {failed}. Raise the "
                "memory limit of the pod (host copies count in full), or its memlock limit."
            )
        try:
            yield buffer
        finally:
            runtime.cudaHostUnregister(buffer.data_ptr())


def upload(values: Items[int], place: torch.device) -> torch.Tensor:
    """Return integers on a device, int64, without waiting for its stream.

    From pageable memory a copy would first wait for everything that was launched before.
    """
    near = torch.tensor(values, dtype=torch.int64, pin_memory=place.type == "cuda")
    return near.to(place, non_blocking=True)


def open_device(name: str) -> CudaDevice | None:
    """Open the device that a model set names; None for the CPU, which needs no seam.

    Args:
        name: `cpu`, `cuda` or `cuda:N`, checked before by `parse_config`.

    Raises:
        ConfigError: This torch has no CUDA, no driver answers, or the index is out of range.
    """
    if name == "cpu":
        return None
    where = f"The model set's field device is {name!r}, but"
    if torch.version.cuda is None:
        raise ConfigError(
            f"{where} torch {torch.__version__} is built without CUDA. Use the worker-cuda image, "
            "or set device to 'cpu'."
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ConfigError(
            f"{where} torch {torch.__version__} sees no GPU. Request one in the pod's resources "
            "and check the node's driver, or set device to 'cpu'."
        )
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(
            f"{where} {count} GPU(s) are visible to this process. Give an index below {count}."
        )
    return CudaDevice(index)

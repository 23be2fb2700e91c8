"""A model's layers in host memory, byte for byte as they lie in its homes (engine.md §2.7).

One file per model in the folder for temporary files, without a name, mapped shared and writable, for
the copy is made through the mapping: once written back, its pages are clean and the kernel drops
them when memory is short. After `seal` nobody writes to it, and each unit's checksum would tell. A
private mapping would not do: pages written to it are the process's own and stay, and so are a
memfd's, which have no file behind them. Nothing is lent without such a copy.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zlib
from typing import Protocol

import torch

from trimtab_workers.engine.errors import HostCopyError


class UnitSource(Protocol):
    """Where a model's units come from when they come back.

    Attributes:
        unit_bytes: Of one unit.
        units: How many there are.
    """

    unit_bytes: int
    units: int


class HostCopy:
    """The bytes of a model's units and a checksum of each."""

    __slots__ = ("_bytes", "_file", "_map", "_sums", "model", "unit_bytes", "units")

    def __init__(self, *, model: str, unit_bytes: int, units: int) -> None:
        """Make an empty copy.

        Raises:
            HostCopyError: The folder for temporary files has too little room; names both sizes.
        """
        self.model, self.unit_bytes, self.units = model, unit_bytes, units
        self._sums = [0] * units
        size = unit_bytes * units
        try:
            self._file = tempfile.TemporaryFile(prefix="trimtab-weights-")  # noqa: SIM115 - see seal
        except OSError as error:
            raise self._refused(error) from error
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
            self._map = mmap.mmap(self._file.fileno(), size)
        except OSError as error:
            self._file.close()
            raise self._refused(error) from error
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def write(self, unit: int, source: torch.Tensor) -> None:
        """Keep a unit's bytes, uint8, shape [unit_bytes]."""
        self.unit(unit).copy_(source)
        self._sums[unit] = checksum(source)

    def seal(self) -> None:
        """Write everything to the file, so that its pages are clean from now on.

        Raises:
            HostCopyError: The disk did not take it.
        """
        try:
            # `mmap.flush` keeps the interpreter's lock: nobody would step or answer meanwhile.
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error
        finally:
            self._file.close()
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_SEQUENTIAL)

    def _refused(self, error: OSError) -> HostCopyError:
        folder = os.environ.get("TMPDIR", "the folder for temporary files")
        return HostCopyError(
            f"Model {self.model}: its host copy of {self.unit_bytes * self.units} bytes cannot be "
            f"made in {folder}: {error.strerror}. It serves, but is never lent; mount an emptyDir "
            "of that size at TMPDIR."
        )

    def unit(self, index: int) -> torch.Tensor:
        """Return a unit's bytes, uint8, shape [unit_bytes]; not to be written."""
        start = index * self.unit_bytes
        return self._bytes[start : start + self.unit_bytes]

    def check(self, unit: int, loaded: torch.Tensor) -> None:
        """Compare what was loaded with what was kept.

        Raises:
            HostCopyError: They differ (vllm #29341 answered gibberish after such a wake).
        """
        if checksum(loaded) != self._sums[unit]:
            raise HostCopyError(
                f"Model {self.model}: unit {unit} read from its host copy has another checksum than "
                "when it was kept. The memory or the disk below TMPDIR is damaged; restart the worker."
            )


def checksum(data: torch.Tensor) -> int:
    """Return the crc-32 of a tensor's bytes."""
    return zlib.crc32(data.numpy().data)

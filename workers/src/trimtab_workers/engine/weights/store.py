"""Opens whatever lies at a path."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from trimtab_workers.engine.errors import ModelCorruptError, ModelNotFoundError
from trimtab_workers.engine.weights.gguf import GgufCheckpoint
from trimtab_workers.engine.weights.hf import HfCheckpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trimtab_workers.engine.config import ModelSpec
    from trimtab_workers.engine.weights.checkpoint import Checkpoint

_NONSENSE = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


def resolve(path: Path) -> Path:
    """Return the GGUF file or the safetensors directory that a path means.

    A directory with exactly one GGUF file and no safetensors means that file.

    Raises:
        ModelNotFoundError: Nothing is there, or it is ambiguous.
        ModelCorruptError: It cannot be read.
    """
    with guarded(path):
        if path.is_file():
            return path
        if not path.is_dir():
            raise ModelNotFoundError(
                f"{path}: there is no such file or directory. "
                "Correct the path in spec.model.source, or put the model there."
            )
        ggufs = sorted(path.glob("*.gguf"))
        if ggufs and not any(path.glob("*.safetensors")):
            if len(ggufs) > 1:
                raise ModelNotFoundError(
                    f"{path}: there are {len(ggufs)} GGUF files ({ggufs[0].name}, {ggufs[1].name}, "
                    "…). Give the path of one of them."
                )
            return ggufs[0]
    return path


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn what foreign files provoke into a sentence.

    Raises:
        ModelCorruptError: Something below cannot be read, or holds what no checkpoint holds.
    """
    try:
        yield
    except OSError as error:
        raise ModelCorruptError(
            f"{error.filename or path}: cannot be read: {error.strerror}. Correct its permissions."
        ) from error
    except _NONSENSE as error:
        # Files may hold any value at any place; what matters is checked by name before this.
        raise ModelCorruptError(
            f"{path}: its configuration or headers hold a value of a wrong kind "
            f"({type(error).__name__}: {error}). Fetch the checkpoint again."
        ) from error


def open_checkpoint(spec: ModelSpec) -> Checkpoint:
    """Open a model's weights: random, a GGUF file, or a directory with safetensors.

    Raises:
        CheckpointError: It is missing, damaged or not supported; the message is for the user.
    """
    if spec.random is not None:
        from trimtab_workers.engine.weights.random import RandomCheckpoint  # noqa: PLC0415 - torch

        return RandomCheckpoint(spec.random.hf_config, seed=spec.random.seed)
    path = resolve(spec.path)
    with guarded(path):
        return GgufCheckpoint(path) if path.is_file() else HfCheckpoint(path)

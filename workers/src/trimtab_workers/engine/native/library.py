"""Finds the compiled kernels (forward.c) and mirrors their structures.

They are built when the package is installed, if there is a C compiler then. Without them, or with
ones of another version, torch computes: the same results, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

log = logging.getLogger(__name__)

ABI = 2
NAN_LOGITS = 1
LANES = 16
KINDS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}


class Matrix(Structure):
    """A packed weight; `block` 0 is row-major, which only an embedding may be."""

    _fields_ = (
        ("data", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("out", c_int32),
        ("inner", c_int32),
        ("block", c_int32),
        ("kind", c_int32),
    )


class LayerTable(Structure):
    """Where one layer lies now; may be edited between steps."""

    _fields_ = (
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
    )


class Model(Structure):
    """Sizes, tables and addresses of a model."""

    _fields_ = (
        ("layers", c_int32),
        ("hidden", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("intermediate", c_int32),
        ("vocab", c_int32),
        ("positions", c_int32),
        ("kind", c_int32),
        ("eps", c_float),
        ("kv_rows", c_int64),
        ("kv_layer_rows", c_int64),
        ("kv", c_void_p),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("norm", c_void_p),
        ("embedding", Matrix),
        ("head", Matrix),
        ("layer", POINTER(LayerTable)),
    )


class Step(Structure):
    """Rows of one step; see forward.c."""

    _fields_ = (
        ("rows", c_int32),
        ("segments", c_int32),
        ("table_length", c_int32),
        ("first", c_int32),
        ("last", c_int32),
        ("samples", c_int32),
        ("tokens", c_void_p),
        ("segment", c_void_p),
        ("tables", c_void_p),
        ("sample", c_void_p),
        ("scratch", c_void_p),
        ("scratch_bytes", c_int64),
        ("logits", c_void_p),
        ("best", c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the loaded kernels, None (and one log line) where there are none."""
    files = sorted(Path(__file__).parent.glob("_forward*.so"))
    try:
        if not files:
            raise OSError("not compiled at installation")  # noqa: TRY301 - one way out
        kernels = ctypes.CDLL(str(files[0]))
        found = kernels.tt_abi()
        if found != ABI:
            raise OSError(f"compiled for version {found}, not {ABI}; install again")  # noqa: TRY301 - one way out
        kernels.tt_choose.argtypes, kernels.tt_choose.restype = [c_char_p], c_char_p
        kernels.tt_pool.argtypes, kernels.tt_pool.restype = [c_int32], c_void_p
        kernels.tt_check_model.argtypes = [POINTER(Model)]
        kernels.tt_scratch_bytes.argtypes = [POINTER(Model), *[c_int32] * 5]
        kernels.tt_scratch_bytes.restype = c_int64
        kernels.tt_step.argtypes = [c_void_p, POINTER(Model), POINTER(Step)]
        kernels.tt_linear.argtypes = [c_void_p, POINTER(Matrix), c_void_p, c_void_p, c_int64]
        chosen = kernels.tt_choose(b"")
    except (OSError, AttributeError) as error:
        log.info("native_absent", extra={"reason": str(error), "instead": "torch"})
        return None
    log.info("native_loaded", extra={"instructions": chosen.decode()})
    return kernels


@functools.cache
def pool(threads: int) -> int | None:
    """Return the process's pool of so many threads, None if they cannot be started."""
    kernels = library()
    handle: int | None = None if kernels is None else kernels.tt_pool(threads)
    return handle

"""What a precision of weights means in bytes; the engine lays its weights out by the same formulas.

``int8`` and ``int4`` are weight-only: the matrices of the hidden layers are quantised, embedding,
head, norms and biases stay bf16, and so do activations and the KV cache. Standard library only.
"""

from typing import Final

from trimtab.planning.architecture import BYTES_PER_VALUE

WEIGHT_ONLY: Final = ("int8", "int4")
PRECISIONS: Final = (*BYTES_PER_VALUE, *WEIGHT_ONLY)

INT4_GROUP: Final = 32
"""Weights of one row that share a scale and an offset; `docs/benchmarks/precisions.md` says why 32."""

INT8_COLUMNS: Final = 32
"""Columns are padded with zeros to a multiple of this: kernels read that many at once."""

INT4_ROWS: Final = 16
"""Rows are padded with zeros to a multiple of this, for the same reason."""

_PIECE_ALIGN: Final = 64
_BITS: Final = {**{name: 8 * size for name, size in BYTES_PER_VALUE.items()}, "int8": 8, "int4": 4}
_SCALE_BYTES: Final = 2


def compute_precision(precision: str) -> str:
    """Return the precision of activations, KV cache and what is not quantised."""
    return "bf16" if precision in WEIGHT_ONLY else precision


def loses_accuracy(precision: str, *, own: str) -> bool:
    """Whether a precision keeps fewer bits of a weight than the checkpoint's own has."""
    return _BITS.get(precision, 0) < _BITS.get(own, 0)


def value_bytes(precision: str) -> int:
    """Return the bytes of a weight or KV value that is not quantised."""
    return BYTES_PER_VALUE[compute_precision(precision)]


def table_bytes(precision: str) -> int:
    """Return the bytes of a value of embedding, head or norms, which no 8-bit precision quantises."""
    return max(value_bytes("bf16"), value_bytes(precision))


def codes_bytes(rows: int, columns: int, *, precision: str) -> int:
    """Return the bytes of a quantised matrix without its scales, which begin right behind."""
    if precision == "int8":
        return aligned(rows * padded(columns, INT8_COLUMNS))
    return aligned(padded(rows, INT4_ROWS) * padded(columns, INT4_GROUP) // 2)


def matrix_bytes(rows: int, columns: int, *, precision: str) -> int:
    """Return the bytes that one matrix of a hidden layer takes in its home, with its scales.

    int8 has a scale per row; int4 has a scale and an offset per group. All are bf16.
    """
    if precision not in WEIGHT_ONLY:
        return aligned(rows * columns * BYTES_PER_VALUE[precision])
    if precision == "int8":
        scales = rows * _SCALE_BYTES
    else:
        groups = padded(columns, INT4_GROUP) // INT4_GROUP
        scales = padded(rows, INT4_ROWS) * groups * 2 * _SCALE_BYTES
    return codes_bytes(rows, columns, precision=precision) + aligned(scales)


def padded(size: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-size // multiple) * multiple


def aligned(size: int) -> int:
    """Round up to where the next piece of a home may begin, bytes."""
    return padded(size, _PIECE_ALIGN)

"""Imports the kernels as interpreted ones.

Triton reads TRITON_INTERPRET where a kernel is decorated, its own library's included, and again at
a process's first launch. So it is set while triton is imported and while a test of this folder
runs, and at no other time.
"""

import sys

import pytest

if "triton" in sys.modules:
    raise RuntimeError(
        "triton was imported before tests/unit/engine/cuda/conftest.py could ask for its "
        "interpreter. Import it inside of tests, not at the top of a test module."
    )
with pytest.MonkeyPatch.context() as environment:
    environment.setenv("TRITON_INTERPRET", "1")
    from triton.runtime import interpreter as triton_interpreter

    from trimtab_workers.engine.kernels import (  # noqa: F401 - decorated now
        decode,
        norm,
        rotate,
        weight_only,
    )

_patch_tensor = triton_interpreter._patch_lang_tensor


def _patch_tensor_for_numpy(tensor, *scope):
    """Let loops end at scalars: numpy 2.4 refuses Triton 3.6's way; ends with torch 2.11."""
    _patch_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.squeeze())


triton_interpreter._patch_lang_tensor = _patch_tensor_for_numpy


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")

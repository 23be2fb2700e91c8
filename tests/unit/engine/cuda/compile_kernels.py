"""Compiles every kernel for an H100, without one; prints a JSON object per kernel.

A process of its own: in the tests' process the kernels are interpreted ones.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trimtab_workers.engine.kernels import decode, norm, rotate, weight_only

_H100 = GPUTarget("cuda", 90, 32)
_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_ALIGNED = [["tt.divisibility", 16]]


def compile_kernel(kernel: Any, types: str, constants: dict[str, Any], *, warps: int) -> Any:
    """Compile with the alignment that launches have: pointers and strides are multiples of 16."""
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={name: signature[name] for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={
            (kernel.arg_names.index(name),): _ALIGNED for name in names if signature[name] != "fp32"
        },
    )
    return triton.compile(
        source,
        target=_H100,
        options={"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True},
    )


def facts(name: str, compiled: Any, folder: Path) -> dict[str, Any]:
    """Return what the machine code uses; stack bytes are spilled registers."""
    file = folder / f"{name}.cubin"
    file.write_bytes(compiled.asm["cubin"])
    listing = subprocess.run(
        [_TOOL, "-res-usage", file], check=True, capture_output=True, text=True
    ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    ptx = compiled.asm["ptx"]
    return {
        "kernel": name,
        "matrix_instructions": len(re.findall(r"(?:wgmma\.mma_async|mma\.sync)", ptx)),
        "wide_loads": len(re.findall(r"ld\.global[.\w:]*\.v4|cp\.async[.\w]*", ptx)),
        "shared_bytes": compiled.metadata.shared,
        **usage,
    }


def decode_shape(group: int, head_dim: int, splits: int) -> dict[str, Any]:
    """Return the constants of a decode launch with 8 key heads."""
    return {
        "kv_heads": 8,
        "group": group,
        "head_dim": head_dim,
        "block_tokens": 16,
        "splits": splits,
        "tile": decode.TILE_TOKENS,
        "block_g": 16,
        "block_d": 128,
        "widen": False,
    }


def main(folder: Path) -> None:
    """Compile all."""
    paged = "*bf16 *bf16 *i64 *i32 *bf16 *fp32 *fp32 i32 fp32"
    jobs = {
        "decode_llama": (decode._decode, paged, decode_shape(4, 128, 8), 4),
        "decode_odd": (decode._decode, paged, decode_shape(3, 96, 1), 4),
        "combine": (
            decode._combine,
            "*fp32 *fp32 *bf16",
            {"head_dim": 128, "splits": 8, "block_s": 8, "block_d": 128},
            1,
        ),
        "add_norm": (
            norm._add_norm,
            "*bf16 *bf16 *bf16 *bf16 i32 fp32",
            {"has_delta": True, "block": 4096},
            4,
        ),
        "silu_mul": (norm._silu_mul, "*bf16 *bf16 i32", {"block": 1024}, 4),
        "rotate": (
            rotate._rotate_and_store,
            "*bf16 *bf16 *bf16 *i64 *i64 *bf16 *bf16 i32 fp32",
            {"heads": 32, "kv_heads": 8, "head_dim": 128, "block_tokens": 16}
            | {"normed": True, "block": 128},
            1,
        ),
    }
    for kind in ("i8", "fp8e4nv"):
        jobs[f"product_{kind}"] = (
            weight_only._weight_only,
            f"*bf16 *{kind} *fp32 *bf16 *bf16 i32 i32 i32 i32",
            {"has_bias": True, "widen": False, "block_m": 16}
            | {"block_n": weight_only.OUTPUTS, "block_k": weight_only.INNER},
            4,
        )
    for name, (kernel, types, constants, warps) in jobs.items():
        compiled = compile_kernel(kernel, types, constants, warps=warps)
        print(json.dumps(facts(name, compiled, folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

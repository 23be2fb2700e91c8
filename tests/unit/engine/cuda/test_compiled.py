import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def test_kernels_compile_for_an_h100(tmp_path):
    """Every kernel compiles to sm_90 code without spilled registers, products to matrix ones."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    lines = subprocess.run(
        [sys.executable, SCRIPT, tmp_path],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    facts = {line["kernel"]: line for line in map(json.loads, lines)}
    assert set(facts) == {
        "decode_llama",
        "decode_odd",
        "combine",
        "add_norm",
        "silu_mul",
        "rotate",
        "product_i8",
        "product_fp8e4nv",
    }
    for name, fact in facts.items():
        assert fact["STACK"] == fact["LOCAL"] == 0, fact
        assert (fact["matrix_instructions"] > 0) == name.startswith(("decode", "product")), fact
        # Two programs of attention per processor have to fit into its 228 KiB.
        assert fact["shared_bytes"] <= 100 << 10, fact

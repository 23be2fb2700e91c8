"""`trimtab fingerprint import` on the profile of a real GPU."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.cli.app import app
from trimtab.planning.fingerprint import parse
from trimtab.planning.step_model import fit, work_of

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("TRIMTAB_DATA", ROOT.parent / "shared" / "data")) / "llm-serving"


@pytest.mark.parametrize(("degree", "decode", "mixed"), [(1, 171, 18_960), (2, 171, 18_960)])
def test_a_real_profile_is_imported(tmp_path, degree, decode, mixed):
    """The public RTX PRO 6000 profile of Llama-3.1-8B comes in whole."""
    folder = DATA / "one-layer-RTXPRO6000-Llama-3.1-8B"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set TRIMTAB_DATA to the folder of real measurements")
    out = tmp_path / "fp.json"
    words = ["fingerprint", "import", str(folder), "--format=llmservingsim", f"--out={out}"]
    done = CliRunner().invoke(app, [*words, f"--tensor-parallel={degree}"])
    assert done.exit_code == 0, done.output
    found = parse(out.read_text())
    assert (len(found.decode), len(found.mixed)) == (decode, mixed)
    # 32 layers of 8B weights, read once at about 1.6 TB/s, take 9 ms; sharded by two, half of it.
    step = fit(found, depth=32).step_us(work_of(found.decode[0])) * degree
    assert 8_000 < step < 14_000

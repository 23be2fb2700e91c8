"""Everything in the tree that is generated: check it (default), or write it again with `--write`.

`python -m e2e.generated [--write]`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What is generated, the command that writes it, and what to add so that it only checks.
GENERATORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("CRDs", ("-m", "trimtab.cli", "crds", "generate")),
    ("API reference", ("-m", "docs.reference.generate")),
    ("metrics reference", ("-m", "docs.reference.metrics")),
    ("dashboards", ("-m", "tools.dashboards")),
    ("chart README", ("-m", "tools.chart_readme")),
)


def main() -> int:
    """Run every generator; exit 1 if one found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write instead of check")
    mode = () if parser.parse_args().write else ("--check",)
    failed = [
        what
        for what, command in GENERATORS
        if subprocess.run([sys.executable, *command, *mode], cwd=ROOT, check=False).returncode
    ]
    if failed:
        print(f"out of date: {', '.join(failed)}. Remedy: make generate", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

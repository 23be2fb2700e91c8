"""Write the dashboards into the chart, or with --check say which are out of date."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards import engine, intents, planner

if TYPE_CHECKING:
    from collections.abc import Callable

    from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER: Final = Path(__file__).resolve().parents[2] / "charts" / "trimtab" / "dashboards"
BOARDS: Final[dict[str, Callable[[], Dashboard]]] = {
    "engine": engine.board,
    "intents": intents.board,
    "planner": planner.board,
}


def text(board: Dashboard) -> str:
    """Return a dashboard as the JSON that Grafana imports."""
    return json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def outdated() -> dict[Path, str | None]:
    """Return the files that differ from the code, with what they should hold; None: no such board."""
    wanted = {FOLDER / f"{name}.json": text(board()) for name, board in BOARDS.items()}
    changed: dict[Path, str | None] = {
        path: content
        for path, content in wanted.items()
        if not path.exists() or path.read_text() != content
    }
    return changed | {path: None for path in FOLDER.glob("*.json") if path not in wanted}


def main() -> int:
    """Write what is out of date; with --check write nothing and exit 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tools.dashboards")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    check = parser.parse_args().check
    for path, content in outdated().items():
        if check:
            sys.stderr.write(f"{path} is out of date; run `python -m tools.dashboards`\n")
        elif content is None:
            path.unlink()
        else:
            path.write_text(content)
    return 1 if check and outdated() else 0


if __name__ == "__main__":
    sys.exit(main())

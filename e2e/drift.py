"""Print modules, functions and complexities past the guides of the house style; never fails.

`python -m e2e.drift`. The guides: modules of 300 lines, functions of 40, complexity 10.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE_LINES, FUNCTION_LINES, COMPLEXITY = 300, 40, 10
BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.BoolOp,
    ast.IfExp,
    ast.match_case,
    ast.comprehension,
)


def complexity(function: ast.AST) -> int:
    """Return McCabe's number of `function`: one more than its branches."""
    return 1 + sum(isinstance(node, BRANCHES) for node in ast.walk(function))


def drift(source: str, *, name: str) -> list[str]:
    """Return one line per guide that the module `name` goes past."""
    lines = source.count("\n")
    found = [f"{name}: {lines} lines"] if lines > MODULE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{name}:{node.lineno} {node.name}: {length} lines")
            if complexity(node) > COMPLEXITY:
                found.append(f"{name}:{node.lineno} {node.name}: complexity {complexity(node)}")
    return found


def main() -> None:
    """Print the drift of the runtime packages."""
    found = [
        line
        for folder in ("operator/src", "workers/src")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in drift(path.read_text(), name=str(path.relative_to(ROOT)))
    ]
    print("\n".join(found))
    print(f"{len(found)} places past the guides (a report, not a failure)")


if __name__ == "__main__":
    main()

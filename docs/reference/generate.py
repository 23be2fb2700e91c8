"""The API reference from the pydantic models: `python -m docs.reference.generate [--check]`."""
# ruff: noqa: INP001 - a script of the checkout, not a package

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.api.v1alpha1.conditions import CONDITIONS
from trimtab.api.v1alpha1.crd import custom_resource_definition
from trimtab.api.v1alpha1.manifests import KINDS
from trimtab.api.v1alpha1.names import API_VERSION
from trimtab.api.v1alpha1.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trimtab.api.v1alpha1.base import Resource

TARGET = Path(__file__).with_name("api.md")


def render() -> str:
    """Return the whole reference as Markdown."""
    lines = [
        f"# API reference: {API_VERSION}",
        "",
        "Generated from the pydantic models by `make generate`; edit those.",
        "",
        "Money, rates, milliseconds of a status and shares are decimal strings; everything else that",
        "counts is an integer with its unit in its name. Fields without a default shown are absent",
        "until given; where absence has a meaning, the description says it.",
        "",
    ]
    for kind in KINDS.values():
        lines += _kind(kind)
    lines += _reasons()
    return "\n".join(lines).rstrip() + "\n"


def _kind(kind: type[Resource]) -> Iterator[str]:
    names = kind.NAMES
    schema = custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    yield from (f"## {names.kind}", "", names.description, "")
    yield f"{names.scope}; short name `{names.short[0]}`; `kubectl get {names.plural}`."
    for part in ("spec", "status"):
        yield from ("", f"### {names.kind} {part}", "")
        yield from ("| field | type | description |", "|---|---|---|")
        for path, node, required in _fields(schema["properties"][part], path=part):
            description = _escaped(str(node.get("description", "")))
            mark = " (required)" if required else ""
            yield f"| `{path}`{mark} | {_type(node)} | {description} |"
    yield from ("", f"### {names.kind} rules", "")
    for rule in (*kind.RULES, *kind.SPEC_RULES):
        yield f"- {_escaped(rule.message)}."
    yield from ("", f"### {names.kind} conditions", "")
    yield from ("| condition | gates Ready | good when | meaning |", "|---|---|---|---|")
    for declared in CONDITIONS[names.kind]:
        yield (
            f"| `{declared.type}` | {'yes' if declared.gating else ''} "
            f"| {'True' if declared.positive else 'False'} | {declared.doc} |"
        )
    yield ""


def _reasons() -> Iterator[str]:
    yield from ("## Reasons", "")
    yield "A closed list: conditions, events, alternatives and metrics use these words and no others."
    yield from ("", "| reason | meaning |", "|---|---|")
    for reason in sorted(Reason):
        yield f"| `{reason}` | {reason.doc} |"


def _fields(node: dict[str, Any], *, path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}"
        yield here, child, name in node.get("required", ())
        yield from _fields(child, path=here)
        if "items" in child:
            yield from _fields(child["items"], path=f"{here}[]")


def _type(node: dict[str, Any]) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in node:
        values = ", ".join(f"`{value}`" for value in node["enum"])
        return f"{values}{_default(node)}"
    kind: str = node["type"]
    if kind == "array":
        return f"list of {_type(node['items'])}, at most {node['maxItems']}"
    if kind == "integer":
        return f"integer, {node['minimum']}…{node['maximum']}"
    if kind == "object" and "additionalProperties" in node:
        return "map of strings"
    return "time" if node.get("format") == "date-time" else kind


def _default(node: dict[str, Any]) -> str:
    return f"; default `{node['default']}`" if "default" in node else ""


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def main() -> int:
    """Write the reference, or with `--check` compare it and return 1 where it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    text = render()
    if not check:
        TARGET.write_text(text)
    elif not TARGET.is_file() or TARGET.read_text() != text:
        sys.stderr.write("docs/reference/api.md differs from the models: run `make generate`.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

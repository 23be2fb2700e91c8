"""The reference of Prometheus metrics from the registries: `python -m docs.reference.metrics [--check]`."""
# ruff: noqa: INP001 - a script of the checkout, not a package

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.telemetry import metrics as operator
from trimtab_workers.engine.metrics import EngineMetrics
from trimtab_workers.gateway.metrics import GatewayMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

TARGET = Path(__file__).with_name("metrics.md")
INTRODUCTION = """\
# Metrics

Generated from the registries by `make generate`; edit those.

Every process serves them on port 8002 at `/metrics`. No request, prompt or caller is a label. Series of single intents are a closed list:
`trimtab_intent_predicted_seconds`, `trimtab_intent_observed_seconds` and `trimtab_intent_cost_per_hour`; everything else about intents is a sum or
a count, so a thousand intents make no more of it. Workers use vLLM's names for what vLLM has, so its dashboards and autoscalers work unchanged.
Counters end in `_total`; histograms have `_bucket`, `_sum` and `_count`.
"""


def render() -> str:
    """Return the whole reference as Markdown."""
    parts = [INTRODUCTION]
    for title, registry in (
        ("Operator", operator.REGISTRY),
        ("Gateway", GatewayMetrics().registry),
        ("Worker", EngineMetrics().registry),
    ):
        rows = "\n".join(sorted(_rows(registry)))
        parts.append(
            f"## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)


def _rows(registry: CollectorRegistry) -> Iterator[str]:
    # The public interface shows the labels of series that exist; most begin without any.
    for collector in set(registry._collector_to_names):  # noqa: SLF001 - as above
        labels = ", ".join(f"`{name}`" for name in getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


def main() -> int:
    """Write the reference, or with `--check` compare it and return 1 where it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    text = render()
    if not check:
        TARGET.write_text(text)
    elif not TARGET.is_file() or TARGET.read_text() != text:
        sys.stderr.write(
            "docs/reference/metrics.md differs from the registries: run `make generate`.\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

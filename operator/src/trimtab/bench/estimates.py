"""Step models for groups of measured rows: from the catalogue, and from a roofline beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from trimtab.bench.closed_loop import TOKEN_BUDGET
from trimtab.bench.report import configs
from trimtab.bench.silicon import read_rows
from trimtab.cli.catalogue import CatalogueQuery, Estimated, ask
from trimtab.planning.confidence import assess, margin_permille
from trimtab.planning.fingerprint import FingerprintInvalidError
from trimtab.planning.roofline_gpu import PEAKS, gpu_roofline
from trimtab.planning.step_model import StepWork, fit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from trimtab.bench.silicon import Group, Row, Rows
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.step_model import StepModel

# Engines keep the KV cache in the activations' type; TensorRT-LLM follows its fp8 and fp4
# checkpoints, whose cache is fp8.
_FP8_CACHE: Final = frozenset({("trtllm", "fp8"), ("trtllm", "fp8_block"), ("trtllm", "nvfp4")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The step models of one group by tensor-parallel size.

    Attributes:
        models: From the catalogue.
        roofline: From data sheets; lacks products without one.
        margins: What a prediction is lengthened by before it is held against a target, per mille.
        profiling: Full model over fingerprint on one decode step, by time: (F + L·h)/(2F + 3h).
        refused: Why a size has no model.
    """

    models: Mapping[int, StepModel]
    roofline: Mapping[int, StepModel]
    margins: Mapping[int, int]
    profiling: Mapping[int, float]
    refused: Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Families:
    """All groups' families, and the catalogue's version."""

    package: str
    by_group: Mapping[Group, Family]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """A file of measured rows, its rows by group, and their families."""

    rows: Rows
    groups: Mapping[Group, Sequence[Row]]
    families: Families


def read_estimates(given: argparse.Namespace, *, policy: PlannerPolicy) -> Estimates:
    """Return the rows and the step models that a command's `report.options` ask for.

    Raises:
        CommandError: A file is missing or wrong, or the catalogue is not there.
    """
    rows = read_rows(given.rows, model=given.model, backend=given.backend, system=given.system)
    groups = rows.by_group()
    return Estimates(
        rows=rows,
        groups=groups,
        families=families(
            groups,
            configs=configs(given.model_config),
            python=given.catalogue_python,
            policy=policy,
        ),
    )


def families(
    groups: Mapping[Group, Sequence[Row]],
    *,
    configs: Mapping[str, Mapping[str, object]],
    python: str | None,
    policy: PlannerPolicy,
) -> Families:
    """Return step models for every group and tensor-parallel size that has rows.

    Args:
        groups: Rows by group.
        configs: `config.json` by model name, for models that the catalogue does not bring.
        python: Interpreter of the catalogue's environment, see ``ask``.
        policy: Constants.

    Raises:
        CommandError: The catalogue is not there.
    """
    wanted = [
        (group, size)
        for group, rows in groups.items()
        for size in sorted({row.tensor_parallel_size for row in rows})
    ]
    answers = ask([_query(group, size, configs) for group, size in wanted], python=python)
    found: dict[Group, dict[int, Estimated | str]] = {group: {} for group in groups}
    for (group, size), result in zip(wanted, answers.results, strict=True):
        found[group][size] = result
    return Families(
        package=answers.package,
        by_group={g: _family(g, results, policy=policy) for g, results in found.items()},
    )


def _query(group: Group, size: int, configs: Mapping[str, Mapping[str, object]]) -> CatalogueQuery:
    cache = "fp8" if (group.backend, group.precision) in _FP8_CACHE else "bf16"
    return CatalogueQuery(
        model=group.model,
        system=group.system,
        backend=group.backend,
        precision=group.precision,
        kv_precision=cache,
        tensor_parallel_size=size,
        config=configs.get(group.model),
    )


def _family(
    group: Group, results: Mapping[int, Estimated | str], *, policy: PlannerPolicy
) -> Family:
    models: dict[int, StepModel] = {}
    rooflines: dict[int, StepModel] = {}
    margins: dict[int, int] = {}
    profiling: dict[int, float] = {}
    refused: dict[int, str] = {}
    for size, result in results.items():
        if isinstance(result, str):
            refused[size] = result
            continue
        try:
            models[size] = model = fit(result.fingerprint, depth=result.depth)
        except FingerprintInvalidError as error:
            refused[size] = str(error)
            continue
        margins[size] = _margin(result, model, version=group.version, policy=policy)
        profiling[size] = profiling_ratio(model)
        peak = PEAKS.get(result.fingerprint.key.product)
        if peak is not None:
            fingerprint = gpu_roofline(
                result.architecture, key=result.fingerprint.key, peak=peak, policy=policy
            )
            rooflines[size] = fit(fingerprint, depth=result.depth)
    return Family(
        models=models, roofline=rooflines, margins=margins, profiling=profiling, refused=refused
    )


def _margin(result: Estimated, model: StepModel, *, version: str, policy: PlannerPolicy) -> int:
    widest = StepWork(tokens=TOKEN_BUDGET, sampled=1)
    confidence = assess(
        result.fingerprint,
        model,
        engine_version=version,
        extrapolated=model.extrapolates(widest),
        utilisation_permille=0,
        policy=policy,
    )
    return margin_permille(confidence.level, policy=policy)


def expected_ratio(fixed: float, layer: float, *, full: float) -> float:
    """Return a full model's step over those of its 1- and 2-layer versions: full/(2F + 3h)."""
    return full / (2 * fixed + 3 * layer)


def profiling_ratio(model: StepModel) -> float:
    """Return the full model's time over that of its 1- and 2-layer versions, one decode step each."""
    step = StepWork(tokens=1, sampled=1, batch=1, kv_tokens=512)
    shallow = replace(model, kinds=tuple(replace(kind, layers=1) for kind in model.kinds))
    fixed = model.fixed_us(step)
    layer = shallow.step_us(step) - fixed
    return expected_ratio(fixed, layer, full=model.step_us(step))

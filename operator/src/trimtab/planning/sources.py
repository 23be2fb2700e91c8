"""The step times of a configuration: which fingerprint serves it, corrected, slowed and staged.

A fleet's intents are of few families, so a plan finds each of its sources once (`Sources`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from trimtab.planning.anchors import Corrections
from trimtab.planning.architecture import Architecture, architecture_hash
from trimtab.planning.calibration import Correction
from trimtab.planning.curves import Curve
from trimtab.planning.fingerprint import Fingerprint, FingerprintInvalidError, FingerprintKey
from trimtab.planning.gpus import known_peak
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.roofline import roofline
from trimtab.planning.roofline_gpu import PEAKS, gpu_roofline
from trimtab.planning.slots import Nodes
from trimtab.planning.slowdown import slowdown, slowed
from trimtab.planning.snapshot import Config, EngineCapabilities, FleetSnapshot, ModelView
from trimtab.planning.step_model import StepModel, fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The step model of a configuration and where it comes from.

    ``correction`` is what live replicas say about it, and applied; None if they say nothing.
    """

    fingerprint: Fingerprint
    model: StepModel
    correction: Correction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """What is found about a configuration once per plan.

    Attributes:
        key: Of the fingerprint that would serve it best.
        source: What it is predicted from.
        name: How an option names that: the fingerprint's digest, or ``Roofline``.
    """

    key: FingerprintKey
    source: Source
    name: str


class Sources:
    """The sources of one plan; fingerprints and anchors are looked up by family, not searched."""

    def __init__(self, snapshot: FleetSnapshot, *, policy: PlannerPolicy) -> None:
        self._snapshot, self._policy = snapshot, policy
        self._families: dict[str, list[Fingerprint]] = {}
        for one in snapshot.fingerprints:
            self._families.setdefault(one.key.architecture, []).append(one)
        self._corrections = Corrections(snapshot.fingerprints, snapshot.anchors, policy=policy)
        self._found: dict[tuple[Architecture, int, Config, Nodes], Sourced] = {}

    def of(self, model: ModelView, config: Config, *, nodes: Nodes = ()) -> Sourced:
        """Return the best source for a configuration; the roofline where nothing usable is measured.

        Step times are of the GPUs that a replica gets, as far as scores tell: of those on ``nodes``
        where it runs, else of what a group may expect. With pipeline stages a step passes through all
        of them in turn, as the engine runs it.
        """
        asked = (model.architecture, model.depth, config, nodes)
        found = self._found.get(asked)
        if found is None:
            found = self._found[asked] = self._sourced(model, config, nodes)
        return found

    def known(self, model: ModelView, config: Config) -> Fingerprint | None:
        """Return what a configuration on GPUs is predicted from, None where nothing is known of it."""
        key = key_for(model, config, capabilities=self._snapshot.capabilities)
        found = best_for(key, self._families.get(key.architecture, ()))
        if found is None and known_peak(config):
            return _estimated(model.architecture, key, self._policy)
        return found

    def _sourced(self, model: ModelView, config: Config, nodes: Nodes) -> Sourced:
        key = key_for(model, config, capabilities=self._snapshot.capabilities)
        source = self._source(model, config, key, nodes)
        taken = source.fingerprint
        return Sourced(
            key=key,
            source=source,
            name="Roofline" if taken.source == "Roofline" else taken.key.digest(),
        )

    def _source(
        self, model: ModelView, config: Config, key: FingerprintKey, nodes: Nodes
    ) -> Source:
        slow = slowdown(config, self._snapshot.scores, nodes=nodes)
        policy = self._policy

        def source(fingerprint: Fingerprint) -> Source:
            known = self._corrections.of(fingerprint)
            fitted = slowed(_calibrated(fingerprint, model.depth, known), slow)
            return Source(
                fingerprint=fingerprint, model=_staged(fitted, config, policy), correction=known
            )

        found = best_for(key, self._families.get(key.architecture, ()))
        if found is not None:
            try:
                return source(found)
            except FingerprintInvalidError:
                # The operator refuses such documents when they arrive and says so; a plan goes on.
                pass
        return source(_estimated(model.architecture, key, policy))


def key_for(
    model: ModelView, config: Config, *, capabilities: EngineCapabilities
) -> FingerprintKey:
    """Return the key of the fingerprint that a configuration needs: of one of its stages."""
    return FingerprintKey(
        architecture=architecture_hash(model.architecture),
        product=config.product,
        cpu_model=config.cpu_model,
        threads=config.threads // config.pipeline_parallel_size,
        precision=config.precision,
        kv_precision=compute_precision(config.precision),
        tensor_parallel_size=config.tensor_parallel_size,
        engine=capabilities.engine,
        engine_version=capabilities.version,
        flags=tuple(sorted(capabilities.flags)),
    )


def best_for(key: FingerprintKey, fingerprints: Iterable[Fingerprint]) -> Fingerprint | None:
    """Return the fingerprint to use for a key, or None.

    Times of another engine, as a catalogue's or an imported profile's, or of another version serve
    until there are better ones (they lower the confidence), those of this engine first;
    one of another product, CPU model or thread count never does (AIBrix #507), nor one of shapes
    for a group that leaves its all-reduces out: on PCIe that is the largest single error.
    """
    order = {"Measured": 0, "Catalogue": 1, "Roofline": 2}
    fitting = [f for f in fingerprints if _serves(f.key, key) and _counts_exchange(f)]
    exact = [f for f in fitting if f.key == key] or fitting
    return min(
        exact,
        key=lambda f: (
            f.key.engine != key.engine,
            order[f.source],
            _newest(f.taken),
            f.key.digest(),
        ),
        default=None,
    )


def find_source(
    model: ModelView, config: Config, *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> Source:
    """Return what `Sources.of` finds, for one question alone."""
    return Sources(snapshot, policy=policy).of(model, config).source


def _staged(model: StepModel, config: Config, policy: PlannerPolicy) -> StepModel:
    """Return the step model of a pipeline: every boundary is crossed once, and the logits come back."""
    stages = config.pipeline_parallel_size
    if stages == 1:
        return model
    each = policy.cpu_stage_us if config.product == "cpu" else policy.gpu_stage_us
    fixed = model.fixed
    return replace(model, fixed=Curve(fixed.xs, tuple(y + stages * each for y in fixed.ys)))


@lru_cache(maxsize=2048)
def _fitted(fingerprint: Fingerprint, depth: int) -> StepModel:
    """Return `fit` once per document and depth: every plan asks for it.

    Raises:
        FingerprintInvalidError: From `fit`.
    """
    return fit(fingerprint, depth=depth)


def _calibrated(fingerprint: Fingerprint, depth: int, correction: Correction | None) -> StepModel:
    """Return the fitted model, corrected where live replicas say something.

    Raises:
        FingerprintInvalidError: From `fit`.
    """
    model = _fitted(fingerprint, depth)
    if correction is None:
        return model
    return correction.apply(model, tensor_parallel_size=fingerprint.key.tensor_parallel_size)


@lru_cache(maxsize=2048)
def _estimated(
    architecture: Architecture, key: FingerprintKey, policy: PlannerPolicy
) -> Fingerprint:
    if key.product == "cpu":
        return roofline(architecture, key=key, policy=policy)
    # What runs on a product that is no longer known is judged as the slowest that is.
    slowest = min(PEAKS.values(), key=lambda peak: peak.bytes_per_us)
    return gpu_roofline(architecture, key=key, peak=PEAKS.get(key.product, slowest), policy=policy)


def _serves(have: FingerprintKey, want: FingerprintKey) -> bool:
    if (have.architecture, have.cpu_model, have.threads, have.product) != (
        want.architecture,
        want.cpu_model,
        want.threads,
        want.product,
    ):
        return False
    return _of_any_engine(have) == _of_any_engine(want)


def _of_any_engine(key: FingerprintKey) -> FingerprintKey:
    return replace(key, engine="", engine_version="", flags=())


def _counts_exchange(fingerprint: Fingerprint) -> bool:
    return (
        fingerprint.tp_mode == "Real"
        or fingerprint.key.tensor_parallel_size == 1
        or bool(fingerprint.collective)
    )


def _newest(taken: str) -> tuple[int, ...]:
    """Return a sort key that puts the latest RFC 3339 time first."""
    return tuple(-ord(c) for c in taken)

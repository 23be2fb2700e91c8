"""Which fingerprints plans can rest on; what none uses for 30 days is deleted (planner.md §4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trimtab.planning.architecture import architecture_hash
from trimtab.planning.sources import best_for

if TYPE_CHECKING:
    from trimtab.planning.fingerprint import Fingerprint, FingerprintKey
    from trimtab.planning.snapshot import Config, FleetSnapshot

_Place = tuple[str, str, int, str, int]
"""Product, CPU model, threads, precision and tensor-parallel size."""


def in_use(snapshot: FleetSnapshot) -> frozenset[str]:
    """Return the digests of the keys of all fingerprints that a plan may rest on now.

    A fingerprint is in use while an intent's model has its shapes, the fleet has its product (on
    ``cpu`` its CPU model) or something still runs on that, and no other document answers the same
    question better, such as one of the present engine. What runs without a known model, as where
    its inspection fails, may have the shapes of any fingerprint of its configuration.
    """
    known = {v.uid: architecture_hash(v.model.architecture) for v in snapshot.intents if v.model}
    running = {_place(a.config) for a in snapshot.assignments if a.intent_uid not in known}
    families = set(known.values())
    families |= {
        f.key.architecture for f in snapshot.fingerprints if _measured_at(f.key) in running
    }
    here = {("cpu", pool.cpu_model) for pool in snapshot.pools}
    here |= {(pool.product, "") for pool in snapshot.gpu_pools}
    here |= {(a.config.product, a.config.cpu_model) for a in snapshot.assignments}
    engine = snapshot.capabilities
    asked: dict[FingerprintKey, list[Fingerprint]] = {}
    for one in snapshot.fingerprints:
        key = one.key
        if key.architecture in families and (key.product, key.cpu_model) in here:
            question = replace(
                key,
                engine=engine.engine,
                engine_version=engine.version,
                flags=tuple(sorted(engine.flags)),
            )
            asked.setdefault(question, []).append(one)
    best = (best_for(question, answers) for question, answers in asked.items())
    return frozenset(one.key.digest() for one in best if one is not None)


def _place(config: Config) -> _Place:
    return (
        config.product,
        config.cpu_model,
        config.threads // config.pipeline_parallel_size,
        config.precision,
        config.tensor_parallel_size,
    )


def _measured_at(key: FingerprintKey) -> _Place:
    return (key.product, key.cpu_model, key.threads, key.precision, key.tensor_parallel_size)

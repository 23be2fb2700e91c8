"""Which fingerprints plans can rest on; what none uses for 30 days is deleted (planner.md §4)."""

from dataclasses import replace
from typing import TYPE_CHECKING

from trimtab.planning.architecture import architecture_hash
from trimtab.planning.snapshot import FleetSnapshot
from trimtab.planning.sources import best_for

if TYPE_CHECKING:
    from trimtab.planning.fingerprint import Fingerprint, FingerprintKey


def in_use(snapshot: FleetSnapshot) -> frozenset[str]:
    """Return the digests of the keys of all fingerprints that a plan may rest on now.

    A fingerprint is in use while an intent's model has its shapes, the fleet has its product (on
    ``cpu`` its CPU model) or something still runs on that, and no other document answers the same
    question better, such as one of the present engine.
    """
    families = {architecture_hash(v.model.architecture) for v in snapshot.intents if v.model}
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

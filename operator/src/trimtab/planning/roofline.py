"""Step times from peak compute and bandwidth alone, so that a plan exists before a measurement.

Last resort (planner.md §4): speed of light is about twice too optimistic, yet ranks options well,
hence a utilisation of one half and confidence Low.
"""

from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import Fingerprint, FingerprintKey, StepPoint
from trimtab.planning.memory import layer_bytes
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import value_bytes

_DECODE = tuple((b, c) for b in (1, 2, 4, 8, 16, 32) for c in (64, 1024, 8192))
_PREFILL = ((32, 0), (128, 0), (512, 0), (128, 512), (512, 4096))


def roofline(
    architecture: Architecture, *, key: FingerprintKey, policy: PlannerPolicy
) -> Fingerprint:
    """Return an estimated fingerprint for a key of product ``cpu``."""
    decode = [
        _point(architecture, key, policy, batch=batch, context=context)
        for batch, context in _DECODE
    ]
    prefill = [
        _point(architecture, key, policy, chunk=chunk, cached=cached) for chunk, cached in _PREFILL
    ]
    return Fingerprint(
        key=key,
        source="Roofline",
        depths=(1, 2),
        decode=tuple(decode),
        prefill=tuple(prefill),
    )


def _point(
    architecture: Architecture,
    key: FingerprintKey,
    policy: PlannerPolicy,
    *,
    batch: int = 0,
    context: int = 0,
    chunk: int = 0,
    cached: int = 0,
) -> StepPoint:
    tokens = batch + chunk
    sampled = batch + (1 if chunk else 0)
    work = batch * context + chunk * (cached + chunk / 2)
    kv_read = batch * context + (cached + chunk if chunk else 0)
    layer = _bound_us(
        flops=2 * architecture.layer_parameters() * tokens
        + 4 * architecture.attention_heads * architecture.head_dim * work,
        moved=layer_bytes(architecture, precision=key.precision)
        + kv_read * architecture.kv_values_per_token() * value_bytes(key.kv_precision),
        threads=key.threads,
        policy=policy,
    )
    table = architecture.vocab_size * architecture.hidden_size
    head = _bound_us(
        flops=2 * table * sampled,
        moved=table * value_bytes(key.precision),
        threads=key.threads,
        policy=policy,
    )
    fixed = policy.roofline_step_us + head
    return StepPoint(
        batch=batch,
        context=context,
        chunk=chunk,
        cached=cached,
        t1_us=max(1, round(fixed + layer)),
        mad1_us=0,
        t2_us=max(2, round(fixed + 2 * layer)),
        mad2_us=0,
        repeats=1,
    )


def _bound_us(*, flops: float, moved: float, threads: int, policy: PlannerPolicy) -> float:
    """Return the time of work bound by compute or by memory, µs."""
    bandwidth = min(threads * policy.roofline_thread_bytes_per_us, policy.roofline_cpu_bytes_per_us)
    limit = max(flops / (threads * policy.roofline_thread_mflops), moved / bandwidth)
    return limit * 1000 / policy.roofline_utilisation_permille

"""What a plan is made for: rate and lengths, declared, observed or assumed."""

from dataclasses import dataclass

from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLoad:
    """The load of one intent.

    Attributes:
        rate: Requests per second over all replicas; 0 means one request in flight at a time.
        prompt: Mean uncached prompt tokens.
        output: Mean output tokens, at least 1.
        assumed: Nothing was declared or observed (``LoadAssumed``).
    """

    rate: float
    prompt: int
    output: int
    assumed: bool


def planned_load(load: Load | None, *, context_length: int, policy: PlannerPolicy) -> PlannedLoad:
    """Return what to plan for; without a declared rate, one request in flight.

    Assumed lengths are cut to the model's context, prompt and output in proportion.
    """
    if load is not None and load.requests_per_second > 0:
        return PlannedLoad(
            rate=load.requests_per_second,
            prompt=load.prompt_tokens,
            output=load.output_tokens,
            assumed=False,
        )
    if load is not None:
        return PlannedLoad(
            rate=0.0, prompt=load.prompt_tokens, output=load.output_tokens, assumed=True
        )
    prompt, output = policy.assumed_prompt_tokens, policy.assumed_output_tokens
    if prompt + output > context_length:
        output = max(1, context_length * output // (prompt + output))
        prompt = max(1, context_length - output)
    return PlannedLoad(rate=0.0, prompt=prompt, output=output, assumed=True)

"""What was decided about an `InferenceIntent`, and what came of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from trimtab.api.v1alpha1.base import (
    ATOMIC,
    ApiModel,
    Bytes,
    Conditions,
    Count,
    Decimals,
    DNSName,
    Money,
    ObservedGeneration,
    PerMille,
    Product,
    Sentence,
    SignedPercent,
    Text,
    Time,
    Word,
)
from trimtab.api.v1alpha1.inferenceintent_spec import Precision  # noqa: TC001 - pydantic reads it


class Prediction(ApiModel):
    """Predicted or observed figures; milliseconds and rates as decimal strings, 2 or 3 digits."""

    percentile: Annotated[int, Field(ge=0, le=99)] | None = None
    """percentile that the latencies stand for; absent: means."""
    time_to_first_token_milliseconds: Decimals | None = None
    """timeToFirstTokenMilliseconds is the time from request to first token."""
    time_per_output_token_milliseconds: Decimals | None = None
    """timePerOutputTokenMilliseconds is the mean time between a request's tokens."""
    end_to_end_milliseconds: Decimals | None = None
    """endToEndMilliseconds is the time of a whole request."""
    capacity_requests_per_second: Decimals | None = None
    """capacityRequestsPerSecond is the largest rate that all replicas together sustain."""
    output_tokens_per_second: Decimals | None = None
    """outputTokensPerSecond is the rate of output tokens at the planned load."""
    cost_per_million_output_tokens: Money | None = None
    """costPerMillionOutputTokens is the cost at the planned load."""
    cost_per_million_output_tokens_at_capacity: Money | None = None
    """costPerMillionOutputTokensAtCapacity is the cost when fully used."""


class Margin(ApiModel):
    """How much a prediction may be wrong before a target is missed."""

    time_to_first_token_percent: Annotated[int, Field(ge=0, le=1000)] | None = None
    """timeToFirstTokenPercent is added to the predicted time to first token."""
    time_per_output_token_percent: Annotated[int, Field(ge=0, le=1000)] | None = None
    """timePerOutputTokenPercent is added to the predicted time per output token."""


class Anchors(ApiModel):
    """What live replicas said about the estimate: windows of steps that only decoded."""

    count: Annotated[int, Field(ge=0, le=1_000_000)]
    """count of windows, the newest 64 of each fingerprint."""
    factor: Decimals
    """factor by which predicted step times were multiplied."""
    verdict: Literal["Good", "Few", "Suspect"]
    """verdict is Good (many, spread, and each foretold by the others), Few, or Suspect (off by more than a factor of two: not applied)."""


class Confidence(ApiModel):
    """How sure the prediction is, and why."""

    level: Literal["High", "Medium", "Low"]
    """level is High, Medium or Low."""
    source: Literal["Measured", "Catalogue", "Roofline"] | None = None
    """source of the estimate."""
    reasons: Annotated[tuple[Text, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """reasons for the level, one sentence each."""
    fingerprint: DNSName | None = None
    """fingerprint is the ConfigMap of the system namespace that the estimate rests on."""
    anchors: Anchors | None = None
    """anchors are what live replicas said about it."""


class LentUnits(ApiModel):
    """How much of one model's weights is lent while it is idle."""

    model: Text
    """model is the public name: namespace/name."""
    units: Count
    """units are layers, or groups of small layers that lie in one slab."""


class GroupMember(ApiModel):
    """One model of a sharing group's worker."""

    model: Text
    """model is the public name: namespace/name."""
    state: Word
    """state in the worker: Loading, Resident, Lent, Waking, Draining or Failed."""
    reason: Word | None = None
    """reason of a failure."""


class Remap(ApiModel):
    """Whether weight memory is lent to the KV cache under pressure."""

    verdict: Literal["DoNotRemap", "IdleOnly", "IdleAndActive"]
    """verdict of the hidden-bound formula."""
    reasons: Annotated[tuple[Text, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """reasons for the verdict, and why nothing is shared where that is so."""
    lend_units: Annotated[
        tuple[LentUnits, ...], Field(max_length=16, json_schema_extra=ATOMIC)
    ] = ()
    """lendUnits is what idle models give."""
    switch_milliseconds: Decimals | None = None
    """switchMilliseconds is how long reading a lent model again takes."""
    kv_tokens_before: Count | None = None
    """kvTokensBefore is how many tokens the worker's KV cache holds while all weights stay, for the model with the largest KV per token."""
    kv_tokens_after: Count | None = None
    """kvTokensAfter is how many it holds with all that is lent."""
    source: Literal["Engine"] | None = None
    """source is Engine where a running worker gave the verdict; absent: the planner."""


class PlannedLoad(ApiModel):
    """The load that the plan was made for."""

    source: Literal["Declared", "Observed", "Assumed"]
    """source says where the load is from."""
    requests_per_second: Decimals | None = None
    """requestsPerSecond is the mean arrival rate."""
    prompt_tokens: Count | None = None
    """promptTokens is the mean length of a prompt."""
    output_tokens: Count | None = None
    """outputTokens is the mean length of an answer."""
    gap_variation: Decimals | None = None
    """gapVariation is the coefficient of variation of the gaps between requests, from 0.5 to 4; absent while 1, as of Poisson arrivals, is assumed of it and of both lengths."""
    prompt_variation: Decimals | None = None
    """promptVariation is the coefficient of variation of the lengths of prompts."""
    output_variation: Decimals | None = None
    """outputVariation is the coefficient of variation of the lengths of answers."""


class Configuration(ApiModel):
    """One deployment option."""

    product: Product
    """product is the device product, or cpu."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """tensorParallelSize is the number of devices that share each layer."""
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """pipelineParallelSize is the number of stages."""
    precision: Precision
    """precision of the weights."""
    threads_per_replica: Annotated[int, Field(ge=1, le=4096)] | None = None
    """threadsPerReplica is set on product cpu."""
    replicas: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """replicas is the number of groups that serve; absent where the option cannot run."""
    cost_per_hour: Money | None = None
    """costPerHour is the cost of the reserved devices; absent without a price."""
    predicted: Prediction | None = None
    """predicted figures at the planned load, without the margin."""
    margin: Margin | None = None
    """margin that the predictions were judged with."""
    confidence: Confidence | None = None
    """confidence in the prediction."""
    accuracy_loss_percent: SignedPercent | None = None
    """accuracyLossPercent is by how much the perplexity of a fixed text was measured to be higher than at the checkpoint's own precision; absent where that is not measured."""
    accuracy_loss_error_percent: SignedPercent | None = None
    """accuracyLossErrorPercent is the standard error of accuracyLossPercent: below two of it, a loss is noise."""
    reason: Word | None = None
    """reason why this option was chosen, or why it lost."""
    message: Sentence | None = None
    """message says the reason in a sentence."""


class PlanStatus(Configuration):
    """The chosen option."""

    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$", max_length=64)] | None = (
        None
    )
    """digest of what decides a roll-out; pods carry it."""
    group: Annotated[str, StringConstraints(max_length=128)] | None = None
    """group is the sharing group's id; absent for a worker of its own."""
    members: Annotated[tuple[GroupMember, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """members are the models of the group's worker, as it last said."""
    load: PlannedLoad | None = None
    """load that was planned for."""
    binding: Word | None = None
    """binding is what decided between this option and a cheaper or faster one."""
    notes: Annotated[tuple[Text, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """notes are further sentences: dated prices, assumptions, extrapolation."""
    remap: Remap | None = None
    """remap is the verdict on lending weight memory."""


class Observed(Prediction):
    """What the gateway saw, two significant digits, written at most once a minute."""

    requests_per_second: Decimals | None = None
    """requestsPerSecond is the mean arrival rate."""
    prompt_tokens: Count | None = None
    """promptTokens is the mean length of a prompt."""
    output_tokens: Count | None = None
    """outputTokens is the mean length of an answer."""
    error_permille: PerMille | None = None
    """errorPermille is the share of requests that failed."""
    last_observation_time: Time | None = None
    """lastObservationTime is when these figures last changed."""


class InspectedModel(ApiModel):
    """What the inspection Job found."""

    name: Text | None = None
    """name under which the model is served: namespace/name."""
    family: Text | None = None
    """family of the architecture."""
    precision: Precision | None = None
    """precision is the checkpoint's own."""
    quantization: Text | None = None
    """quantization of the checkpoint's file, if any."""
    parameters: Bytes | None = None
    """parameters is their number."""
    weight_bytes: Bytes | None = None
    """weightBytes is the weights' size in the checkpoint's own precision."""
    context_length: Count | None = None
    """contextLength is the largest number of tokens."""
    depth: Count | None = None
    """depth is the number of hidden layers."""


class InferenceIntentStatus(ApiModel):
    """What was decided and seen."""

    conditions: Conditions = ()
    """conditions say what holds; Ready copies the first gating one that is not True."""
    observed_generation: ObservedGeneration | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    endpoint: Text | None = None
    """endpoint is the OpenAI base URL that serves the model."""
    model: InspectedModel | None = None
    """model is what the inspection found."""
    plan: PlanStatus | None = None
    """plan is the chosen option."""
    alternatives: Annotated[
        tuple[Configuration, ...], Field(max_length=8, json_schema_extra=ATOMIC)
    ] = ()
    """alternatives are the best others, and why each lost."""
    ready_replicas: Count | None = None
    """readyReplicas is the number of replicas that answer."""
    observed: Observed | None = None
    """observed is what the gateway saw."""

"""Every constant of the planner, with its unit and origin, in one frozen value."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerPolicy:
    """Constants of planner.md; a plan names the policy's digest."""

    # §7: predicted·(1 + margin) ≤ target; per mille, by confidence. 20 % removes nearly all
    # violations on public measurements; the lower steps are a decision.
    margin_high_permille: int = 100
    margin_medium_permille: int = 150
    margin_low_permille: int = 200
    margin_ttft_unanchored_permille: int = 200
    # §7: relative residual of the step model above which the confidence drops; per mille.
    residual_limit_permille: int = 50
    # §7: above this share of the capacity the closed form, without a simulation of the queue, costs
    # one level; below it, it is within about 10 % of a simulation step by step. Per mille, decision.
    screened_utilisation_permille: int = 300
    # §6: options of an intent whose queue is simulated, requests of a trace, and events (steps and
    # jumps) that the simulations of one intent and of one plan may take. Counts. Above the last
    # figure a trace is a queue that grows for as long as it is followed; per mille of the capacity.
    short_list: int = 3
    simulated_requests: int = 256
    intent_events: int = 4_000
    plan_events: int = 100_000
    simulated_utilisation_permille: int = 950
    # §7, anchors: steps that one must hold, and how many of the newest are kept per key. Counts.
    anchor_steps: int = 200
    kept_anchors: int = 64
    # §7: what makes anchors good: their count, the ratio of their batches, and the median error of
    # each under the others' correction, per mille.
    good_anchors: int = 4
    good_anchor_spread: int = 4
    good_anchor_error_permille: int = 50
    # §7: share of the nearest size's correction outside the anchored tensor-parallel sizes, per
    # mille. Decision: anchors at one size say something about its neighbours, not all.
    beyond_anchored_permille: int = 500
    # §8, MinLatency: within 2 % of the best the cheaper option wins; a replica that gains less
    # than 2 % is not added. Per mille, decision.
    latency_tie_permille: int = 20
    # §8, MinCost: capacity ≥ 1.15 · rate, p95 E2E ≤ 3 * unloaded: cheap is not unusable. Decision.
    headroom_permille: int = 1150
    usable_slowdown_permille: int = 3000
    # §8: one request in flight of 1,024 + 256 tokens where no load is declared. Tokens, decision.
    assumed_prompt_tokens: int = 1024
    assumed_output_tokens: int = 256
    # §8: at most this many options per intent survive pruning, and this many alternatives are
    # shown. Counts, decision.
    kept_options: int = 12
    shown_alternatives: int = 5
    # Most replicas considered where the intent pins none. Count, decision.
    most_replicas: int = 64
    # §5, memory: reserve beyond what is accounted for, per mille of the total. Decision.
    memory_reserve_permille: int = 20
    # §5: what an unmeasured model needs beside weights and KV: 2.3 GiB + 5 % of weights on GPUs
    # (KAITO). A CPU worker holds no CUDA context: interpreter, torch and buffers instead; bytes,
    # estimated until memory rows of a fingerprint replace it.
    unmeasured_overhead_bytes: int = 450 * 2**20
    unmeasured_weight_overhead_permille: int = 50
    # A replica's KV arena on CPU holds the steady state times this, at least one longest request.
    # Per mille, decision.
    kv_headroom_permille: int = 1500
    # Longest request planned for, in multiples of the mean prompt + output; p99 of a lognormal of
    # CV 1 is 4.6 times its mean. Per mille, derived.
    longest_request_permille: int = 4600
    # A replica serves at least this prompt + output, if the model does. Tokens, decision.
    least_model_len: int = 2048
    # §9: switching cost in units of loss and the seconds of a reconfiguration until measured.
    switching_cost_permille: int = 50
    reconfiguration_seconds: int = 120
    reconfiguration_scale_seconds: int = 1800
    # §9, joints.md §14: time of the solver, ms; absolute gap of its losses, per mille; swaps of the
    # greedy, count.
    solver_milliseconds: int = 3_000
    loss_gap_permille: int = 50
    improving_swaps: int = 1_000
    # §4: fingerprints asked for at a time per intent. Count.
    measured_at_once: int = 4
    # §4, roofline: utilisation of peak compute and bandwidth, from the ~2* optimism of speed of
    # light. Per mille.
    roofline_utilisation_permille: int = 500
    # Roofline of one CPU thread until measured. A current server core with AVX-512: GFLOP/s in
    # fp32 and MB/s of memory; conservative round numbers, decision.
    roofline_thread_mflops: int = 50_000
    roofline_thread_bytes_per_us: int = 12_000
    roofline_cpu_bytes_per_us: int = 40_000
    # Fixed cost of a step on CPU until measured: Python, scheduler, sampling. µs, decision.
    roofline_step_us: int = 1_000
    # Threads per replica tried on CPU. Counts, decision.
    thread_counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    # Limits of the engine's scheduler on CPU that the planner sets in the model set: tokens per
    # step and sequences.
    cpu_max_batch_tokens: int = 512
    cpu_max_sequences: int = 32

    # Limits of the engine's scheduler on GPUs that the planner sets: tokens per step (vLLM's on large
    # GPUs) and sequences.
    gpu_max_batch_tokens: int = 8192
    gpu_max_sequences: int = 256
    # §5: share of a GPU's memory that the engine takes (vLLM from 0.22 on), per mille; what an
    # unmeasured model needs beside weights and KV on a GPU, with 5 % of the weights (KAITO); bytes.
    gpu_memory_permille: int = 920
    unmeasured_gpu_bytes: int = 2_469_606_195
    # Host memory of one rank beside its weights: interpreter, torch, CUDA; bytes, decision.
    gpu_rank_host_bytes: int = 3 * 2**30
    # Handing a step on to the next pipeline stage and back, per stage boundary, µs: loopback on CPU,
    # a peer copy on GPUs. Decision, until measured.
    cpu_stage_us: int = 1_000
    gpu_stage_us: int = 100

    # §9, sharing. Planned rates of a group's members ÷ their capacities alone, summed; a member of a
    # running group stays up to the second figure, so that a little load more moves nobody. Per
    # mille, §9 and decision.
    shared_utilisation_permille: int = 700
    kept_utilisation_permille: int = 850
    shared_members: int = 4
    # Weight slabs of a group may waste this share (joints.md §6). Per mille.
    shared_waste_permille: int = 100
    # Rate at which a CPU worker reads lent weights again from the page cache, bytes/µs; decision,
    # below what one core copies.
    cpu_reload_bytes_per_us: int = 4_000

    # §9, re-planning. A load is outside its band below 0.6 times the planned one for 5 min, or
    # above 1.2 times it for 1 min; per mille and seconds.
    load_low_permille: int = 600
    load_high_permille: int = 1200
    load_low_seconds: int = 300
    load_high_seconds: int = 60
    # A slower rise is seen over these windows too, as soon as it stands out of the noise. Decision.
    load_rise_seconds: tuple[int, ...] = (60, 300, 1800)
    # How many standard deviations of the count a load must lie outside its band; thousandths. Three
    # keep Poisson arrivals at the planned rate from asking for plans (decision).
    load_sigma_milli: int = 3000
    # What gaps and lengths vary by is planned anew when it differs by this factor and by as many
    # standard errors as a load does. Per mille, decision.
    variation_moved_permille: int = 1250
    # Observed load replaces declared and assumed load after so many requests or seconds (§8).
    observed_requests: int = 200
    observed_seconds: int = 600
    # The busy load that scale-down is judged at: this percentile of the rates of 5 min within 30 min.
    busy_window_seconds: int = 1800
    busy_rate_seconds: int = 300
    busy_percentile: int = 95
    # A target is missed, or a scale-down fits, for so long before it counts. Seconds.
    missed_seconds: int = 300
    spare_seconds: int = 600
    # What scale-down adds to the margin, per mille.
    spare_margin_permille: int = 100
    # Drift of anchors: more than this (or the margin) in so many windows in a row. Per mille, count.
    drift_permille: int = 100
    drift_windows: int = 3
    # Changes of one plan are gathered until it is quiet, at most the second figure. Seconds.
    debounce_seconds: int = 2
    debounce_most_seconds: int = 10
    # At most one change per intent in this time, with exceptions. Seconds, decision.
    dwell_seconds: int = 600
    # A change that is not over after this time no longer holds up the next. Seconds, decision.
    change_seconds: int = 1200
    # Replicas move by at most this share, at least by one (Dynamo PR #14296). Per mille.
    step_permille: int = 250
    # At most this share of a product's devices, or one intent's change, in transition. Per mille.
    transition_permille: int = 100

    def hurried(self, divisor: float) -> "PlannerPolicy":
        """Return the policy with the times of re-planning divided, at least a second: for tests."""

        def fast(seconds: int) -> int:
            return max(1, round(seconds / divisor))

        return dataclasses.replace(
            self,
            load_low_seconds=fast(self.load_low_seconds),
            load_high_seconds=fast(self.load_high_seconds),
            load_rise_seconds=tuple(fast(s) for s in self.load_rise_seconds),
            observed_seconds=fast(self.observed_seconds),
            busy_window_seconds=fast(self.busy_window_seconds),
            busy_rate_seconds=fast(self.busy_rate_seconds),
            missed_seconds=fast(self.missed_seconds),
            spare_seconds=fast(self.spare_seconds),
            dwell_seconds=fast(self.dwell_seconds),
            change_seconds=fast(self.change_seconds),
        )

    def digest(self) -> str:
        """Return 16 hex digits over every constant."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

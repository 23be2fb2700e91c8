"""One replica of one step model, asked about one load at a time."""

from dataclasses import dataclass

import numpy as np

from trimtab.planning.steady import ReplicaKind, Replicas, States

WHICH = np.array([0])


@dataclass(frozen=True)
class State:
    """One row of `States`."""

    row: States

    @property
    def step_us(self):
        return float(self.row.step_us[0])

    @property
    def running(self):
        return float(self.row.running[0])

    @property
    def seen(self):
        return self.row.seen[0].tolist()

    def others(self, quantile):
        return float(self.row.others([quantile])[0, 0])


class OneReplica:
    """A row of `Replicas` as a thing of its own."""

    def __init__(self, model, *, prompt, output, budget=512, slots=32, kv_tokens=1_000_000):
        self.all = Replicas(
            [
                ReplicaKind(
                    model=model,
                    prompt=prompt,
                    output=output,
                    token_budget=budget,
                    max_sequences=slots,
                )
            ]
        )
        self._slots = self.all.slots(
            WHICH, kv_tokens=np.array([kv_tokens]), sequences=np.array([slots])
        )
        self.slots = int(self._slots[0])

    def capacity(self):
        return float(self.all.capacity(WHICH, self._slots)[0])

    def unloaded_us(self):
        return float(self.all.unloaded_us[0])

    def decode_us(self, others):
        return float(self.all.decode_us[0, others + 1])

    def service_us(self, others):
        return float(self.all.service_us[0, others])

    def max_running(self, target_us):
        return self.all.max_running(0, target_us)

    def steady(self, rate):
        return State(self.all.steady(WHICH, slots=self._slots, rate=np.array([rate])))

    def ttft_us(self, state, *, quantile):
        return float(self.all.waits(state.row).exceeded([1 - quantile])[0, 0])

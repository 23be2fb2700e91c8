"""From logits to tokens. Noise is keyed by (seed, position), so recomputation repeats it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from trimtab_workers.engine.sequence import Sequence

_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; log-probabilities are of the raw logits, as vLLM reports them."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class NanLogitsError(RuntimeError):
    """The forward pass gave NaN; nothing can be sampled."""


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on the seed and the token's position alone."""
    digest = hashlib.blake2b(b"%d:%d" % (seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(logits: torch.Tensor, sequences: Items[Sequence]) -> list[Sampled]:
    """Choose the next token of each sequence.

    Args:
        logits: float32, shape [sequences, vocab]; may be overwritten.
        sequences: In the order of the rows.

    Raises:
        NanLogitsError: A row has NaN.
    """
    best, ids = logits.max(dim=-1)
    if bool(torch.isnan(best).any()):
        raise NanLogitsError("the model's logits are NaN")
    if all(sequence.params.plain_greedy for sequence in sequences):
        return [Sampled(token) for token in ids.tolist()]
    return [_sample_row(row, sequence) for row, sequence in zip(logits, sequences, strict=True)]


def _sample_row(row: torch.Tensor, sequence: Sequence) -> Sampled:
    params = sequence.params
    raw = row.clone() if params.logprobs is not None else None
    _adjust(row, sequence)
    token = int(row.argmax()) if params.greedy else _draw(row, sequence)
    if raw is None or params.logprobs is None:
        return Sampled(token)
    logprobs = raw.log_softmax(-1)
    values, ids = logprobs.topk(min(params.logprobs, len(row)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Sampled(token, float(logprobs[token]), top)


def _adjust(row: torch.Tensor, sequence: Sequence) -> None:
    """Apply penalties and biases in place: repetition over all tokens, the others over output."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)))
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        output = sequence.tokens[sequence.prompt_length :]
        if output:
            tally = Counter(output)
            ids, counts = torch.tensor(list(tally)), torch.tensor(list(tally.values()))
            row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias))
        row[ids] += torch.tensor(list(params.logit_bias.values()))


def _draw(row: torch.Tensor, sequence: Sequence) -> int:
    params = sequence.params
    noise = uniform(sequence.seed, len(sequence.tokens))
    probabilities = (row / params.temperature).softmax(-1)
    if params.top_k <= 0 and params.top_p >= 1.0 and params.min_p <= 0.0:
        return _invert(probabilities.double().cumsum(0), noise)
    values, ids = _most_likely(probabilities, params.top_k, params.top_p, params.min_p)
    cumulative = values.double().cumsum(0)
    keep = cumulative - values < params.top_p * float(cumulative[-1] if params.top_k > 0 else 1.0)
    keep &= values >= params.min_p * values[0]
    kept = cumulative[: max(1, int(keep.sum()))]
    return int(ids[_invert(kept, noise)])


def _most_likely(
    probabilities: torch.Tensor, top_k: int, top_p: float, min_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return candidates, most likely first: enough for top_k, top_p and min_p together."""
    vocab = len(probabilities)
    if top_k > 0:
        return probabilities.topk(min(top_k, vocab))
    values, ids = probabilities.topk(min(_CANDIDATES, vocab))
    enough = float(values.double().sum()) >= top_p or float(values[-1]) < min_p * float(values[0])
    return (values, ids) if enough else probabilities.sort(descending=True, stable=True)


def _invert(cumulative: torch.Tensor, noise: float) -> int:
    """Return the first index whose cumulative weight exceeds noise times the total."""
    target = noise * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, target, right=True))
    return min(index, len(cumulative) - 1)

"""How well a model foretells a text at a precision, computed by the engine as it serves.

The text is cut into windows of up to 512 tokens; within one, every token but the first is foretold
from those before it. Two precisions are compared token by token: their errors meet the same text, so
the difference is known far better than either perplexity. Its standard error comes from the means of
blocks of 32 tokens, because neighbours are not independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trimtab_workers.engine.config import EngineConfig, ModelSpec, dtype_of
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import EngineError
from trimtab_workers.engine.runner import ModelRunner
from trimtab_workers.engine.scheduler import Row, StepPlan
from trimtab_workers.engine.sequence import Sequence as RunningSequence
from trimtab_workers.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODEL = "scored"
WINDOW = 512
BLOCK_TOKENS = 32
# Logits of a whole window would be hundreds of megabytes with a large vocabulary.
_ROWS = 64


class ScoringError(EngineError):
    """A model's scores are no numbers; nothing can be said about its accuracy."""

    code = "scoring_failed"


@dataclass(frozen=True, slots=True)
class Scores:
    """A text as one precision foretells it.

    Attributes:
        nats: -ln p of every token that was foretold, float64, shape [tokens].
        likeliest: The most likely token at each of these places.
    """

    nats: torch.Tensor
    likeliest: torch.Tensor

    @property
    def mean_nats(self) -> float:
        """Mean of -ln p: the logarithm of the perplexity."""
        return float(self.nats.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What one precision foretells worse than another.

    Attributes:
        nats: Mean difference of -ln p of a token; negative if it foretells better.
        error_nats: Standard error of that mean.
        agreement: Share of places with the same most likely token.
    """

    nats: float
    error_nats: float
    agreement: float

    @property
    def percent(self) -> float:
        """By how much the perplexity is higher."""
        return 100 * math.expm1(self.nats)

    @property
    def error_percent(self) -> float:
        """Standard error of ``percent``."""
        return 100 * math.exp(self.nats) * self.error_nats


def difference(other: Scores, own: Scores) -> Difference:
    """Compare two precisions of one model on one text, token by token."""
    apart = other.nats - own.nats
    return Difference(
        nats=float(apart.mean()),
        error_nats=standard_error(apart),
        agreement=float((other.likeliest == own.likeliest).double().mean()),
    )


def standard_error(values: torch.Tensor, *, block: int = BLOCK_TOKENS) -> float:
    """Return the standard error of a mean of values whose neighbours are not independent.

    Args:
        values: Shape [n], in order.
        block: Values whose mean counts as one; fewer than two blocks count singly.
    """
    whole = len(values) // block
    means = values[: whole * block].view(whole, block).mean(dim=1) if whole > 1 else values
    return float(means.std() / math.sqrt(len(means))) if len(means) > 1 else 0.0


def load(path: Path, *, precision: str, threads: int) -> Engine:
    """Return an engine that has loaded one model for scoring.

    Raises:
        EngineError: It cannot be loaded; says why.
    """
    spec = ModelSpec(name=MODEL, path=path, dtype=dtype_of(precision, where="--precision"))
    engine = Engine(
        EngineConfig(
            models=(spec,),
            threads=threads,
            max_model_len=WINDOW,
            max_batch_tokens=WINDOW,
            max_seqs=2,
            prefix_caching=False,
        )
    )
    engine.load()
    problem = engine.tenant(MODEL).error
    if problem is not None:
        raise problem
    return engine


def score(engine: Engine, text: str) -> Scores:
    """Foretell a text.

    Raises:
        ScoringError: A log-probability is no number.
    """
    tokens = engine.tokenizer(MODEL).encode(text)
    window = min(WINDOW, engine.tenant(MODEL).max_model_len)
    parts = [
        score_tokens(engine, tokens[at : at + window])
        for at in range(0, len(tokens), window)
        if len(tokens) - at > 1
    ]
    scores = Scores(torch.cat([p.nats for p in parts]), torch.cat([p.likeliest for p in parts]))
    if not torch.isfinite(scores.nats).all():
        raise ScoringError(
            f"Model {engine.tenant(MODEL).spec.path}: log-probabilities are no numbers at precision "
            f"{engine.tenant(MODEL).spec.dtype}. Use another precision, and report this as a bug."
        )
    return scores


def score_tokens(engine: Engine, tokens: Sequence[int]) -> Scores:
    """Return what is foretold of tokens 1 … n - 1, each from those before it.

    Args:
        engine: Loaded, without a thread, idle; its one model is asked as it serves.
        tokens: At most as many as one step computes.
    """
    tenant = engine.tenant(MODEL)
    scheduler, runner, model = tenant.scheduler, tenant.runner, tenant.model
    if scheduler is None or not isinstance(runner, ModelRunner) or model is None:
        raise ValueError("score_tokens: the engine is not loaded; call Engine.load first.")
    sequence = RunningSequence(
        request=Request(request_id="", model=MODEL, prompt_token_ids=(0,), params=SamplingParams()),
        sink=lambda _: None,
        tokens=list(tokens),
        prompt_length=len(tokens),
        limit=len(tokens) + 1,
        seed=0,
        arrival_seconds=0.0,
    )
    sequence.blocks = scheduler.blocks.allocate(sequence.blocks_for(len(tokens))) or []
    if not sequence.blocks:
        raise ValueError(
            f"score_tokens: {len(tokens)} tokens do not fit into the KV cache. Give fewer."
        )
    following = torch.tensor(tokens[1:]).unsqueeze(1)
    nats, likeliest = [], []
    with torch.inference_mode():
        hidden = runner.hidden_states(StepPlan(prefill=(Row(sequence, 0, len(tokens)),)))
        for at in range(0, len(tokens) - 1, _ROWS):
            end = min(at + _ROWS, len(tokens) - 1)
            chances = model.logits(hidden[at:end]).log_softmax(dim=-1)
            nats.append(-chances.gather(1, following[at:end]).squeeze(1).double())
            likeliest.append(chances.argmax(dim=-1))
    scheduler.blocks.release(sequence.blocks)
    return Scores(torch.cat(nats), torch.cat(likeliest))

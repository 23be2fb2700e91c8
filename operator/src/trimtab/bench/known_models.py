"""Models of benchmarks that need no checkpoint: sizes as their publishers' `config.json` says them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.planning.architecture import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A published model.

    Attributes:
        architecture: Its sizes.
        depth: Hidden layers.
        context: Longest prompt + output, tokens.
        catalogue: The name under which a catalogue of operators brings its configuration.
    """

    architecture: Architecture
    depth: int
    context: int
    catalogue: str = ""

    def hf_config(self, *, depth: int | None = None) -> dict[str, Any]:
        """Return a `config.json` of it, or of its version of another depth."""
        return self.architecture.to_hf_config(
            depth=depth or self.depth, context_length=self.context
        )


def _model(  # noqa: PLR0917 - a table reads better by place
    family: str,
    hidden: int,
    inner: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    depth: int,
    *,
    head_dim: int = 128,
    tied: bool = False,
    context: int = 32768,
    catalogue: str = "",
) -> KnownModel:
    return KnownModel(
        architecture=Architecture(
            family=family,
            hidden_size=hidden,
            intermediate_size=inner,
            attention_heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=vocab,
            tied_embeddings=tied,
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
        ),
        depth=depth,
        context=context,
        catalogue=catalogue,
    )


KNOWN: Final[Mapping[str, KnownModel]] = {
    "smollm2-135m": _model(
        "llama", 576, 1536, 9, 3, 49152, 30, head_dim=64, tied=True, context=8192
    ),
    "llama-3.2-3b": _model("llama", 3072, 8192, 24, 8, 128256, 28, tied=True),
    "llama-3.1-8b": _model(
        "llama", 4096, 14336, 32, 8, 128256, 32, catalogue="meta-llama/Llama-3.1-8B-Instruct"
    ),
    "qwen3-8b": _model("qwen3", 4096, 12288, 32, 8, 151936, 36, context=40960),
    "qwen3-14b": _model("qwen3", 5120, 17408, 40, 8, 151936, 40, context=40960),
    "qwen1.5-32b": _model("qwen2", 5120, 27392, 40, 8, 152064, 64),
    "qwen3-32b": _model(
        "qwen3", 5120, 25600, 64, 8, 151936, 64, context=40960, catalogue="Qwen/Qwen3-32B"
    ),
    "llama-3.1-70b": _model("llama", 8192, 28672, 64, 8, 128256, 80),
}
"""By name, in lower case."""

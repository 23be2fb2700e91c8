"""What shapes a model's work, without its depth, so that a whole family shares one fingerprint.

Standard library only: measuring Jobs and the engine import this where pydantic is absent.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

BYTES_PER_VALUE: Final[Mapping[str, int]] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes of one weight or KV value by precision."""

_ACTIVATIONS: Final = frozenset({"silu"})
_MODEL_TYPES: Final[Mapping[str, str]] = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


class UnsupportedArchitectureError(ValueError):
    """The model's configuration cannot be planned; the message names the key and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a decoder-only transformer that decide a step's work (planner.md §4).

    Depth is not part of it. Fields past ``tied_embeddings`` are left out of the canonical form
    while they hold their default, so that a field added later changes no existing hash.

    Attributes:
        family: ``llama``, ``mistral``, ``qwen2`` or ``qwen3``.
        hidden_size: Values per token between layers.
        intermediate_size: Values per token inside the gated MLP.
        attention_heads: Query heads.
        kv_heads: Key and value heads (fewer than query heads: grouped-query attention).
        head_dim: Values per head.
        vocab_size: Rows of the embedding and of the head.
        tied_embeddings: The head reuses the embedding's weights.
        rotary: Kind of rotary scaling, ``default`` where there is none.
        qkv_bias: Query, key and value projections carry a bias.
        qk_norm: Queries and keys are normalised per head.
        sliding_window: Tokens a query can see at most; 0 means all.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    rotary: str = "default"
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that no model can have."""
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UnsupportedArchitectureError(
                    f"Architecture field {name} is {value!r}, but it must be a positive integer. "
                    "Correct the model's config.json."
                )
        if self.attention_heads % self.kv_heads:
            raise UnsupportedArchitectureError(
                f"Architecture field kv_heads is {self.kv_heads}, which does not divide "
                f"attention_heads {self.attention_heads}. Correct the model's config.json."
            )

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a Hugging Face ``config.json``.

        Raises:
            UnsupportedArchitectureError: An unknown model type or activation, or a missing key.
        """
        family = _MODEL_TYPES.get(str(config.get("model_type")))
        if family is None:
            raise UnsupportedArchitectureError(
                f"config.json key model_type is {config.get('model_type')!r}; supported are "
                f"{', '.join(sorted(_MODEL_TYPES))}. Use a model of a supported family."
            )
        activation = str(config.get("hidden_act", "silu"))
        if activation not in _ACTIVATIONS:
            raise UnsupportedArchitectureError(
                f"config.json key hidden_act is {activation!r}; supported is silu. "
                "Use a model of a supported family."
            )
        hidden = _size(config, "hidden_size")
        heads = _size(config, "num_attention_heads")
        windowed = family == "mistral" or bool(config.get("use_sliding_window"))
        return cls(
            family=family,
            hidden_size=hidden,
            intermediate_size=_size(config, "intermediate_size"),
            attention_heads=heads,
            kv_heads=_size(config, "num_key_value_heads", default=heads),
            head_dim=_size(config, "head_dim", default=hidden // heads),
            vocab_size=_size(config, "vocab_size"),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            rotary=_rotary(config),
            qkv_bias=bool(config.get("attention_bias", family == "qwen2")),
            qk_norm=family == "qwen3",
            sliding_window=int(config.get("sliding_window") or 0) if windowed else 0,
        )

    def to_hf_config(self, *, depth: int, context_length: int) -> dict[str, Any]:
        """Return a ``config.json`` of this architecture with ``depth`` layers, for random weights."""
        return {
            "model_type": self.family,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.attention_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tied_embeddings,
            "num_hidden_layers": depth,
            "max_position_embeddings": context_length,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": self.sliding_window or None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical form: required fields and what differs from its default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.default is dataclasses.MISSING or getattr(self, field.name) != field.default
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the canonical form.

        Raises:
            UnsupportedArchitectureError: A field is unknown (it may shape the work), missing, or
                of the wrong type.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(known))
        missing = sorted(
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING and name not in data
        )
        if unknown or missing:
            raise UnsupportedArchitectureError(
                f"Architecture document has unknown fields {unknown} and lacks {missing}. "
                "Inspect the model again with this version of Trimtab."
            )
        for name, value in data.items():
            if type(value) is not known[name].type:
                raise UnsupportedArchitectureError(
                    f"Architecture field {name} is {value!r}, but it must be of type "
                    f"{getattr(known[name].type, '__name__', known[name].type)}. "
                    "Inspect the model again."
                )
        return cls(**data)

    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Return (rows, columns) of one hidden layer's matrices, fused as the engine fuses them.

        Query, key and value; attention output; gate and up; down.
        """
        q, kv = self.attention_heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (q + 2 * kv, self.hidden_size),
            (self.hidden_size, q),
            (2 * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        )

    def matrix_parameters(self) -> int:
        """Return the number of weights in one hidden layer's matrices."""
        return sum(rows * columns for rows, columns in self.matrices())

    def layer_parameters(self) -> int:
        """Return the number of weights of one hidden layer, norms and biases included."""
        bias = (self.attention_heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        head_norms = 2 * self.head_dim if self.qk_norm else 0
        return self.matrix_parameters() + bias + head_norms + 2 * self.hidden_size

    def fixed_parameters(self) -> int:
        """Return the number of weights outside the layers: embedding, head, final norm."""
        tables = 1 if self.tied_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + self.hidden_size

    def kv_values_per_token(self) -> int:
        """Return the number of key and value numbers that one token keeps in one layer."""
        return 2 * self.kv_heads * self.head_dim


_SIZES: Final = (
    "hidden_size",
    "intermediate_size",
    "attention_heads",
    "kv_heads",
    "head_dim",
    "vocab_size",
)


@lru_cache(maxsize=1024)
def architecture_hash(architecture: Architecture) -> str:
    """Return SHA-256 (hex) over the canonical JSON of an architecture."""
    text = json.dumps(architecture.to_dict(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _size(config: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedArchitectureError(
            f"config.json key {key} is {value!r}, but it must be a positive integer. "
            "Export the model again with a complete config.json."
        )
    return value


def _rotary(config: Mapping[str, Any]) -> str:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        return "default"
    return str(scaling.get("rope_type") or scaling.get("type") or "default")

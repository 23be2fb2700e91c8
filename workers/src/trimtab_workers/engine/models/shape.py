"""What shapes a decoder's work: read from an HF-style configuration, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.planning.precision import value_bytes
from trimtab_workers.engine.errors import ModelCorruptError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

SUPPORTED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_MAX_DIMENSION = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling (the only one served; others are refused by name)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a rank of a group holds beside its layers (parallel/placement.py).

    Attributes:
        vocabulary_rows: Rows of embedding and head, padding included.
        embeds: Whether the embedding is here: the first stage.
        heads: Whether final norm and head are here: the last stage.
    """

    vocabulary_rows: int
    embeds: bool
    heads: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of one Llama-like decoder, or of one rank's part of it; `vocab` is always the whole.

    Attributes:
        share: None for a whole model.
        qkv_bias: Qwen2 adds biases to the query, key and value projections.
        qk_norm: Qwen3 normalises queries and keys per head.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    tied: bool
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    share: Share | None = None

    @property
    def vocabulary_rows(self) -> int:
        """Rows of embedding and head that are held."""
        return self.vocab if self.share is None else self.share.vocabulary_rows

    @property
    def embeds(self) -> bool:
        """Whether the embedding is held."""
        return self.share is None or self.share.embeds

    @property
    def has_head(self) -> bool:
        """Whether final norm and head are held."""
        return self.share is None or self.share.heads

    @property
    def qkv_rows(self) -> int:
        """Output rows of the fused query, key, value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def layer_elements(self) -> int:
        """Elements of one layer's matrices: what a slab holds."""
        attention = self.qkv_rows * self.hidden + self.hidden * self.heads * self.head_dim
        return attention + 3 * self.intermediate * self.hidden

    @property
    def fixed_elements(self) -> int:
        """Elements outside slabs: embedding, head, norms, biases."""
        tables = int(self.embeds) + int(self.has_head)
        if self.tied:
            tables = min(tables, 1)
        norms = self.hidden * (2 * self.layers + int(self.has_head))
        extras = (self.qkv_rows if self.qkv_bias else 0) + (
            2 * self.head_dim if self.qk_norm else 0
        )
        return tables * self.vocabulary_rows * self.hidden + norms + extras * self.layers

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.layers * self.layer_elements + self.fixed_elements

    def kv_bytes_per_token_layer(self, dtype: str) -> int:
        """Bytes of one token's key and value in one layer, for weights of a precision."""
        return 2 * self.kv_heads * self.head_dim * value_bytes(dtype)

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any], *, where: str) -> LlamaShape:
        """Read an HF `config.json` dictionary.

        Args:
            config: As decoded from JSON; unknown fields are ignored, as transformers does.
            where: What to call the checkpoint in errors.

        Raises:
            UnsupportedModelError: Sound, but another family, activation, window or rope scaling.
            ModelCorruptError: A size is missing or makes no sense.
        """
        return _read(config, where)

    def to_hf_config(self) -> dict[str, Any]:
        """Return the canonical HF-style dictionary; `from_hf_config` reads it back unchanged."""
        names = {
            "llama": "LlamaForCausalLM",
            "mistral": "MistralForCausalLM",
            "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM",
        }
        config: dict[str, Any] = {
            "architectures": [names[self.family]],
            "model_type": self.family,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
        }
        if self.rope_scaling is not None:
            config["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_max_positions,
            }
        return config


def _read(config: Mapping[str, Any], where: str) -> LlamaShape:
    family = config.get("model_type")
    if family not in SUPPORTED_FAMILIES:
        raise UnsupportedModelError(
            f"{where}: model_type is {family!r}. "
            f"This engine runs {', '.join(SUPPORTED_FAMILIES)}; choose a model of these families."
        )
    hidden = _size(config, "hidden_size", where)
    heads = _size(config, "num_attention_heads", where)
    kv_heads = _size(config, "num_key_value_heads", where, default=heads)
    head_dim = _size(config, "head_dim", where, default=max(1, hidden // heads))
    if heads % kv_heads or head_dim % 2:
        raise ModelCorruptError(
            f"{where}: num_attention_heads {heads}, num_key_value_heads {kv_heads} and head_dim "
            f"{head_dim} do not fit together. Fetch the checkpoint's config.json again."
        )
    max_positions = _size(config, "max_position_embeddings", where, default=2048)
    _refuse_variants(config, family, max_positions, where)
    rope: Mapping[str, Any] = config.get("rope_parameters") or {}
    theta = config.get("rope_theta") or rope.get("rope_theta") or 10_000.0
    return LlamaShape(
        family=family,
        layers=_size(config, "num_hidden_layers", where),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_size(config, "intermediate_size", where),
        vocab=_size(config, "vocab_size", where),
        norm_eps=_real(config.get("rms_norm_eps", 1e-6), "rms_norm_eps", where),
        rope_theta=_real(theta, "rope_theta", where),
        max_positions=max_positions,
        tied=bool(config.get("tie_word_embeddings", False)),
        rope_scaling=_rope_scaling(config.get("rope_scaling") or rope, where),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _size(config: Mapping[str, Any], name: str, where: str, *, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_DIMENSION:
        raise ModelCorruptError(
            f"{where}: {name} is {value!r}, not an integer from 1 to {_MAX_DIMENSION}. "
            "Fetch the checkpoint's configuration again."
        )
    return value


def _real(value: object, name: str, where: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ModelCorruptError(
            f"{where}: {name} is {value!r}, not a positive number. "
            "Fetch the checkpoint's configuration again."
        )
    return float(value)


def _refuse_variants(
    config: Mapping[str, Any], family: str, max_positions: int, where: str
) -> None:
    activation = config.get("hidden_act", "silu")
    window = config.get("sliding_window")
    if family in {"qwen2", "qwen3"} and not config.get("use_sliding_window", False):
        window = None
    biases = [name for name in ("attention_bias", "mlp_bias") if config.get(name)]
    if activation != "silu":
        raise UnsupportedModelError(
            f"{where}: hidden_act is {activation!r}, and only 'silu' is served. Choose another model."
        )
    if isinstance(window, int) and window < max_positions:
        raise UnsupportedModelError(
            f"{where}: sliding_window is {window}, shorter than the context of {max_positions}, and "
            "windowed attention is not served. Choose a model without a window."
        )
    if biases:
        raise UnsupportedModelError(
            f"{where}: {biases[0]} is true, and biases are served for qwen2 only. "
            "Choose another model."
        )


def _rope_scaling(scaling: Mapping[str, Any] | None, where: str) -> RopeScaling | None:
    if not scaling:
        return None
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UnsupportedModelError(
            f"{where}: rope_scaling type is {kind!r}, and only 'llama3' is served. "
            "Choose another model."
        )
    numbers = {
        name: _real(scaling.get(name), f"rope_scaling.{name}", where)
        for name in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
    }
    return RopeScaling(
        factor=numbers["factor"],
        low_freq_factor=numbers["low_freq_factor"],
        high_freq_factor=numbers["high_freq_factor"],
        original_max_positions=int(numbers["original_max_position_embeddings"]),
    )

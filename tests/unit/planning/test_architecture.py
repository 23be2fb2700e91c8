import pytest

from tests.unit.planning.builders import LLAMA_8B, SMOLLM2
from trimtab.planning.architecture import (
    Architecture,
    UnsupportedArchitectureError,
    architecture_hash,
)

CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "num_hidden_layers": 30,
    "tie_word_embeddings": True,
}


def test_a_config_gives_the_sizes_that_shape_the_work():
    """SmolLM2's config.json gives its architecture, head_dim derived."""
    assert Architecture.from_hf_config(CONFIG) == SMOLLM2


def test_depth_is_not_part_of_the_hash():
    """Two models of one family that differ in depth share their fingerprints."""
    deep = Architecture.from_hf_config(CONFIG | {"num_hidden_layers": 60})
    wide = Architecture.from_hf_config(CONFIG | {"intermediate_size": 3072})
    assert architecture_hash(deep) == architecture_hash(SMOLLM2)
    assert architecture_hash(wide) != architecture_hash(SMOLLM2)


def test_the_canonical_form_survives_a_round_trip_and_leaves_defaults_out():
    """What is at its default is not written, so a field added later changes no hash."""
    assert Architecture.from_dict(SMOLLM2.to_dict()) == SMOLLM2
    assert "qk_norm" not in SMOLLM2.to_dict()
    qwen = Architecture.from_hf_config(CONFIG | {"model_type": "qwen3", "head_dim": 128})
    assert qwen.qk_norm
    assert Architecture.from_dict(qwen.to_dict()) == qwen


def test_a_truncated_config_reads_back_to_the_same_architecture():
    """The random model of a fingerprint has the architecture that it stands for."""
    for family in ("llama", "qwen2", "qwen3"):
        known = Architecture.from_hf_config(CONFIG | {"model_type": family})
        config = known.to_hf_config(depth=2, context_length=512)
        assert config["num_hidden_layers"] == 2
        assert Architecture.from_hf_config(config) == known


def test_parameters_are_counted_exactly():
    """SmolLM2-135M has 134,515,008 weights, Llama-3.1-8B 8,030,261,248, as published."""
    assert SMOLLM2.fixed_parameters() + 30 * SMOLLM2.layer_parameters() == 134_515_008
    assert LLAMA_8B.fixed_parameters() + 32 * LLAMA_8B.layer_parameters() == 8_030_261_248


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 2}, "kv_heads is 2"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_a_config_that_cannot_be_planned_names_its_key(change, said):
    """An unknown or missing key is named with its value."""
    with pytest.raises(UnsupportedArchitectureError, match=said):
        Architecture.from_hf_config(CONFIG | change)


@pytest.mark.parametrize(
    "change", [{"experts": 8}, {"hidden_size": "576"}, {"hidden_size": True}, {"head_dim": None}]
)
def test_a_document_with_unknown_or_wrong_fields_is_refused(change):
    """A field that this version does not know may shape the work, so it is not ignored."""
    with pytest.raises(UnsupportedArchitectureError):
        Architecture.from_dict(SMOLLM2.to_dict() | change)


def test_a_document_that_lacks_a_field_is_refused():
    """A missing size is named."""
    document = SMOLLM2.to_dict()
    del document["kv_heads"]
    with pytest.raises(UnsupportedArchitectureError, match="kv_heads"):
        Architecture.from_dict(document)

"""A model's text: what still fits is kept, and whatever does not is answered by a fresh model."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.rightsizing.sizing_builders import LADDER, LAYOUT, a_model, an_input, ran
from trimtab.rightsizing.checkpoint import Fate, Origin, dump, load
from trimtab.rightsizing.sizer import Layout
from trimtab.rightsizing.types import Gate, Ladder

ORIGIN = Origin(uid="u-1", digest="sha256:a")


def a_text():
    """Return the checkpoint of a model that knows two inputs."""
    model = a_model()
    for _ in range(70):
        ran(model, 10, cpu_s=2.0, peak=100.0)
        ran(model, 1000, cpu_s=6.0, peak=900.0)
    model.choose_sizes()
    return dump(model, origin=ORIGIN)


TEXT = a_text()


NOT_A_NUMBER = base64.b64encode(np.full(3, np.nan).tobytes()).decode()


def with_cpu(**fields):
    """Return the body with other fields of its CPU learner."""
    body = json.loads(TEXT)["body"]
    return body | {"cpu": body["cpu"] | fields}


def loaded(text=TEXT, *, ladder=LADDER, layout=LAYOUT, origin=ORIGIN):
    """Load a checkpoint as a gateway would."""
    return load(text, ladder=ladder, layout=layout, origin=origin)


def gate(model, number=10):
    """Return why an input would get the default size."""
    return model.preview(an_input(number), budget_s=10.0).cpu.gate


def test_a_checkpoint_is_json_of_moderate_size():
    """It can be read by people and fits many times into a ConfigMap."""
    assert json.loads(TEXT)["body"]["uid"] == "u-1"
    assert len(TEXT) < 20_000


def test_a_model_comes_back_as_it_was():
    """The same text comes out again, and no gate closes."""
    found = loaded()
    assert found.fate is Fate.LOADED
    assert dump(found.model, origin=ORIGIN) == TEXT
    assert gate(found.model) is None


def test_a_new_image_is_confirmed_first():
    """The weights stay; the default size is used until ten runs say the same."""
    found = loaded(origin=replace(ORIGIN, digest="sha256:b"))
    assert found.fate is Fate.NEW_IMAGE
    assert gate(found.model) is Gate.WARMING_UP
    assert found.model.cpu.learner.weights.any()


def test_another_ladder_keeps_the_buckets():
    """What inputs needed still holds where the classes are others; the learner begins anew."""
    ladder = Ladder.of(cpu_m=(100, 1000, 100), mem_mib=(256, 1024, 256))
    found = loaded(ladder=ladder)
    assert found.fate is Fate.OTHER_LADDER
    decision = found.model.decide(an_input(10), budget_s=10.0)
    assert (decision.want.cpu_m, decision.want.mem_mib) == (300, 256)
    assert not found.model.cpu.learner.weights.any()


@pytest.mark.parametrize(
    ("fields", "fate"),
    [
        ({"layout": Layout(numbers=("m",))}, Fate.OTHER_FEATURES),
        ({"origin": Origin(uid="u-2", digest="sha256:a")}, Fate.OTHER_FUNCTION),
        ({"text": ""}, Fate.CORRUPT),
        ({"text": TEXT[:-1]}, Fate.CORRUPT),
        ({"text": TEXT.replace('"v":1', '"v":2')}, Fate.CORRUPT),
        ({"text": "{}"}, Fate.CORRUPT),
    ],
)
def test_what_does_not_fit_is_a_fresh_model(fields, fate):
    """Another function, other features, and damage lead to the default size."""
    found = loaded(**fields)
    assert found.fate is fate
    assert found.model.observations == 0


@pytest.mark.parametrize(
    "body",
    [
        {"v": 1},
        {"v": 1, "uid": "u-1", "layout": json.loads(TEXT)["body"]["layout"]},
        json.loads(TEXT)["body"] | {"scaler": [1, "AAAA", "AAAA"]},
        json.loads(TEXT)["body"] | {"cpu": {}},
        json.loads(TEXT)["body"] | {"buckets": [1]},
        json.loads(TEXT)["body"] | {"works": "not base64"},
        json.loads(TEXT)["body"] | {"observations": float("inf")},
        json.loads(TEXT)["body"] | {"observations": -1},
        json.loads(TEXT)["body"] | {"sizes": [["a", 1]]},
        json.loads(TEXT)["body"] | {"sizes": [[251, 128]]},
        json.loads(TEXT)["body"] | {"levels": [str(k) for k in range(9)]},
        json.loads(TEXT)["body"] | {"buckets": [["key", "", "", ""]]},
        json.loads(TEXT)["body"] | {"works": NOT_A_NUMBER * 3},
        with_cpu(cost=[]),
        with_cpu(cost={}),
        with_cpu(count=float("nan")),
        with_cpu(weights=NOT_A_NUMBER * 16),
        with_cpu(squares="AAAA" * 64),
    ],
)
def test_a_sound_sum_over_another_build_s_fields_is_no_error(body):
    """A body whose CRC holds and whose fields do not is corrupt, or another's."""
    text = json.dumps(body, separators=(",", ":"))
    found = loaded(f'{{"crc":"{zlib.crc32(text.encode()):08x}","body":{text}}}')
    assert found.fate in {Fate.CORRUPT, Fate.OTHER_FUNCTION}
    assert gate(found.model) is Gate.WARMING_UP


def test_depth_is_damage_and_no_exception():
    """A body nested deeper than a parser goes is corrupt where its CRC holds."""
    text = "[" * 200_000
    found = loaded(f'{{"crc":"{zlib.crc32(text.encode()):08x}","body":{text}}}')
    assert found.fate is Fate.CORRUPT


def test_sizes_in_use_go_where_few_sizes_are_no_longer_wanted():
    """A function that left few sizes gets what it wants, not what the checkpoint had in use."""
    model = a_model()
    model.sizes = (LADDER.default,)
    text = dump(model, origin=ORIGIN)
    assert loaded(text).model.sizes == model.sizes
    found = load(text, ladder=LADDER, layout=LAYOUT, origin=ORIGIN, few_sizes=False)
    assert found.fate is Fate.LOADED
    assert found.model.sizes == ()

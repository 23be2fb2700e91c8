"""Features of a request, and every way in which one can be missing."""

import itertools
import json
import struct

import pytest

from trimtab.rightsizing.features import FeatureError, FeatureSpec, Plan, Request
from trimtab.rightsizing.headers import image, wav

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480)
BUDGET_US = 2000


def a_request(body=b"", *, length=None, query=None, **headers):
    """Return a request with this body."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(
        headers=names,
        query=query or {},
        prefix=body,
        length=len(body) if length is None else length,
    )


def features(plan, request, *, budget_us=BUDGET_US, clock=None):
    """Return the plan's features; without a clock, time stands still."""
    return plan.vector(request, budget_us=budget_us, clock=clock or (lambda: 0))


def test_length_medium_and_content_type_are_always_read():
    """An image's pixels and bytes need no declaration."""
    found = features(Plan.compile(()), a_request(PNG, length=5000, content_type="image/png"))
    assert found.numbers == (5000.0, 640.0 * 480)
    assert found.categories == ("type=image/png",)
    assert found.missing is None


@pytest.mark.parametrize(
    ("declared", "names"),
    [
        ((), ("length", "medium")),
        ((("size", "Header"),), ("size", "length", "medium")),
        ((("pixels", "ContentType"),), ("pixels", "length")),
        ((("pixels", "ContentType"), ("q", "Header")), ("pixels", "length", "q")),
        ((("q", "Header"), ("pixels", "ContentType")), ("pixels", "length", "q")),
        (
            (("pixels", "ContentType"), ("q", "Header"), ("bytes", "Size")),
            ("pixels", "bytes", "q"),
        ),
    ],
)
def test_pixels_never_make_a_bucket_alone(declared, names):
    """A medium's size stands among the first two only with the length beside it: headers lie."""
    specs = [FeatureSpec(name=name, origin=origin, key="k") for name, origin in declared]
    assert Plan.compile(specs).layout.numbers == names


@pytest.mark.parametrize(
    ("spec", "request_", "value"),
    [
        (("f", "Header", "X-Size"), a_request(x_size="12.5"), 12.5),
        (("f", "Query", "n"), a_request(query={"n": "7"}), 7.0),
        (("f", "Size", ""), a_request(b"abc"), 3.0),
        (("f", "ContentType", ""), a_request(PNG), 307200.0),
        (("f", "ContentType", ""), a_request(b"a\nb\n", content_type="text/csv"), 2.0),
        (("f", "ContentType", ""), a_request(b"a\nb\n", length=8, content_type="text/csv"), 4.0),
        (("f", "JSONPointer", "/a/1/b~1c"), a_request(b'{"a": [0, {"b/c": 5}]}'), 5.0),
    ],
)
def test_each_origin_gives_a_number(spec, request_, value):
    """Header, query, size, medium and JSON pointer are read where they are declared."""
    name, origin, key = spec
    plan = Plan.compile([FeatureSpec(name=name, origin=origin, key=key)])
    found = features(plan, request_)
    assert found.missing is None
    assert found.numbers[plan.layout.numbers.index("f")] == value


@pytest.mark.parametrize(
    ("origin", "key", "request_", "why"),
    [
        ("Header", "x-n", a_request(), "absent"),
        ("Header", "x-n", a_request(x_n="-1"), "negative"),
        ("Header", "x-n", a_request(x_n="nan"), "infinite"),
        ("Header", "x-n", a_request(x_n="1e999"), "infinite"),
        ("ContentType", "", a_request(b"\x00\x01"), "medium"),
        ("JSONPointer", "/n", a_request(b"{"), "json"),
        ("JSONPointer", "/n", a_request(b"[" * 100_000), "json"),
        ("JSONPointer", "/n", a_request(b'{"n": null}'), "type"),
        ("JSONPointer", "/n", a_request(b'{"n": [1]}'), "type"),
        ("JSONPointer", "/n", a_request(b'{"n": 1' + b"0" * 400 + b"}"), "infinite"),
        ("JSONPointer", "/n/9", a_request(b'{"n": [1]}'), "absent"),
        ("JSONPointer", "/n", a_request(b'{"n": 1}', length=9000), "long"),
    ],
)
def test_a_missing_value_is_named_with_its_reason(origin, key, request_, why):
    """Whatever cannot be had names the feature and why, and raises nothing."""
    plan = Plan.compile([FeatureSpec(name="n", origin=origin, key=key)])
    assert features(plan, request_).missing == f"n:{why}"


def test_text_is_a_category():
    """A declared value that is no number becomes a category by its name, cut at 64 characters."""
    plan = Plan.compile(
        [
            FeatureSpec(name="codec", origin="Header", key="X-Codec"),
            FeatureSpec(name="fast", origin="JSONPointer", key="/fast"),
        ]
    )
    body = json.dumps({"fast": True}).encode()
    found = features(plan, a_request(body, x_codec="h" * 99, content_type="Text/X; q=1"))
    assert found.categories == (f"codec={'h' * 64}", "fast=true", "type=text/x")
    assert found.missing is None


def test_what_comes_after_the_budget_is_missing():
    """A clock that runs out stops the extractors; the request still gets its features so far."""
    plan = Plan.compile([FeatureSpec(name="n", origin="Header", key="n")])
    ticks = itertools.count(0, 1500)
    found = features(plan, a_request(n="5"), clock=lambda: next(ticks))
    assert found.missing == "n:budget"
    assert found.numbers[1] == 0.0


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([FeatureSpec(name="a", origin="Cookie")], "from Cookie"),
        ([FeatureSpec(name="a", origin="Header")], "without a key"),
        ([FeatureSpec(name="a", origin="JSONPointer", key="n")], "no JSON pointer"),
        ([FeatureSpec(name="length", origin="Size")], "always read"),
        ([FeatureSpec(name="a", origin="Size"), FeatureSpec(name="a", origin="Size")], "twice"),
    ],
)
def test_a_bad_declaration_is_refused_by_name(specs, words):
    """The message names the feature and what to write."""
    with pytest.raises(FeatureError, match=words):
        Plan.compile(specs)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8" + b"\xff" * 1000,
        b"\xff\xd8\xff\xe0\x00\x00",
        b"\xff\xd8\xff\xe0\xff\xff" + bytes(100),
        b"\xff\xd8\xff\xda" + bytes(100),
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x05",
        PNG[:-1],
        b"GIF88a" + bytes(20),
        b"GIF89a\x00\x00\x00\x00",
        b"RIFF\x00\x00\x00\x00WEBPVP8L\x00\x00\x00\x00\x00" + bytes(4),
        b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(12),
        b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(20),
        b"RIFF\x00\x00\x00\x00AVI " + bytes(20),
    ],
)
def test_damaged_images_have_no_size(data):
    """Cut, empty or unknown headers give nothing."""
    assert image(data) is None


def test_a_wave_without_its_parts_has_no_length():
    """A data chunk before its format, or a format of nothing, gives nothing."""
    head = b"RIFF\x00\x00\x00\x00WAVE"
    nothing = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 0, 0, 0, 0, 0)
    assert wav(head) is None
    assert wav(head + struct.pack("<4sI", b"data", 8) + bytes(8)) is None
    assert wav(head + nothing + struct.pack("<4sI", b"data", 8)) is None

import json
from dataclasses import replace

import pytest

from tests.unit.planning.builders import a_fingerprint, a_key
from trimtab.planning.fingerprint import (
    MAX_BYTES,
    Fingerprint,
    FingerprintInvalidError,
    MemoryPoint,
    StepPoint,
    dump,
    parse,
)


def test_a_document_survives_a_round_trip():
    """Everything that was measured is read back unchanged."""
    fingerprint = a_fingerprint(
        memory=(MemoryPoint(depth=1, weights=1, activation=2, non_torch=3, graphs=0),),
        collective=((1024, 7),),
        notes=("Contended",),
        device_seconds=41,
        taken="2026-11-23T07:00:00Z",
    )
    assert parse(dump(fingerprint)) == fingerprint


def test_the_longest_cpu_document_fits_a_termination_message():
    """The whole CPU grid with the largest numbers stays within 4,096 bytes."""
    slow = 10_000_000
    longest = StepPoint(
        batch=0, t1_us=slow, mad1_us=slow // 10, t2_us=2 * slow, mad2_us=slow // 10, repeats=400
    )
    fingerprint = Fingerprint(
        key=replace(a_key(), cpu_model="Intel(R) Xeon(R) Platinum 8592+ CPU @ 2.10GHz, long name"),
        source="Measured",
        depths=(1, 5),
        decode=tuple(
            replace(longest, batch=b, context=c) for b in (1, 2, 4, 8) for c in (64, 256, 1024)
        ),
        prefill=tuple(
            replace(longest, chunk=c, cached=8192) for c in (32, 128, 256, 512, 600, 700)
        ),
        mixed=(replace(longest, chunk=128, batch=4, context=256),),
        memory=tuple(
            MemoryPoint(depth=d, weights=10**12, activation=10**11, non_torch=10**11, graphs=10**10)
            for d in (1, 5)
        ),
        collective=tuple((2**n, 10**6) for n in range(10, 30)),
        notes=("Contended", "Unidentifiable", "TimeLimit"),
        device_seconds=1200,
        taken="2026-11-23T07:00:00Z",
    )
    assert 1024 < len(dump(fingerprint).encode()) <= MAX_BYTES


def test_a_document_over_the_limit_is_refused_unless_it_was_imported():
    """Only Job messages are limited; an import keeps its whole grid."""
    point = StepPoint(chunk=32, t1_us=10, mad1_us=0, t2_us=20, mad2_us=0, repeats=1)
    large = replace(a_fingerprint(), prefill=tuple(replace(point, cached=n) for n in range(400)))
    with pytest.raises(FingerprintInvalidError, match="exceeds 4096 bytes"):
        dump(large)
    assert parse(dump(large, limit=None)) == large


def _with(**changes):
    return json.dumps(json.loads(dump(a_fingerprint())) | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "is not JSON"),
        ("[]", "field v"),
        (_with(v=2), "field v is 2"),
        (_with(depths=[2, 1]), "field depths"),
        (_with(decode=[]), "at least one point"),
        (_with(decode=[[1, 2, 3]]), "field decode"),
        (_with(decode=[[1, 64, 0, 0, 10, 0, 5]]), "field decode"),
        (_with(prefill=[[32, 0, 1.5, 0, 10, 0, 5]]), "field prefill"),
        (_with(source="Guessed"), "field source"),
        (_with(key={"architecture": 1}), "key.architecture"),
        (_with(gpuSeconds=-1), "field gpuSeconds"),
    ],
)
def test_a_broken_document_names_its_field(text, said):
    """The message names the field, so that the event FingerprintInvalid can say it."""
    with pytest.raises(FingerprintInvalidError, match=said):
        parse(text)


def test_unknown_fields_of_a_document_are_ignored():
    """An old operator reads a newer worker's document."""
    assert parse(_with(novelty=1)) == a_fingerprint()


def test_the_digest_changes_with_every_part_of_the_key():
    """A fingerprint serves no other product, CPU, thread count, precision or engine version."""
    keys = [
        a_key(),
        a_key(threads=2),
        a_key(precision="fp32"),
        replace(a_key(), cpu_model="Other"),
        replace(a_key(), engine_version="9"),
        replace(a_key(), flags=("sdpa",)),
    ]
    assert len({key.digest() for key in keys}) == len(keys)

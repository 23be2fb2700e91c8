"""Which fingerprints plans can rest on."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.planning.builders import LLAMA_8B, a_fingerprint, a_fleet, a_key, a_pool, an_intent
from trimtab.planning.documents import in_use
from trimtab.planning.snapshot import Assignment, Config

MINE = a_fingerprint(key=a_key())


def used(*fingerprints, **fields):
    """Return which of the fingerprints are in use, by position."""
    found = in_use(a_fleet(fingerprints=fingerprints, **fields))
    return [n for n, one in enumerate(fingerprints) if one.key.digest() in found]


def test_every_size_and_precision_of_a_model_that_is_asked_for_is_in_use():
    """Alternatives rest on them, not the chosen option alone."""
    wide = a_fingerprint(key=a_key(threads=2))
    fine = a_fingerprint(key=a_key(precision="fp32"))
    assert used(MINE, wide, fine) == [0, 1, 2]


def test_another_models_shapes_and_another_cpus_times_are_not():
    """Nobody asks for that model, and no node has that CPU; an intent that is not inspected asks for nothing."""
    other = a_fingerprint(key=a_key(LLAMA_8B))
    elsewhere = a_fingerprint(key=replace(a_key(), cpu_model="another"))
    assert used(other, elsewhere) == []
    assert used(elsewhere, pools=(a_pool(cpu_model="another"),)) == [0]
    assert not in_use(a_fleet(an_intent(model=None), fingerprints=(MINE,)))


def test_what_runs_keeps_its_times_while_its_model_is_not_known():
    """An inspection that fails does not say what shapes serve: all of that size and precision stay."""
    config = Config(product="cpu", cpu_model=MINE.key.cpu_model, precision="bf16", threads=1)
    blind = an_intent(model=None)
    held = Assignment(intent_uid=blind.uid, config=config, replicas=1, generation=1)
    other = a_fingerprint(key=a_key(LLAMA_8B, threads=2))
    found = in_use(a_fleet(blind, fingerprints=(MINE, other), assignments=(held,)))
    assert found == {MINE.key.digest()}
    stranger = a_fingerprint(key=a_key(LLAMA_8B))
    assert used(MINE, stranger, assignments=(held,)) == [0]


def test_an_older_engines_times_are_used_until_there_are_newer_ones():
    """What the next release replaces is what becomes old."""
    old = a_fingerprint(key=replace(a_key(), engine_version="0.0.9"))
    assert used(old) == [0]
    assert used(old, MINE) == [1]

"""Which fingerprints are in force while their documents come, change and are spoilt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.planning.builders import a_fingerprint
from tests.unit.reconcile.builders import SETTINGS
from trimtab.observe.caches import Caches
from trimtab.observe.digests import digest
from trimtab.planning.fingerprint import dump
from trimtab.reconcile.fingerprint_book import FINGERPRINT_KEY, SEAL_ANNOTATION, FingerprintBook

GOOD = a_fingerprint()
TEXT = dump(GOOD)


def spoilt(**changes: Any) -> str:
    """Return the document with other fields."""
    return json.dumps(json.loads(TEXT) | changes)


class Shelf:
    """One ConfigMap and the book that reads it."""

    def __init__(self) -> None:
        self.caches = Caches()
        self.book = FingerprintBook()
        self.version = 0

    def put(self, text: str, *, uid: str = "u", sealed: str = "") -> None:
        self.version += 1
        meta = {
            "name": "fp-1",
            "namespace": "trimtab-system",
            "uid": uid,
            "resourceVersion": str(self.version),
            "labels": {"app.kubernetes.io/component": "fingerprint"},
            "annotations": {SEAL_ANNOTATION: sealed} if sealed else {},
        }
        self.caches.configmaps.put({"metadata": meta, "data": {FINGERPRINT_KEY: text}})

    def read(self) -> tuple[Any, ...]:
        return self.book.read(self.caches, settings=SETTINGS)


FALLING = [[1, 512, 9000, 1, 9500, 1, 20], [8, 512, 100, 1, 110, 1, 20]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        (spoilt(v=2), "field v is 2"),
        (spoilt(depths=[2, 1]), "field depths"),
        (spoilt(decode=[[1, 512, 9000, 1, 100, 1, 20]]), "less than the"),
        (spoilt(decode=FALLING), "time falls"),
        (spoilt(decode=[]), "decode"),
    ],
)
def test_a_spoilt_document_leaves_the_last_valid_one_in_force(text: str, words: str) -> None:
    """It is told once, with object, key, field and what is planned with meanwhile."""
    shelf = Shelf()
    shelf.put(TEXT)
    assert shelf.read() == (GOOD,)
    shelf.put(text)
    assert shelf.read() == (GOOD,)
    (told,) = shelf.book.news()
    assert told.message.startswith("ConfigMap trimtab-system/fp-1, key fingerprint.json: ")
    assert words in told.message
    assert told.message.endswith("The last valid document stays in force.")
    shelf.read()
    assert shelf.book.news() == ()
    assert (shelf.book.spoilt(), shelf.book.in_force("fp-1")) == (1, True)
    shelf.put(TEXT)
    assert (shelf.read(), shelf.book.spoilt()) == ((GOOD,), 0)


def test_one_that_was_never_valid_answers_nothing() -> None:
    """After a restart nobody knows what it said: it is measured again."""
    shelf = Shelf()
    shelf.put(spoilt(v=2))
    assert shelf.read() == ()
    assert not shelf.book.in_force("fp-1")
    assert "measured again" in shelf.book.news()[0].message


def test_an_edit_of_what_was_measured_is_not_planned_with() -> None:
    """It is valid and wrong: whoever wants it says so by taking the seal off."""
    shelf = Shelf()
    quicker = spoilt(gpuSeconds=99)
    shelf.put(TEXT, sealed=digest(TEXT))
    assert shelf.read() == (GOOD,)
    shelf.put(quicker, sealed=digest(TEXT))
    assert shelf.read() == (GOOD,)
    assert "changed by somebody else" in shelf.book.news()[0].message
    shelf.put(quicker)
    (found,) = shelf.read()
    assert found.device_seconds == 99


def test_one_that_was_deleted_is_forgotten() -> None:
    """Whoever deletes a fingerprint wants it measured anew."""
    shelf = Shelf()
    shelf.put(TEXT)
    shelf.read()
    shelf.put("{", uid="another")
    assert shelf.read() == ()

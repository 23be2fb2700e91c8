"""Every kopf setting that the operator relies on, with the reason in operator.md section 4."""

from __future__ import annotations

import logging

import kopf
import pytest

from trimtab.handlers.settings import FIRST_BACKOFFS, Backoffs, configure
from trimtab.kube.resources import CHILDREN, POD


@pytest.fixture
def settings() -> kopf.OperatorSettings:
    found = kopf.OperatorSettings()
    configure(found, network_error_seconds=600)
    return found


def test_no_peering(settings: kopf.OperatorSettings) -> None:
    """Our own Lease elects; kopf's peering would freeze everybody on equal priority."""
    assert settings.peering.standalone is True


def test_no_events_from_log_lines(settings: kopf.OperatorSettings) -> None:
    """Events are ours, on transitions; kopf posts none for a log line."""
    assert settings.posting.level == logging.WARNING
    assert settings.posting.loggers is False


def test_everything_stored_is_under_our_name(settings: kopf.OperatorSettings) -> None:
    """Finalizer and annotations live under trimtab.dev from the first release."""
    assert settings.persistence.finalizer == "trimtab.dev/finalizer"
    assert isinstance(settings.persistence.progress_storage, kopf.AnnotationsProgressStorage)
    assert settings.persistence.progress_storage.prefix == "trimtab.dev"
    assert isinstance(settings.persistence.diffbase_storage, kopf.AnnotationsDiffBaseStorage)
    assert settings.persistence.diffbase_storage.prefix == "trimtab.dev"


def test_requests_end(settings: kopf.OperatorSettings) -> None:
    """A request of kopf ends after 30 s, a connection attempt after 10 s."""
    assert settings.networking.request_timeout == 30
    assert settings.networking.connect_timeout == 10


def test_back_offs_last_ten_minutes_and_can_be_iterated_again(
    settings: kopf.OperatorSettings,
) -> None:
    """A roll-out of API servers is survived, every time, and not in step with everybody else."""
    backoffs = settings.networking.error_backoffs
    assert isinstance(backoffs, Backoffs)
    first, second = list(backoffs), list(backoffs)
    assert len(first) == len(second)
    assert first != second
    assert 0.8 * 600 <= sum(first) <= 1.2 * 640
    for delay, plain in zip(first, FIRST_BACKOFFS, strict=False):
        assert 0.8 * plain <= delay <= 1.2 * plain
    assert all(24 <= delay <= 36 for delay in first[len(FIRST_BACKOFFS) :])


def test_lists_are_chunked_and_not_streamed(settings: kopf.OperatorSettings) -> None:
    """Memory is bounded, and a server without WatchList does not end the process."""
    assert settings.watching.chunk_size == 500
    assert settings.watching.initial_streaming is False
    assert settings.watching.inactivity_timeout == 70


def test_queues_have_no_worker_limit(settings: kopf.OperatorSettings) -> None:
    """A limit of 100 let 20 objects per second through."""
    assert settings.queueing.worker_limit is None
    assert settings.scanning.disabled is False


def test_a_deleted_object_is_polled_each_two_seconds(settings: kopf.OperatorSettings) -> None:
    """A daemon that ends a little late delays a deletion by 2 s, not by a minute."""
    assert settings.background.cancellation_polling == 2


@pytest.mark.parametrize("resource", [*CHILDREN, POD], ids=lambda r: r.plural)
def test_children_are_selected_by_the_server(
    settings: kopf.OperatorSettings, resource: object
) -> None:
    """Others' objects are never sent to us, let alone cached."""
    selectors = settings.watching.label_selectors
    group, version, plural = resource.group, resource.version, resource.plural  # type: ignore[attr-defined]
    assert selectors[group, version, plural] == "app.kubernetes.io/part-of=trimtab"

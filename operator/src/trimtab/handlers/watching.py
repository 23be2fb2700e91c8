"""kopf registrations and one-line hand-offs, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kopf

from trimtab.handlers import settings as kopf_settings
from trimtab.handlers.login import login
from trimtab.kube.resources import INTENT, WATCHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.kube.resources import Resource
    from trimtab.reconcile.operator import Operator


def register(operator: Operator) -> kopf.OperatorRegistry:
    """Return kopf's registry with all handlers of an operator.

    A registry of our own, so that importing this module registers nothing.
    """
    registry = kopf.OperatorRegistry()

    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        kopf_settings.configure(
            settings, network_error_seconds=operator.settings.network_error_seconds
        )

    async def daemon(uid: str, stopped: Any, **_: Any) -> None:
        await operator.run_intent(uid, stopped=lambda: bool(stopped))
        # A daemon that returns by itself is never started again, and kopf drops the finalizer.
        await stopped.wait()

    kopf.on.startup(registry=registry)(configure)
    kopf.on.login(registry=registry)(login)
    for resource in WATCHED:
        _watch(operator, resource, registry)
    kopf.daemon(INTENT.group, INTENT.version, INTENT.plural, id="loop", registry=registry)(daemon)
    return registry


def _watch(operator: Operator, resource: Resource, registry: kopf.OperatorRegistry) -> None:
    async def event(type: str | None, body: Mapping[str, Any], **_: Any) -> None:  # noqa: A002 - kopf's keyword
        operator.event(resource.plural, type, body)

    kopf.on.event(resource.group, resource.version, resource.plural, id="cache", registry=registry)(
        event
    )

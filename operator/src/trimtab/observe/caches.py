"""All caches of the operator, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab.observe import records
from trimtab.observe.cache import ObjectCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.observe.records import Record


@dataclass(slots=True)
class Caches:
    """One cache per watched kind; names are the API's plurals."""

    inferenceintents: ObjectCache[records.IntentRecord] = field(
        default_factory=lambda: ObjectCache(records.intent)
    )
    deployments: ObjectCache[records.DeploymentRecord] = field(
        default_factory=lambda: ObjectCache(records.deployment)
    )
    services: ObjectCache[Record] = field(default_factory=lambda: ObjectCache(records.generic))
    configmaps: ObjectCache[records.ConfigMapRecord] = field(
        default_factory=lambda: ObjectCache(records.config_map)
    )
    jobs: ObjectCache[records.JobRecord] = field(default_factory=lambda: ObjectCache(records.job))
    networkpolicies: ObjectCache[Record] = field(
        default_factory=lambda: ObjectCache(records.generic)
    )
    poddisruptionbudgets: ObjectCache[Record] = field(
        default_factory=lambda: ObjectCache(records.generic)
    )
    pods: ObjectCache[records.PodRecord] = field(default_factory=lambda: ObjectCache(records.pod))
    nodes: ObjectCache[records.NodeRecord] = field(
        default_factory=lambda: ObjectCache(records.node)
    )

    def by_plural(self) -> Mapping[str, ObjectCache[Any]]:
        """Return every cache by its kind's plural."""
        return {name: getattr(self, name) for name in self.__slots__}

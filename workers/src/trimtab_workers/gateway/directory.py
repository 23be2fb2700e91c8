"""What the gateway knows of the cluster: routing table and endpoints, and who waits for them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.gateway.endpoints import EndpointBook, SliceRecord, parse_slice
from trimtab_workers.gateway.routes import (
    NamespaceRoutes,
    RouteDocumentError,
    RouteTable,
    parse_routes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trimtab_workers.gateway.endpoints import Endpoint
    from trimtab_workers.gateway.metrics import GatewayMetrics
    from trimtab_workers.gateway.routes import ModelRoute

log = logging.getLogger(__name__)

ROUTES_PREFIX: Final = "trimtab-routes-"
ROUTES_KEY: Final = "routes.json"


class Directory:
    """Routes and endpoints; `changed` wakes those who hold a request or save the state."""

    def __init__(self, *, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._documents: dict[str, str] = {}
        self._parsed: dict[str, NamespaceRoutes] = {}
        self._book = EndpointBook()
        self._changed = asyncio.Event()
        self.table = RouteTable()
        self.loaded = False
        self.live = False
        self.routes = RoutesSink(self)
        self.endpoints = EndpointsSink(self)

    def serving(self, route: ModelRoute) -> tuple[Endpoint, ...]:
        """Return the endpoints that may get a model's next request."""
        return self._book.serving(namespace=route.namespace, service=route.service)

    def pods(self) -> frozenset[str]:
        """Return the uids of all pods of all slices."""
        slices = self._book.slices.values()
        return frozenset(row.uid for record in slices for row in record.endpoints)

    def next_change(self) -> asyncio.Event:
        """Return an event that is set at the next change."""
        return self._changed

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        slices = [record.to_dict() for record in self._book.slices.values()]
        return {"v": 1, "routes": dict(self._documents), "slices": slices}

    def restore(self, document: Mapping[str, Any]) -> None:
        """Take over what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: The document is something else; nothing changed.
        """
        parsed = {name: parse_routes(text) for name, text in document["routes"].items()}
        records = [SliceRecord.from_dict(row) for row in document["slices"]]
        self._documents = dict(document["routes"])
        self._parsed = parsed
        self._book = EndpointBook(records)
        self.loaded = True
        self.rebuild()
        self.announce()

    def put_document(self, name: str, text: str) -> None:
        """Take over one namespace's routes; a document that cannot be read changes nothing."""
        try:
            self._parsed[name] = parse_routes(text)
        except RouteDocumentError as error:
            self._metrics.route_errors.inc()
            log.error("route_document_invalid", extra={"configmap": name, "reason": str(error)})  # noqa: TRY400 - the sentence says all
            return
        self._documents[name] = text

    def keep_documents(self, names: set[str]) -> None:
        """Forget every document but these."""
        for table in (self._documents, self._parsed):
            for name in set(table) - names:
                del table[name]

    def remove_document(self, name: str) -> None:
        """Forget one document; an unknown name is fine."""
        self._documents.pop(name, None)
        self._parsed.pop(name, None)

    def put_slice(self, body: Mapping[str, Any]) -> None:
        """Take over one EndpointSlice."""
        record = parse_slice(body)
        if record is None:
            self._book.remove(_key(body))
        else:
            self._book.put(record)

    def remove_slice(self, body: Mapping[str, Any]) -> None:
        """Forget one EndpointSlice."""
        self._book.remove(_key(body))

    def replace_slices(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Know these EndpointSlices and no others."""
        records = (parse_slice(body) for body in bodies)
        self._book = EndpointBook(record for record in records if record is not None)

    def rebuild(self) -> None:
        """Make the table of the documents; of two for one namespace the newer counts."""
        namespaces: dict[str, NamespaceRoutes] = {}
        for routes in self._parsed.values():
            other = namespaces.get(routes.namespace)
            if other is None or routes.revision > other.revision:
                namespaces[routes.namespace] = routes
        self.table = RouteTable(namespaces)
        self._metrics.revision.set(self.table.revision)
        self._metrics.models.set(len(self.table.models()))
        self._metrics.live.set(self.live)

    def announce(self) -> None:
        """Wake those who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


def _key(body: Mapping[str, Any]) -> str:
    metadata = body.get("metadata") or {}
    return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"


def _name(body: Mapping[str, Any]) -> str:
    return str((body.get("metadata") or {}).get("name", ""))


class RoutesSink:
    """Where the watch of routing ConfigMaps delivers."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def replace(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """A list: these ConfigMaps and no others."""
        names = set()
        for body in bodies:
            if _name(body).startswith(ROUTES_PREFIX):
                names.add(_name(body))
                self._put(body)
        self._directory.keep_documents(names)
        self._directory.loaded = self._directory.live = True
        self._directory.rebuild()
        self._directory.announce()

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """One event of a watch."""
        if not _name(body).startswith(ROUTES_PREFIX):
            return
        if kind == "DELETED":
            self._directory.remove_document(_name(body))
        else:
            self._put(body)
        self._directory.rebuild()
        self._directory.announce()

    def _put(self, body: Mapping[str, Any]) -> None:
        self._directory.put_document(_name(body), (body.get("data") or {}).get(ROUTES_KEY, ""))


class EndpointsSink:
    """Where the watch of EndpointSlices delivers."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def replace(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """A list: these slices and no others."""
        self._directory.replace_slices(bodies)
        self._directory.announce()

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """One event of a watch."""
        if kind == "DELETED":
            self._directory.remove_slice(body)
        else:
            self._directory.put_slice(body)
        self._directory.announce()

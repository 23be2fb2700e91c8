"""Where each Service's pods listen, from EndpointSlices. Pure.

A terminating endpoint gets no new request; streams that it serves go on, because nothing here
touches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SERVICE_LABEL: Final = "kubernetes.io/service-name"
_PORT_NAME: Final = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One pod behind a Service."""

    uid: str
    name: str
    address: str
    port: int
    ready: bool
    terminating: bool = False

    @property
    def base_url(self) -> str:
        """Return `http://address:port`."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRecord:
    """What is kept of one EndpointSlice."""

    key: str
    namespace: str
    service: str
    endpoints: tuple[Endpoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON can hold it."""
        fields = Endpoint.__dataclass_fields__
        rows = [{name: getattr(row, name) for name in fields} for row in self.endpoints]
        return {
            "key": self.key,
            "namespace": self.namespace,
            "service": self.service,
            "endpoints": rows,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> SliceRecord:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError: The document is something else.
        """
        return cls(
            key=document["key"],
            namespace=document["namespace"],
            service=document["service"],
            endpoints=tuple(Endpoint(**row) for row in document["endpoints"]),
        )


def parse_slice(body: Mapping[str, Any]) -> SliceRecord | None:
    """Return the record of an EndpointSlice, or None if it belongs to no Service.

    Absent `ready` means true and absent `terminating` means false, as the API defines them.
    """
    metadata = body.get("metadata") or {}
    service = (metadata.get("labels") or {}).get(SERVICE_LABEL)
    port = _port(body.get("ports") or [])
    if not service:
        return None
    namespace = metadata.get("namespace", "")
    rows = body.get("endpoints") or [] if port is not None else []
    return SliceRecord(
        key=f"{namespace}/{metadata.get('name', '')}",
        namespace=namespace,
        service=service,
        endpoints=tuple(_endpoint(row, port=port or 0) for row in rows if row.get("addresses")),
    )


def _port(ports: list[Mapping[str, Any]]) -> int | None:
    numbered = [port for port in ports if isinstance(port.get("port"), int)]
    named = [port for port in numbered if port.get("name") == _PORT_NAME]
    return next((int(port["port"]) for port in named or numbered), None)


def _endpoint(row: Mapping[str, Any], *, port: int) -> Endpoint:
    conditions = row.get("conditions") or {}
    target = row.get("targetRef") or {}
    address = row["addresses"][0]
    return Endpoint(
        uid=target.get("uid") or address,
        name=target.get("name") or address,
        address=address,
        port=port,
        ready=conditions.get("ready") is not False,
        terminating=conditions.get("terminating") is True,
    )


class EndpointBook:
    """The endpoints of every Service, by slice, so that an event touches one slice alone."""

    def __init__(self, records: Iterable[SliceRecord] = ()) -> None:
        self.slices: dict[str, SliceRecord] = {}
        self._services: dict[tuple[str, str], set[str]] = {}
        for record in records:
            self.put(record)

    def put(self, record: SliceRecord) -> None:
        """Add or replace one slice."""
        self.remove(record.key)
        self.slices[record.key] = record
        self._services.setdefault((record.namespace, record.service), set()).add(record.key)

    def remove(self, key: str) -> None:
        """Forget one slice; an unknown key is fine."""
        record = self.slices.pop(key, None)
        if record is not None:
            service = (record.namespace, record.service)
            self._services[service].discard(key)
            if not self._services[service]:
                del self._services[service]

    def serving(self, *, namespace: str, service: str) -> tuple[Endpoint, ...]:
        """Return the endpoints that may get new requests, by pod name.

        While a pod moves between slices it may be in two; the one that is ready counts.
        """
        found: dict[str, Endpoint] = {}
        for key in sorted(self._services.get((namespace, service), ())):
            rows = self.slices[key].endpoints
            found |= {row.uid: row for row in rows if row.ready and not row.terminating}
        return tuple(sorted(found.values(), key=lambda row: (row.name, row.uid)))

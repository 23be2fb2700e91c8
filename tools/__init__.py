"""Generators that run beside the project and are never shipped with it."""

"""Trimtab's control plane: intents in, plans, children and explanations out."""

__version__ = "0.1.0"

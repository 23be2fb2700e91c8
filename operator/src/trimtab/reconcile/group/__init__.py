"""Sharing groups: one worker for several intents, its model set changed while it serves."""

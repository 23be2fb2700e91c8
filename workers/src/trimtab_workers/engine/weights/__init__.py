"""Checkpoints: what is on disk, how it is read, and how it lands in slabs. No pickles."""

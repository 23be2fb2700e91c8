"""The stock function runner: one parent that listens and meters, one child that runs the user's code."""

"""Slow tests of what the package promises, each with its figures (docs/promises.md)."""

"""What the package promises, measured: one file a promise, with its number.

The short form runs for each change (`make promises`). `make prove` runs the long one,
with the peers beside us, and rewrites `docs/promises.md` from what it saw.
"""

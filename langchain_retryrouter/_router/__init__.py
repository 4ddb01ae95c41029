"""What a router of foreign chat models has to know about them, as pure functions.

No provider's SDK is imported here: what one raises or sends is told by its shape, and
by the classes of the modules that somebody has imported already.
"""

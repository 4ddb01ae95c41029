"""Sixteen faults of a provider, and what a caller gets through them by which system."""

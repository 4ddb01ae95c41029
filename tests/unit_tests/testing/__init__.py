"""The gateway and the clock, tested from the outside."""

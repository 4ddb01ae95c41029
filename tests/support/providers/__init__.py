"""Scripted servers that speak the providers' own protocols, on the loopback."""

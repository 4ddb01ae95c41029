"""Many processes and a sick provider, with Redis and without."""

"""Key pools and affinity, beside the peers."""

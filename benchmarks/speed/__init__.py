"""What a call costs through this package and through its peers, in one run."""

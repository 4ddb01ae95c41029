"""What share of calls is answered while providers misbehave, how fast, and how truly."""

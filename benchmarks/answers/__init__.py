"""What share of calls is answered while providers misbehave, and how fast."""

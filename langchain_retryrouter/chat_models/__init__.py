"""Chat models: `GPTRouter`, over a gateway, and `RetryRouter`, over any others."""

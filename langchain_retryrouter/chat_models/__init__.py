"""Chat models: `GPTRouter`, over a gateway."""

"""Embeddings: `GPTRouterEmbeddings`, over a gateway."""

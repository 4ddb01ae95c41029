"""Embeddings: `GPTRouterEmbeddings`, over a gateway, and `EmbeddingsRouter`."""

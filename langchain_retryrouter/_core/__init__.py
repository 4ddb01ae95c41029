"""Everything this package decides, and nothing it does.

Rules of the room: standard library only; no asyncio, no sockets, no LangChain, no
tenacity; nothing here waits. Time and randomness are handed in, so every decision can
be replayed exactly. What comes in is data (`Failure`), what goes out is data
(`Decision`); `langchain_retryrouter._drive` is what acts on it.
"""

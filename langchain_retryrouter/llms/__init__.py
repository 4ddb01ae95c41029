"""LangChain LLMs, text in and text out, that retry where it helps and say so.

The module path mirrors langchain-community's: `langchain_retryrouter.llms.openai`.
"""

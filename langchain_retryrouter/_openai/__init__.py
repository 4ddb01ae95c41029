"""The OpenAI SDK, majors 2 and 3, as the model classes see it.

`wire` translates answers and chunks, `usage` adds up what they cost, `settings` says
what an SDK client is made of (all pure); `failures` gives the SDK's exceptions their
meaning; `clients` makes the SDK clients and sends. The room knows no retry, no run
manager and no LangChain model.
"""

"""The OpenAI API through the openai SDK: clients, requests, answers and errors.

`client` shares SDK clients and sends one request, `protocol` reads what comes back, and
`errors` names what goes wrong. Nothing in this package retries.
"""

"""The GPTRouter gateway: its words (`wire`), and its sockets (`transport`).

The protocol is that of the public gateway as it was seen on the wire; the tests replay
its captures byte by byte.
"""

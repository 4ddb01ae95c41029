"""The GPTRouter gateway: its event stream (`sse`), its words (`wire`), its wires (`transport`).

The protocol is that of the public gateway as it was seen on the wire; the tests replay
its captures byte by byte.
"""

"""One module (or package) per API that the gateway speaks; each knows its wire format and the desk, nothing else.

A dialect has `DIALECT`, a `gateway.dialect.Dialect`, and `callback(registry, sending)`, which
`callbacks/forms.py` finds by the dialect's name.
"""

"""The HTTP reverse proxy: visitor connection, exchange, stream. Knows no tunnel, only a `StreamOpener`."""

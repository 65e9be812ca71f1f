"""tunnelgw: a self-hosted reverse-proxy tunnel gateway."""

__version__ = "0.1.0"

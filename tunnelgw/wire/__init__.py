"""The tunnel protocol, without I/O: bytes and times in, bytes and deadlines out (SPEC.md)."""

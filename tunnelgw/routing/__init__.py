"""From a name, a path or a ClientHello to a route, without I/O."""

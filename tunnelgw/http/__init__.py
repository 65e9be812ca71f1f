"""HTTP messages, without I/O: heads, fields, bodies, the HTTP/1.1 and HTTP/2 codecs."""

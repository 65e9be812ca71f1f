"""Targets of services: one text that says where a service is and how to speak with it.

Strict, because a connector dials what this accepts: unknown schemes, passwords, paths that nobody would see and
addresses that hand out cloud credentials are refused here. Invariant: a `Target` names exactly one place to dial.
"""

from __future__ import annotations

import difflib
import ipaddress
import re

from tunnelgw.access import reach
from tunnelgw.config.model import Target
from tunnelgw.config.names import Bad, machine, port_number, printable, split_endpoint

FORMS = "http:// https:// h2c:// tcp:// tls:// udp:// unix:/path http+unix:/path file:/folder, or a port number"
_DEFAULT_PORTS = {"http": 80, "https": 443, "h2c": 80, "tls": 443, "tcp": 0, "udp": 0}
_LOCAL = ("unix", "http+unix", "file")
# Metadata services of cloud providers answer any process on the machine with its credentials (SSRF).
_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata"})
# sun_path is 108 bytes with its NUL.
_UNIX_PATH_BYTES = 107


def parse_target(value: int | str) -> Target:
    """The target in normal form. Raises `Bad`."""
    if isinstance(value, int):
        return Target("http", "127.0.0.1", port_number(str(value)))
    text = value.strip()
    shown = printable(value)
    if not text:
        raise Bad(f"is empty; write one of {FORMS}")
    if re.fullmatch(r"[0-9]+", text):
        return Target("http", "127.0.0.1", port_number(text))
    if re.search(r"[\x00-\x20\x7f\\]", text) and not text.lower().startswith(tuple(f"{name}:" for name in _LOCAL)):
        raise Bad(f'"{shown}" has a space, backslash or control character')
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if not colon or (scheme not in _DEFAULT_PORTS and scheme not in _LOCAL and not rest.startswith("//")):
        raise Bad(_without_scheme(text))
    if scheme in _LOCAL:
        return _local(scheme, rest, shown)
    if scheme not in _DEFAULT_PORTS:
        near = difflib.get_close_matches(scheme, [*_DEFAULT_PORTS, *_LOCAL], n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"possible are {FORMS}"
        raise Bad(f'"{printable(scheme)}" is not a scheme of a target; {hint}')
    if not rest.startswith("//"):
        raise Bad(f'"{shown}": write "{scheme}://" and then the host')
    return _remote(scheme, rest[2:], shown)


def _without_scheme(text: str) -> str:
    """What to say where the scheme is missing."""
    if re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+)(:[0-9]+)?/?", text):
        bare = text.rstrip("/")
        return f'"{printable(text)}" has no scheme; did you mean "http://{bare}" or "tcp://{bare}"?'
    if text.startswith("/"):
        return f'"{printable(text)}" has no scheme; did you mean "file:{printable(text)}" or "unix:{printable(text)}"?'
    return f'"{printable(text)}" is not a target; possible are {FORMS}'


def _local(scheme: str, rest: str, shown: str) -> Target:
    """unix:/path, http+unix:/path and file:/folder; `scheme:///path` means the same."""
    path = rest[2:] if rest.startswith("///") else rest
    if not path.startswith("/") or path.startswith("//"):
        raise Bad(f'"{shown}": write an absolute path, as in "{scheme}:/srv/name"')
    if "\x00" in path or "\n" in path or "\r" in path:
        raise Bad(f'"{shown}" has a control character')
    if ".." in path.split("/"):
        raise Bad(f'"{shown}" has a ".." segment; write the path without it')
    if scheme != "file":
        if path.endswith("/"):
            raise Bad(f'"{shown}" is a folder; name the socket in it')
        if len(path.encode("utf-8", "surrogatepass")) > _UNIX_PATH_BYTES:
            raise Bad(f'"{shown}" is too long for a unix socket (at most {_UNIX_PATH_BYTES} bytes)')
    return Target(scheme, path=path.rstrip("/") or "/")


def _remote(scheme: str, rest: str, shown: str) -> Target:
    """The schemes that dial a host and a port."""
    found = re.search(r"[/?#]", rest)
    authority, tail = (rest[: found.start()], rest[found.start() :]) if found else (rest, "")
    if "@" in authority:
        # The text may hold a password: it is not repeated.
        raise Bad("has a user or password in it; a target is only a host and a port")
    if tail not in ("", "/"):
        if scheme in ("tcp", "tls", "udp"):
            raise Bad(f'"{shown}": a {scheme} target has no path; leave out "{printable(tail)}"')
        raise Bad(
            f'"{shown}": a target has no path or query; leave out "{printable(tail)}" '
            '(the public path is path = "/...", and the target sees what the visitor asked for)'
        )
    host, port_text = split_endpoint(authority)
    if not host:
        raise Bad(f'"{shown}" names no host')
    host = machine(host)
    if is_metadata(host):
        raise Bad(f'"{shown}" is a cloud metadata address, which hands out credentials; it cannot be a target')
    if _is_unspecified(host):
        raise Bad(f'"{shown}": {host} is an address to listen on; write 127.0.0.1 or the address of the machine')
    if not port_text and (authority.endswith(":") or not _DEFAULT_PORTS[scheme]):
        raise Bad(f'"{shown}" names no port; write "{scheme}://{authority.rstrip(":")}:PORT"')
    port = port_number(port_text) if port_text else _DEFAULT_PORTS[scheme]
    return Target(scheme, host, port)


def _is_unspecified(host: str) -> bool:
    """True for 0.0.0.0 and ::."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_metadata(host: str) -> bool:
    """As `reach.is_metadata`, or a name that means it; the connector asks again with what a name resolved to."""
    try:
        return reach.is_metadata(host)
    except ValueError:
        return host in _METADATA_NAMES

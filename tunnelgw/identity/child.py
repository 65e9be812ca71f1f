"""Making certificates in a short-lived process: `python -m tunnelgw.identity.child`.

An edge that imported cryptography would keep 10 MB for the rest of its life, for something it does a few times a year.

    hosts STORE FOLDER HOST...   a pair of files for each host, signed by the visitors' authority
    call STORE                   JSON on stdin: {"call": "accept", "invitation", "secret", "csr"} ,
                                 {"call": "renew", "name", "csr"}, {"call": "prepare", "starting"} or
                                 {"call": "rotate", "seconds"}; the answer on stdout:
                                 {"ok": true, ...} or {"ok": false, "kind": "refused|remote|local", "reason", "text"}

Secrets go over stdin, never into arguments, which every user of the machine can read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tunnelgw.config.hardening import harden
from tunnelgw.errors import Refused, RemoteError, TunnelgwError
from tunnelgw.identity.ca import Authorities
from tunnelgw.identity.registry import Registry
from tunnelgw.store.sqlite import SqliteStore


def main(arguments: list[str]) -> int:
    """The exit code; errors as one line on stderr (`hosts`) or as an answer (`call`)."""
    command, store = arguments[0], SqliteStore(Path(arguments[1]))
    try:
        if command == "hosts":
            for host in arguments[3:]:
                Authorities(store).host_files(Path(arguments[2]), [host])
        else:
            sys.stdout.write(json.dumps(answer(store, json.load(sys.stdin))))
    finally:
        store.close()
    return 0


def answer(store: SqliteStore, request: dict[str, Any]) -> dict[str, Any]:
    """One call; a `TunnelgwError` becomes its description."""
    registry = Registry(store)
    try:
        if request["call"] == "prepare":
            authorities = Authorities(store)
            authorities.advance(starting=request["starting"])
            authorities.edge()
            return {"ok": True, "pin": authorities.tunnels().pin}
        if request["call"] == "rotate":
            registry.rotate_authority(request["seconds"])
            return {"ok": True}
        if request["call"] == "accept":
            accepted = registry.accept(request["invitation"], request["secret"], request["csr"])
        else:
            accepted = registry.renew(request["name"], request["csr"], shown=request.get("shown", ""))
    except TunnelgwError as error:
        kind = "refused" if isinstance(error, Refused) else "remote" if isinstance(error, RemoteError) else "local"
        return {"ok": False, "kind": kind, "reason": error.reason.label, "text": error.text}
    return {
        "ok": True,
        "name": accepted.connector.name,
        "role": accepted.connector.role,
        "certificate": accepted.certificate,
        "authority": accepted.authority,
    }


if __name__ == "__main__":
    harden()
    try:
        sys.exit(main(sys.argv[1:]))
    except TunnelgwError as error:
        sys.exit(error.text)

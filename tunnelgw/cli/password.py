"""`--basic` of `tunnelgw http`: who may come in, as lines of a password file.

A password that was given as an argument could be read in the list of processes for as long as the command runs, so it
is replaced by its hash, and the command executes itself anew. Invariant: no password comes out, only bcrypt hashes.
"""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import Namespace

COST = 10  # 50 ms: the edge asks again for each visitor now and then
_MOST_BYTES = 72  # bcrypt reads no more
_FILE_BYTES = 65536
HASHED = "TUNNELGW_BASIC"  # the descriptor of a pipe with the line, in the environment of the command's second life


def basic_users(arguments: Namespace) -> list[str]:
    """Lines of `name:bcrypt hash`; none if nobody is asked. LocalError (exit 2)."""
    basic, file = getattr(arguments, "basic", None), getattr(arguments, "basic_file", None)
    handed_over = os.environ.pop(HASHED, "")
    if file is not None:
        return _of_file(file)
    if basic is None:
        return []
    name, colon, password = basic.partition(":")
    if not name or not name.isprintable():
        raise LocalError("--basic: write USER:PASS, or USER to be asked for the password", exit_code=2)
    if handed_over and not colon:
        with open(int(handed_over), encoding="utf-8") as pipe:
            return [pipe.read()]
    line = hashed(name, password if colon else _ask(name))
    if colon:
        _again_without(basic, name, line)
    return [line]


def hashed(name: str, password: str) -> str:
    """A line of a password file. LocalError for a password that bcrypt cannot tell from others."""
    import bcrypt

    secret = password.encode()
    if not secret or len(secret) > _MOST_BYTES or b"\0" in secret:
        raise LocalError(f"--basic: a password has 1 to {_MOST_BYTES} bytes", exit_code=2)
    return f"{name}:{bcrypt.hashpw(secret, bcrypt.gensalt(COST)).decode()}"


def _ask(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline(1024).rstrip("\r\n")
    password = getpass.getpass(f"password for {name}: ")
    if getpass.getpass("the same again: ") != password:
        raise LocalError("--basic: the two are not the same", exit_code=2)
    return password


def _of_file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_FILE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text"
        raise LocalError(f"--basic-file: cannot read {path}: {cause}", exit_code=2) from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise LocalError(f"--basic-file: {path} names nobody; add a line with: htpasswd -B {path} NAME", exit_code=2)
    return lines


def _again_without(basic: str, name: str, line: str) -> None:
    """Execute this very command with the name in place of name and password; the hash goes through a pipe."""
    words = [name if word == basic else word for word in sys.argv[1:]]
    words = [f"--basic={name}" if word == f"--basic={basic}" else word for word in words]
    reader, writer = os.pipe()
    os.write(writer, line.encode())
    os.close(writer)
    os.set_inheritable(reader, True)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-Pm", "tunnelgw", *words], {**os.environ, HASHED: str(reader)})  # noqa: S606 - ourselves

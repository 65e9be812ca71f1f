"""Password files and Basic credentials."""

from __future__ import annotations

import base64

import bcrypt
import pytest

from tunnelgw.access.passwords import check_user, credentials, users_of

LINE = "ann:" + bcrypt.hashpw(b"secret", b"$2b$04$" + b"abcdefghijklmnopqrstuu").decode()
TAIL = "a" * 53


@pytest.mark.parametrize("line", [LINE, f"b.c@d:$2y$05${TAIL}", f"ü:$2a$10${TAIL}", f"x:$2b$14${TAIL}"])
def test_lines_of_htpasswd(line: str) -> None:
    check_user(line)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ann", "htpasswd -nB"),
        (":x", "not name:hash"),
        ("ann:", "not name:hash"),
        ("ann:secret", "a plain password"),
        ("ann:$apr1$abc$def", "MD5"),
        ("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
        ("ann:$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", "argon2"),
        (f"ann:$2x$05${TAIL}", "another kind"),
        (f"ann:$2b$05${TAIL}x", "another kind"),
        (f"ann:$2b$15${TAIL}", "cost at 15"),
        (f"ann:$2b$03${TAIL}", "cost at 3"),
        (f"ann:$2b$\u0661\u0662${TAIL}", "another kind"),
        (f"{'a' * 65}:$2b$05${TAIL}", "name"),
        (f"a\x07:$2b$05${TAIL}", "name"),
    ],
)
def test_other_lines_are_refused_and_not_shown(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("(", "")) as raised:
        check_user(line)
    assert "secret" not in str(raised.value)


def basic(text: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Basic " + base64.b64encode(text))]


def test_credentials() -> None:
    assert credentials(basic(b"ann:se:cret")) == (basic(b"ann:se:cret")[0][1], b"ann", b"se:cret")
    assert credentials([(b"authorization", b"bASIC  " + base64.b64encode(b":"))]) is not None
    for fields in (
        [],
        basic(b"ann"),
        [*basic(b"a:b"), *basic(b"a:b")],
        [(b"authorization", b"Bearer abc")],
        [(b"authorization", b"Basic a:b")],
        [(b"authorization", b"Basic \xff")],
        basic(b"a:" + b"x" * 2000),
    ):
        assert credentials(fields) is None


def test_users_by_name() -> None:
    assert users_of((LINE,)).hashes == {b"ann": LINE[4:].encode()}

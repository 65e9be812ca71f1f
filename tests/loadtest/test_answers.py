"""Answers are checked to the last byte, however they come in parts."""

from __future__ import annotations

import pytest

from loadtest.scenes.answers import WrongAnswerError, complete, request

HEAD = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 5\r\nDate: now\r\n\r\n"


def test_an_answer_is_complete_with_its_last_byte_only():
    whole = HEAD + b"hello"
    assert [complete(whole[:end], b"hello") for end in range(len(whole) + 1)] == [False] * len(whole) + [True]


def test_field_names_have_no_case():
    assert complete(b"HTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhello", b"hello")


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"hellO",
        HEAD + b"hello!",
        HEAD.replace(b": 5", b": 6"),
        HEAD.replace(b"Content-Length: 5\r\n", b""),
        HEAD.replace(b"200 OK", b"503 Service Unavailable") + b"hello",
        HEAD.replace(b"Content-Length", b"X-Content-Length") + b"hello",
        b"x" * 70_000,
    ],
)
def test_another_answer_is_an_error(data):
    with pytest.raises(WrongAnswerError):
        complete(data, b"hello")


def test_a_request_names_its_host():
    assert request("a.example.com", "/small") == b"GET /small HTTP/1.1\r\nHost: a.example.com\r\n\r\n"

"""What fuzzing found worth keeping, replayed without a fuzzer; and some random programs beside it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS = (
    "wire_session", "wire_pair", "hello_greeting", "clienthello_parse", "proxyproto_header", "protocols_match",
    "http/http_request", "http/http_response", "http/http_fields", "http/http_frames",
)  # fmt: skip
CORPUS = Path(__file__).parent.parent / "corpus"


def target(name: str) -> Callable[[bytes], None]:
    one: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{name.rpartition('/')[2]}").one
    return one


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    one = target(name)
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        try:
            one(path.read_bytes())
        except BaseException as error:
            error.add_note(f"input: {path}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_random_programs(name: str) -> None:
    one = target(name)

    @settings(max_examples=150)
    @given(st.binary(min_size=1, max_size=300))
    def run(data: bytes) -> None:
        one(data)

    run()

"""Every test of the gateway runs with both HTTP/1 codecs."""

from __future__ import annotations

import pytest

from tests.gateway.fakes import World
from tunnelgw.gateway import http1, upstream1
from tunnelgw.http import h1, reference


@pytest.fixture(params=["httptools", "h11"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    chosen = h1 if request.param == "httptools" else reference
    monkeypatch.setattr(http1, "parse_request_head", chosen.parse_request_head)
    monkeypatch.setattr(upstream1, "parse_response_head", chosen.parse_response_head)
    return str(request.param)


@pytest.fixture
def world(codec: str) -> World:
    return World()

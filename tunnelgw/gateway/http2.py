"""stub"""

from __future__ import annotations
import asyncio


class Http2Visitor(asyncio.Protocol):
    def __init__(self, *a):
        pass

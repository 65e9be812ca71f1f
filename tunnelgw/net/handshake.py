"""A TLS handshake as server on an accepted socket, and what is said to a peer that is not worth one.

Invariant: the loop owns the socket from the call on, whatever comes of it; a peer's failure is an answer, not an error.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tunnelgw.net import tls
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tunnelgw.net.ledger import CountedSocket

log = logging.getLogger(__name__)


async def shake_hands(
    sock: CountedSocket, protocol: asyncio.Protocol, context: ssl.SSLContext, *, failed: Callable[[Reason], None]
) -> asyncio.Transport | None:
    """TLS as server on an accepted socket; None (and `failed` called) when the peer did not get through it.

    The loop owns the socket from here on, also after a failure: it has closed, or is about to close, the descriptor.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=context,
            ssl_handshake_timeout=tls.HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=tls.SHUTDOWN_SECONDS,
        )
    except OSError as error:  # ssl.SSLError, a reset, ConnectionAbortedError at the timeout: the peer's doing
        log.debug("TLS handshake with %s failed: %s", sock.peer[0], error)
        failed(Reason.HANDSHAKE_FAILED)
        return None
    finally:
        sock.settle()
    return transport

"""What `status` reports: the dicts that travel over the control socket, and that `--json` prints as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

from tunnelgw.private.pins import Keys

if TYPE_CHECKING:
    from tunnelgw.identity.rotation import AuthorityState


class PublicAddress(TypedDict):
    """One public address of the edge, and a connector that serves it: members of a group have one entry each.

    address: "https://jellyfin.example.com/" or "tcp://edge.example.com:2222". state: of its connector. since: when it
    was claimed (Unix seconds). certificate_expiry: Unix seconds, 0.0 where the edge holds no certificate for it.
    certificate_problem: why there is none, or no newer one; empty if all is well.
    tls: "home" where TLS ends at home, with a certificate of which the edge knows nothing; else "".
    group, priority: as in the connector's file; "" without one. health: "unhealthy" if the connector says that the
    target does not work, "failing" if the edge leaves this member out because its target failed several times, else "".
    """

    address: str
    service: str
    connector: str
    state: str
    since: float
    certificate_expiry: float
    certificate_problem: str
    tls: str
    group: str
    priority: int
    health: str


class ConnectorState(TypedDict):
    """One connector that has joined; state is "up", "detached" (no link, still resumable), "away" or "revoked"."""

    name: str
    role: str
    state: str
    since: float
    tunnels: int
    rtt: float
    address: str
    certificate_expiry: float
    grant: dict[str, list[str]]


class VisitorState(ConnectorState):
    """One visiting machine; state is "up", "detached", "away" or "revoked"; tunnels: one for each process that visits.

    streams: private streams that are open.
    """

    streams: int


class PrivateService(TypedDict):
    """One private service, and the state of its connector."""

    service: str
    connector: str
    state: str


class RefusedService(TypedDict):
    """One service that is refused, as a whole or `partly`; reason is a label, hint a command that would allow it."""

    service: str
    connector: str
    reason: str
    message: str
    hint: str
    partly: bool


class Invitation(TypedDict):
    """One invitation that nobody used yet; expires is in Unix seconds."""

    name: str
    role: str
    expires: float


class EdgeStatus(TypedDict):
    """`tunnelgw edge status --json`."""

    running: bool
    version: str
    domain: str
    address: str
    authority: AuthorityState
    addresses: list[PublicAddress]
    private_services: list[PrivateService]
    refused_services: list[RefusedService]
    connectors: list[ConnectorState]
    visitors: list[VisitorState]
    invitations: list[Invitation]


class TunnelState(TypedDict):
    """One tunnel of a connector: to which worker of the edge, since how many seconds it is up.

    datagrams_dropped: on the way to the edge, by the present session.
    """

    worker: int
    state: str
    seconds: float
    rtt_seconds: float
    streams: int
    resumes: int
    datagrams_dropped: int
    error: str


class VisitState(Keys):
    """One edge where this machine is a visitor; name: ours there. certificate_expires: Unix seconds."""

    address: str
    name: str
    certificate_expires: float


class JoinedEdgeState(Keys):
    """One edge of a connector; name: ours there. error: why it is not up. certificate_expires: Unix seconds."""

    address: str
    name: str
    domain: str
    state: str
    error: str
    certificate_expires: float
    tunnels: list[TunnelState]


class ServiceState(TypedDict):
    """One declared service; state is "accepted", "partly", "refused" or "waiting" (no answer yet).

    partly: at these addresses, while others that it names were refused (reason, message, hint).

    health: of a target that is checked: "healthy", or what is wrong with it.
    tls "home": TLS ends in the connector; certificate_expires: Unix seconds, 0.0 while there is none.
    temporary: shared by a command, for so many seconds more; None: until it ends.
    """

    name: str
    target: str
    state: str
    addresses: NotRequired[list[str]]
    reason: NotRequired[str]
    message: NotRequired[str]
    hint: NotRequired[str]
    tls: NotRequired[str]
    certificate_expires: NotRequired[float]
    certificate_error: NotRequired[str]
    health: NotRequired[str]
    private: NotRequired[bool]
    temporary: NotRequired[bool]
    seconds_left: NotRequired[float | None]


class ConnectorStatus(TypedDict):
    """`tunnelgw status --json`; the running connector adds more keys.

    acme_account: URL of the account that orders certificates of services with `tls = "home"`; "" where none does.
    """

    running: bool
    version: str
    edges: list[JoinedEdgeState]
    services: list[ServiceState]
    acme_account: NotRequired[str]
    visits: NotRequired[list[VisitState]]

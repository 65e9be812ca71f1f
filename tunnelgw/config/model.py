"""What edge.toml and connector.toml mean: frozen values, every one of them already checked.

`load.py` is the only maker of these for files; code that needs none (the demo, tests, `tunnelgw http`) builds them
directly. Field names are the keys of the files. Networks are kept as normalised text (`192.0.2.0/24`), hosts in lower
case as A-labels, paths absolute. Invariant: a value that exists can be used; nothing here needs a further check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.secret import Secret

_KINDS = {
    "http": "http",
    "https": "http",
    "http+unix": "http",
    "file": "http",
    "h2c": "h2c",
    "tcp": "tcp",
    "unix": "tcp",
    "tls": "tls",
    "udp": "udp",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port.

    host: a name (lower case) or an address; an IPv6 address without brackets.
    port: 0 to 65535; 0 (any free port) only where something listens.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PortRange:
    """Public ports `first` to `last`, both included; one port where they are equal."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last


@dataclass(frozen=True, slots=True)
class Target:
    """Where a service really is, as the connector reaches it. `str(target)` is its normal form.

    scheme: http, https, h2c, tcp, tls, udp, unix, http+unix or file.
    host, port: for the schemes that dial; a name is resolved at each dial.
    path: the socket of unix and http+unix, the folder of file; absolute.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def kind(self) -> str:
        """What the bytes of a stream are: "http", "h2c", "tcp", "tls" or "udp"."""
        return _KINDS[self.scheme]

    @property
    def is_http(self) -> bool:
        """True where the edge speaks HTTP to visitors for this target."""
        return self.kind in ("http", "h2c")

    def __str__(self) -> str:
        if self.path:
            return f"{self.scheme}:{self.path}"
        return f"{self.scheme}://{Endpoint(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """`health` of a service: how the connector finds out whether its target works.

    path: what is asked for, of HTTP targets; others are only connected to.
    interval: seconds between two checks. threshold: so many in a row change what is thought of the target.
    expect: the status that is right; 0: any below 500.
    """

    path: str = "/"
    interval: float = 5.0
    threshold: int = 2
    expect: int = 0


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One service of a connector: `[services.NAME]`.

    name: DNS label; the default host is `<name>.<domain of the edge>`.
    target: where it is at home.
    host: public host names, or `*.example.com`; empty: the default host, or none for a service with `port`.
    path: prefix of whole segments; "/" is everything. strip_path: the target does not see it.
    port: public TCP or UDP ports at the edge; a range maps one to one from the target's port on.
    response_seconds: until the first byte of a response.
    plain_http: serve on port 80 too, without redirect.
    verify: check the certificate of an https target.
    proxy_protocol: "", "v1" or "v2": tell the target the visitor's address; for udp "v2", "v2-first" or "spp".
    allow_from: networks of visitors; empty: everybody. The edge enforces it.
    listing: a file target lists folders that have no index.html.
    group: connectors that name the same one serve the service together. priority: lower ones are preferred.
    affinity: "none", "cookie" or "address": what keeps a visitor at one of them. health: how the target is checked.
    private: no public address. tls: "home" (TLS ends in the connector) or "".
    protocol: "minecraft", "postgres", "mysql" or "": several hosts share one port.
    transparent: the target sees the visitor's own address.
    basic_auth_file: who may come in, and users: its lines, as they were when the configuration was read.
    """

    name: str
    target: Target
    host: tuple[str, ...] = ()
    path: str = "/"
    strip_path: bool = False
    port: tuple[PortRange, ...] = ()
    response_seconds: float = 60.0
    plain_http: bool = False
    verify: bool = True
    proxy_protocol: str = ""
    allow_from: tuple[str, ...] = ()
    listing: bool = False
    group: str = ""
    priority: int = 0
    affinity: str = "none"
    health: HealthConfig | None = None
    private: bool = False
    tls: str = ""
    protocol: str = ""
    transparent: bool = False
    basic_auth_file: Path | None = None
    users: tuple[str, ...] = field(default=(), repr=False)

    def target_port(self, public_port: int) -> int:
        """The target's port for a public port: the same distance into the range. 0 if the port is not ours."""
        for ports in self.port:
            if public_port in ports:
                return self.target.port + public_port - ports.first
        return 0


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """connector.toml.

    path: the file this came from.
    edge: edges to serve; empty: every edge that was joined.
    state_dir: identities and the control socket.
    networks: what joined visitors with a grant may reach. exit: may be an exit node.
    services: in the file's order.
    invitation, invitation_file: joins where there is no identity yet (read only then; the file may vanish after).
    tls, acme: certificates of services with `tls = "home"`, as in edge.toml; "self-signed" is not for homes.
    """

    path: Path
    state_dir: Path
    edge: tuple[Endpoint, ...] = ()
    networks: tuple[str, ...] = ()
    exit: bool = False
    services: tuple[ServiceConfig, ...] = ()
    invitation: Secret | None = None
    invitation_file: Path | None = None
    tls: TlsConfig = field(default_factory=lambda: TlsConfig("acme"))
    acme: AcmeConfig = field(default_factory=lambda: AcmeConfig())

    @property
    def ends_tls(self) -> bool:
        """Whether TLS of any service ends here."""
        return any(service.tls == "home" for service in self.services)

    @property
    def files(self) -> list[Path]:
        """Every file whose change is a change of the configuration."""
        passwords = {service.basic_auth_file for service in self.services if service.basic_auth_file is not None}
        return [self.path, *sorted(passwords)]

    def service(self, name: str) -> ServiceConfig | None:
        """The service of that name."""
        for service in self.services:
            if service.name == name:
                return service
        return None


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A certificate chain and its key, PEM files; relative paths are beside the configuration file."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """`[tls]`: where certificates for visitors come from, and what they are told.

    issuer: "files" (the certificates below), "self-signed" (the edge's own visitor CA) or "acme".
        Default: "files" where certificates are given, else "self-signed".
    certificates: for "files"; picked by the names in them.
    hsts_seconds: browsers use https alone for a host for so long (Strict-Transport-Security); 0: they are told nothing.
    """

    issuer: str = "self-signed"
    certificates: tuple[CertificateFiles, ...] = ()
    hsts_seconds: int = 0

    @property
    def hsts(self) -> bytes:
        """The value of Strict-Transport-Security; empty for none."""
        return b"max-age=%d" % self.hsts_seconds if self.hsts_seconds else b""


@dataclass(frozen=True, slots=True)
class AcmeDnsConfig:
    """`dns` in `[acme]`: how dns-01 is answered, by a program (hook) or by updates (server).

    hook: the program and its first arguments; `present|cleanup NAME VALUE` follow. hook_seconds: its time limit.
    server: where updates (RFC 2136) go. zone: "" asks the server. key_name: of the TSIG key, "" for none; key: base64;
    key_file: the same in a file; algorithm: of the key.
    wait_seconds: after a record was added; with `check`, at most, until each of these servers knows it.
    """

    hook: tuple[str, ...] = field(default=(), repr=False)  # an operator may put a token into its arguments
    hook_seconds: float = 120.0
    server: Endpoint | None = None
    zone: str = ""
    key_name: str = ""
    key: Secret | None = None
    key_file: Path | None = None
    algorithm: str = "hmac-sha256"
    wait_seconds: float = 0.0
    check: tuple[Endpoint, ...] = ()

    def as_job(self) -> dict[str, object]:
        """For the process that orders certificates; the only place where the key is revealed."""
        return {
            "hook": list(self.hook),
            "hook_seconds": self.hook_seconds,
            "server": (self.server.host, self.server.port) if self.server is not None else None,
            "zone": self.zone,
            "key_name": self.key_name,
            "key": self.key.reveal() if self.key is not None else "",
            "key_file": str(self.key_file) if self.key_file is not None else "",
            "algorithm": self.algorithm,
            "wait_seconds": self.wait_seconds,
            "check": [(server.host, server.port) for server in self.check],
        }


@dataclass(frozen=True, slots=True)
class AcmeConfig:
    """`[acme]`: the account that orders certificates, and how.

    directory: URL of the ACME server. email: for expiry notices. ca_file: to trust a private server.
    challenge: "auto", or the one kind to use. dns: how dns-01 is answered; None: it is not.
    wildcard: one certificate for the domain and `*.<domain>`, instead of one for each host below it.
    eab_kid, eab_hmac_file: for servers that want an account made beforehand (external account binding).
    profile: of the server's, for example "shortlived". preferred_chain: common name of the root to lead to.
    """

    directory: str = "https://acme-v02.api.letsencrypt.org/directory"
    email: str = ""
    ca_file: Path | None = None
    challenge: str = "auto"
    dns: AcmeDnsConfig | None = None
    wildcard: bool = False
    eab_kid: str = ""
    eab_hmac_file: Path | None = None
    profile: str = ""
    preferred_chain: str = ""


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """`[limits]`: what one visitor may take.

    connections_per_address: open connections of one IPv4 address or IPv6 /64.
    request_head_bytes: request line and fields together. request_head_seconds: until they are complete.
    idle_seconds: between requests only.
    buffered_bytes: of everything that streams hold, received or to be sent, in all workers together.
    """

    connections_per_address: int = 1024
    request_head_bytes: int = 32768
    request_head_seconds: float = 10.0
    idle_seconds: float = 75.0
    buffered_bytes: int = 128 << 20


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """`[metrics]`: listen is where /metrics, /livez and /readyz are served; None: nowhere."""

    listen: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """`[admin]`: listen is where the REST API will be; accepted and not used yet."""

    listen: Endpoint | None = None


DEFAULT_LISTEN = (Endpoint("0.0.0.0", 443), Endpoint("::", 443))
DEFAULT_LISTEN_HTTP = (Endpoint("0.0.0.0", 80), Endpoint("::", 80))


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """edge.toml.

    path: the file this came from.
    domain: services get `<service>.<domain>` unless they say otherwise.
    address: what invitations carry.
    listen: visitors and tunnels. listen_http: redirects and routes in plain HTTP; empty: off.
    listen_is_default, listen_http_is_default: not in the file, so a family that the kernel lacks is skipped.
    port_bind: address of raw TCP and UDP ports.
    state_dir: the store, the CA keys and the control socket.
    workers: processes; "auto" in the file is the number of usable CPUs.
    trusted_proxies: networks whose forwarding fields and PROXY headers are believed.
    proxy_protocol: every peer on listen sends a PROXY header.
    resume_seconds: a tunnel without a link is kept this long.
    park_seconds: a request waits this long for its connector.
    access_log: "off", "text" or "json".
    """

    path: Path
    domain: str
    address: Endpoint
    state_dir: Path
    listen: tuple[Endpoint, ...] = DEFAULT_LISTEN
    listen_is_default: bool = False
    listen_http: tuple[Endpoint, ...] = DEFAULT_LISTEN_HTTP
    listen_http_is_default: bool = False
    port_bind: str = "::"
    workers: int = 1
    trusted_proxies: tuple[str, ...] = ()
    proxy_protocol: bool = False
    resume_seconds: float = 120.0
    park_seconds: float = 20.0
    access_log: str = "off"
    tls: TlsConfig = TlsConfig()
    acme: AcmeConfig = AcmeConfig()
    limits: LimitsConfig = LimitsConfig()
    metrics: MetricsConfig = MetricsConfig()
    admin: AdminConfig = AdminConfig()

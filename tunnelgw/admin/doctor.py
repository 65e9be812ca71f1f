"""What `tunnelgw doctor` looks at, hop by hop, in the order that bytes travel.

Each check dials for itself, with plain blocking sockets and a deadline, and does not believe the running process: a
user asks because something does not work. Invariant: a check never raises; whatever happens becomes its answer.
"""

from __future__ import annotations

import email.utils
import ipaddress
import os
import socket
import ssl
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.config.model import Endpoint
from tunnelgw.net import marked
from tunnelgw.net.tls import TUNNEL_ALPN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tunnelgw.config.model import ServiceConfig, Target

DIAL_SECONDS = 5.0
UDP_SECONDS = 0.5  # until a machine of the same network has said that nobody listens there
# Certificates are valid from an hour before they were made; beyond this a wrong clock begins to matter.
CLOCK_TOLERANCE_SECONDS = 60.0
EXPIRES_SOON_SECONDS = 7 * 86400.0
BBR_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_PROBE = "tunnelgw-doctor"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. advice: what to do, only where it failed."""

    name: str
    ok: bool
    text: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'}  {self.name}: {self.text}"
        return line if self.ok or not self.advice else f"{line}; {self.advice}"


def resolve(host: str, *, name: str = "DNS") -> tuple[Check, list[str]]:
    """Does the name have addresses?"""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        text = f"{host} does not resolve ({getattr(error, 'strerror', None) or error})"
        return Check(name, False, text, f"add an A or AAAA record for {host}, or check this machine's DNS"), []
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return Check(name, True, f"{host} is {', '.join(addresses)}"), addresses


def reach(address: str, port: int, *, name: str = "TCP") -> Check:
    """Does anything accept there?"""
    place = str(Endpoint(address, port))
    started = time.monotonic()
    try:
        with socket.create_connection((address, port), DIAL_SECONDS):
            return Check(name, True, f"{place} accepts ({(time.monotonic() - started) * 1000:.0f} ms)")
    except OSError as error:
        advice = "open the port in the VPS's firewall (and its provider's), and see that the edge runs"
        return Check(name, False, f"{place}: {_why(error)}", advice)


def shake_hands(address: str, port: int, *, server_name: str, context: ssl.SSLContext) -> Check:
    """Is it the edge of the pinned authority, and does it speak the tunnel protocol?"""
    place = str(Endpoint(address, port))
    name = "TLS"
    try:
        with (
            socket.create_connection((address, port), DIAL_SECONDS) as sock,
            context.wrap_socket(sock, server_hostname=server_name) as tls,
        ):
            if tls.selected_alpn_protocol() != TUNNEL_ALPN:
                advice = "another server owns that port; see the documentation on running beside a web server"
                return Check(name, False, f"{place} does not speak the tunnel protocol", advice)
            return Check(name, True, f"{place} is the edge itself ({tls.version()}, its own authority)")
    except ssl.SSLCertVerificationError as error:
        advice = "another server answers there, or the edge was made anew: then join it again"
        return Check(name, False, f"{place} shows a foreign certificate ({error.verify_message})", advice)
    except ssl.SSLError as error:
        advice = "another server answers there, or something in between breaks TLS"
        return Check(name, False, f"{place}: {error.reason or error}", advice)
    except OSError as error:
        return Check(name, False, f"{place}: {_why(error)}", "see the line above")


def clock(addresses: Sequence[str], *, host: str, port: int = 80) -> Check:
    """Compares this machine's clock with the edge's, by the Date of its answer on port 80."""
    for address in addresses:
        theirs = _date_of(address, host=host, port=port)
        if theirs is not None:
            difference = time.time() - theirs
            text = f"{abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} the edge"
            advice = "set this machine's clock, for example with: timedatectl set-ntp true"
            return Check("clock", abs(difference) <= CLOCK_TOLERANCE_SECONDS, text, advice)
    return Check("clock", True, "cannot be compared: the edge does not answer on port 80")


def _date_of(address: str, *, host: str, port: int) -> float | None:
    request = f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii", "replace")
    head = b""
    try:
        with socket.create_connection((address, port), DIAL_SECONDS) as sock:
            sock.sendall(request)
            while b"\r\n\r\n" not in head and len(head) < 16384:
                data = sock.recv(4096)
                if not data:
                    break
                head += data
    except OSError:
        return None
    for line in head.decode("latin-1").splitlines():
        if line.lower().startswith("date:"):
            try:
                return email.utils.parsedate_to_datetime(line.partition(":")[2].strip()).timestamp()
            except ValueError:
                return None
    return None


def certificate(
    expires: float, *, name: str = "certificate", renew: str = "", soon: float = EXPIRES_SOON_SECONDS
) -> Check:
    """Is it valid by this machine's clock, and for some time to come (`soon`: at least these seconds)?"""
    left = expires - time.time()
    if left <= 0:
        return Check(name, False, f"expired {-left / 86400:.1f} days ago", renew)
    if left < soon:
        return Check(name, False, f"expires in {left / 86400:.1f} days and was not renewed", renew)
    return Check(name, True, f"valid for {left / 86400:.0f} more days")


def home_certificate(service: Mapping[str, object]) -> Check:
    """Has a service whose TLS ends at home its own certificate?"""
    name = f"certificate of {service['name']}"
    expires, error = float(str(service["certificate_expires"])), str(service["certificate_error"])
    advice = "see the connector's log; the name must resolve to the edge, and port 443 must be open there"
    if not expires:
        return Check(name, False, error or "there is none yet", advice)
    return certificate(expires, name=name, renew=error or advice)


def orders(problem: str, *, name: str, kinds: Sequence[str]) -> Check:
    """A certificate that could not be ordered, and what the issuer needs."""
    if "dns-01" in kinds:
        advice = "see that the DNS settings in [acme] work"
    else:
        ports = " or ".join({"http-01": "80", "tls-alpn-01": "443"}[kind] for kind in kinds)
        advice = f"the issuer must reach this machine by that name on port {ports}: look at DNS, the firewall, listen"
    return Check(name, False, problem, f"{advice}; then run: tunnelgw edge certificate renew HOST")


def lossy_lines(allowed: Path = BBR_ALLOWED) -> Check:
    """May a program that is not root choose BBR? If not all works, but slowly where packets are lost: no failure."""
    name = "congestion control"
    try:
        if "bbr" in allowed.read_text().split():
            return Check(name, True, "BBR, wherever a line is long or full")
    except OSError:
        pass  # a container that hides it
    return Check(
        name, True, 'no BBR, so slow on lines that lose packets: see docs/install.md, "Lines that lose packets"'
    )


def private(path: Path) -> Check:
    """Is the folder of keys there, and closed to others?"""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        return Check("state", False, f"{path}: {error.strerror}", "check state_dir, and run this as its owner")
    if mode & 0o077:
        return Check("state", False, f"{path} is open to other users (mode {mode:o})", f"run: chmod 700 {path}")
    return Check("state", True, str(path))


def points_here(domain: str, edge_addresses: Sequence[str]) -> Check:
    """Do names under the domain lead to the edge?"""
    if domain == "localhost" or domain.endswith(".localhost"):
        return Check("wildcard DNS", True, f"names under {domain} mean this machine (RFC 6761)")
    probe = f"{_PROBE}.{domain}"
    check, addresses = resolve(probe, name="wildcard DNS")
    record = f"add a record: *.{domain} to the addresses of the edge"
    if not check.ok:
        return Check("wildcard DNS", False, f"names under {domain} do not resolve", record)
    if edge_addresses and not set(addresses) & set(edge_addresses):
        return Check("wildcard DNS", False, f"names under {domain} lead to {', '.join(addresses)}", record)
    return Check("wildcard DNS", True, f"names under {domain} lead to {', '.join(addresses)}")


def listening(endpoints: Sequence[Endpoint]) -> Iterator[Check]:
    """Does something accept on each address that the edge should listen on? One family is enough."""
    checks = []
    for endpoint in endpoints:
        host = endpoint.host
        if _unspecified(host):
            host = "::1" if ":" in host else "127.0.0.1"
        checks.append((endpoint, reach(host, endpoint.port, name="listening")))
    ports = {endpoint.port for endpoint, check in checks if check.ok}
    for endpoint, check in checks:
        # A kernel without IPv6 skips that listener by design.
        if check.ok or endpoint.port not in ports:
            advice = "the edge does not run, or another program is in its way: see its log"
            yield check if check.ok else Check("listening", False, check.text, advice)


def target(service: ServiceConfig) -> Check:
    """Does the local service accept connections?"""
    name = f"service {service.name}"
    where = service.target
    advice = f"start the program behind it, or correct: tunnelgw expose {service.name} TARGET"
    try:
        text = _dial_target(where, verify=service.verify)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        return Check(name, False, f"{where}: TLS failed ({why})", "verify = false accepts its own certificate")
    except (OSError, UnicodeError) as error:
        return Check(name, False, f"{where}: {_why(error)}", advice)
    return Check(name, True, f"{where} {text}")


def transparent(*, running: bool) -> Check:
    """Can targets see visitors' addresses? Of a connector that runs: is what it needs in place?"""
    name = "transparent"
    if running:
        if marked.is_kept() and marked.accepts_marks():
            return Check(name, True, f"answers with mark {marked.MARK:#x} stay on this machine")
        text = f"the routing of mark {marked.MARK:#x} or net.ipv4.tcp_fwmark_accept is gone"
        return Check(name, False, text, "something else changed it; restart the connector")
    if marked.may_set_up():
        return Check(name, True, "allowed to this user")
    return Check(name, False, "this user has not CAP_NET_ADMIN, which the connector needs", "see docs/transparent.md")


def _dial_target(where: Target, *, verify: bool) -> str:
    if where.scheme == "file":
        os.scandir(where.path).close()
        return "can be read"
    if where.path:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
            sock.settimeout(DIAL_SECONDS)
            sock.connect(where.path)
        return "accepts"
    if where.scheme == "udp":
        return _dial_udp(where)
    with socket.create_connection((where.host, where.port), DIAL_SECONDS) as sock:
        if where.scheme == "https":
            context = ssl.create_default_context()
            if not verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            context.wrap_socket(sock, server_hostname=where.host).close()
    return "accepts"


def _dial_udp(where: Target) -> str:
    """An empty datagram: nobody answers that, but the kernel of a machine where nobody listens says so."""
    refusal: OSError = ConnectionRefusedError()
    for family, kind, protocol, _, address in socket.getaddrinfo(where.host, where.port, type=socket.SOCK_DGRAM):
        try:
            with closing(socket.socket(family, kind, protocol)) as sock:
                sock.settimeout(UDP_SECONDS)
                sock.connect(address)
                sock.send(b"")
                sock.recv(1)
        except TimeoutError:
            return "is not refused (UDP: whether it answers cannot be told)"
        except OSError as error:  # `localhost` may mean either family
            refusal = error
        else:
            return "answers"
    raise refusal


def claim(service: str, answer: Mapping[str, object]) -> Check:
    """A service that the edge refused, whole or in part."""
    in_part = " in part" if answer.get("partly") or answer.get("state") == "partly" else ""
    advice = f"on the edge, run: {answer['hint']}" if answer.get("hint") else "see the edge's log, or choose others"
    return Check(f"service {service}", False, f"refused{in_part} by the edge: {answer['message']}", advice)


def tunnel(edges: Sequence[Mapping[str, object]], *, start: str) -> Iterator[Check]:
    """What the running connector says of its edges."""
    if not edges:
        yield Check("tunnel", False, "the connector runs and has joined no edge", "run: tunnelgw join INVITATION")
    for edge in edges:
        address, state = edge["address"], edge["state"]
        text = f"{address} is {state}" + (f" ({edge['error']})" if edge["error"] else "")
        yield Check("tunnel", state == "up", text, f"mend what failed above; if nothing did, see the log of: {start}")


def _unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {DIAL_SECONDS:g} s"
    return str(getattr(error, "strerror", None) or error)

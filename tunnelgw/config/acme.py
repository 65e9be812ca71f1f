"""`[acme]`: the account that orders certificates, and how names are proven.

Invariant: a configuration that comes out has a way to answer every challenge that it asks for.
"""

from __future__ import annotations

import base64
import binascii
import shutil
from typing import TYPE_CHECKING

from tunnelgw.config import values
from tunnelgw.config.model import AcmeConfig, AcmeDnsConfig
from tunnelgw.config.names import Bad, endpoint, host_name, printable
from tunnelgw.config.problems import WARNING, Section
from tunnelgw.config.secret import Secret, exposure

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.model import ConnectorConfig, EdgeConfig, Endpoint

HTTP, ALPN, DNS = "http-01", "tls-alpn-01", "dns-01"
# RFC 8945, 6: what every server speaks; MD5 and SHA-1 are not offered.
_ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512", "hmac-sha224")
_ASKED_PORTS = {HTTP: 80, ALPN: 443}  # where issuers look; the standard leaves no choice


def read_acme(section: Section, folder: Path) -> AcmeConfig:
    """The table; what needs other tables is checked by `check_acme`."""
    default = AcmeConfig()
    read_path = values.path_beside(folder)
    found = AcmeConfig(
        directory=section.get("directory", _https_url, default.directory),
        email=section.get("email", _email, ""),
        ca_file=section.get("ca_file", read_path, None),
        challenge=section.get("challenge", values.choice("auto", HTTP, ALPN, DNS), "auto"),
        dns=_dns(section.table("dns"), folder) if section.has("dns") else None,
        wildcard=section.get("wildcard", values.boolean, False),
        eab_kid=section.get("eab_kid", values.short_text, ""),
        eab_hmac_file=section.get("eab_hmac_file", read_path, None),
        profile=section.get("profile", values.short_text, ""),
        preferred_chain=section.get("preferred_chain", values.short_text, ""),
    )
    section.known.add("dns")
    section.finish()
    if bool(found.eab_kid) != (found.eab_hmac_file is not None):
        section.bad("", "has one of eab_kid and eab_hmac_file; the issuer gives both, and both are needed")
    for name, path in (("ca_file", found.ca_file), ("eab_hmac_file", found.eab_hmac_file)):
        if path is not None:
            _look_at(section, name, path, secret=name == "eab_hmac_file")
    return found


def check_acme(top: Section, config: EdgeConfig) -> None:
    """Rules between `[acme]` and the rest of edge.toml, where certificates come from there."""
    acme = config.acme
    section = Section(top.report, {}, ("acme",))
    if acme.dns is None and acme.challenge == DNS:
        section.bad("challenge", f'"{DNS}" needs dns: a hook, or a server for updates')
    if acme.wildcard and acme.dns is None:
        section.bad("wildcard", f"needs {DNS}: add dns, a hook or a server for updates")
    elif acme.wildcard and acme.challenge not in ("auto", DNS):
        section.bad("challenge", f'must be "{DNS}" or "auto" with wildcard = true: no other proves a wildcard')
    listening = {HTTP: config.listen_http, ALPN: config.listen}.get(acme.challenge)
    if listening is None:
        return
    port = _ASKED_PORTS[acme.challenge]
    if not listening:
        section.bad(
            "challenge", f'"{acme.challenge}" is asked on port {port}, and nothing listens: listen_http is empty'
        )
    elif port not in {item.port for item in listening}:
        text = f"the issuer asks on port {port}, where the edge does not listen: something must pass it on to here"
        section.bad("challenge", text, severity=WARNING)


def check_home(top: Section, config: ConnectorConfig) -> None:
    """As `check_acme`, for connector.toml: port 80 is the edge's, and a wildcard is the host of a service."""
    acme = config.acme
    section = Section(top.report, {}, ("acme",))
    if acme.challenge == HTTP:
        section.bad("challenge", f'"{HTTP}" is answered at the edge; at home it is "{ALPN}", or "{DNS}" with dns')
    elif acme.challenge == DNS and acme.dns is None:
        section.bad("challenge", f'"{DNS}" needs dns: a hook, or a server for updates')
    if acme.wildcard:
        section.bad("wildcard", 'is for edge.toml; here a service may have host = "*.example.com", with dns in [acme]')
    for service in config.services:
        for host in service.host if service.tls == "home" and acme.dns is None else ():
            if host.startswith("*."):
                text = f"a certificate for {host} needs {DNS}: set dns in [acme], or files in [tls]"
                top.report.add(("services", service.name, "host"), text)
        if service.group and service.tls == "home" and home_challenges(acme) != (DNS,):
            text = (
                f'with tls = "home": the issuer may reach another member; set dns in [acme] ({DNS}), or files in [tls]'
            )
            top.report.add(("services", service.name, "group"), text)


def home_challenges(acme: AcmeConfig) -> tuple[str, ...]:
    """The kinds of challenge that a connector can answer."""
    return (DNS,) if acme.challenge == DNS or (acme.dns is not None and acme.challenge == "auto") else (ALPN,)


def challenges(config: EdgeConfig) -> tuple[str, ...]:
    """The kinds of challenge that this edge can answer, in order of preference; never empty.

    One where the file names it. Else dns-01 if it is set up; else the kind whose port is ours, then the other one,
    since something in front may pass that on.
    """
    acme = config.acme
    if acme.challenge != "auto":
        return (acme.challenge,)
    if acme.dns is not None:
        return (DNS,)
    if not config.listen_http:
        return (ALPN,)
    ours = {item.port for item in config.listen}, {item.port for item in config.listen_http}
    return (HTTP, ALPN) if 443 not in ours[0] and 80 in ours[1] else (ALPN, HTTP)


def _dns(section: Section, folder: Path) -> AcmeDnsConfig:
    default = AcmeDnsConfig()
    seconds = values.seconds(0, 3600)
    found = AcmeDnsConfig(
        hook=section.get("hook", _command, ()),
        hook_seconds=section.get("hook_seconds", values.seconds(1, 3600), default.hook_seconds),
        server=section.get("server", _server, None),
        zone=section.get("zone", _zone, ""),
        key_name=section.get("key_name", _key_name, ""),
        key=section.get("key", _key, None),
        key_file=section.get("key_file", values.path_beside(folder), None),
        algorithm=section.get("algorithm", values.choice(*_ALGORITHMS), default.algorithm),
        wait_seconds=section.get("wait_seconds", seconds, default.wait_seconds),
        check=section.many("check", _server, single=True),
    )
    section.finish()
    if bool(found.hook) == (found.server is not None):
        section.bad("", "needs one of hook (a program) and server (for updates by RFC 2136)")
    elif found.hook and shutil.which(found.hook[0]) is None:
        text = f"{printable(found.hook[0])} is no program that this user can run; give its whole path, and chmod +x"
        section.bad("hook", text, severity=WARNING)
    keys = (found.key is not None) + (found.key_file is not None)
    if found.server is not None and (keys != 1 if found.key_name else keys):
        section.bad("", "needs key_name with one of key_file and key, or none of the three")
    if found.key_file is not None:
        _look_at(section, "key_file", found.key_file, secret=True)
    if found.check and not found.wait_seconds:
        section.bad("wait_seconds", "must say how long the servers in check may take, for example 120")
    return found


def _look_at(section: Section, name: str, path: Path, *, secret: bool) -> None:
    """Warn of a file that is not there, or of a secret that others may read."""
    try:
        text = exposure(path) if secret else ""
        path.stat()
    except OSError as error:
        text = f"{path} cannot be read ({error.strerror}); no certificate is ordered until it is there"
    if text:
        section.bad(name, text, severity=WARNING)


def _command(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else [value]
    if not words:
        raise Bad('must name a program, as in hook = ["/usr/local/bin/dns-hook"]')
    return tuple(values.short_text(word) for word in words)


def _server(value: object) -> Endpoint:
    return endpoint(values.text(value), default_port=53)


def _zone(value: object) -> str:
    return host_name(values.text(value), wildcard=False)


def _key_name(value: object) -> str:
    return values.short_text(value).rstrip(".").lower() + "."


def _key(value: object) -> Secret:
    text = values.text(value)
    try:
        if not base64.b64decode(text, validate=True):
            raise ValueError
    except (ValueError, binascii.Error):
        raise Bad("must be the key in base64, as in the server's configuration") from None
    return Secret(text)


def _https_url(value: object) -> str:
    text = values.short_text(value)
    if not text.startswith("https://") or " " in text or "@" in text:
        raise Bad(f'"{printable(text)}" must be a URL that begins with https://')
    return text


def _email(value: object) -> str:
    text = values.short_text(value)
    name, _, host = text.rpartition("@")
    if not name or "." not in host or " " in text:
        raise Bad(f'"{printable(text)}" is not a mail address')
    return text

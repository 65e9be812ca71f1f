"""Both files: defaults, every kind of target, and every problem at once with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelgw.config.acme import home_challenges
from tunnelgw.config.diff import diff_connector, diff_edge, restart_warning
from tunnelgw.config.load import ConfigError, check, load_connector, load_edge
from tunnelgw.config.model import Endpoint, HealthConfig, PortRange, Target
from tunnelgw.config.names import Bad
from tunnelgw.config.paths import config_path, default_state_dir
from tunnelgw.config.secret import Secret, read_secret
from tunnelgw.config.targets import is_metadata, parse_target
from tunnelgw.errors import LocalError

EDGE = """
domain = "Example.com."
address = "vps.example.com"
listen = ["127.0.0.1:8443", "[::1]:8443"]
listen_http = []
port_bind = "127.0.0.1"
state_dir = "state"
workers = "auto"
trusted_proxies = ["10.0.0.0/8", "192.0.2.1"]
proxy_protocol = true
resume_seconds = 30
park_seconds = 0.5
access_log = "json"
[acme]
email = "me@example.com"
dns = { hook = "/bin/secret-hook" }
[limits]
connections_per_address = 10
request_head_bytes = 8192
[metrics]
listen = "127.0.0.1:9150"
[admin]
listen = "localhost:9151"
"""

CONNECTOR = """
edge = ["edge.example.com", "b.example.com:8443"]
state_dir = "/var/lib/x"
networks = ["192.168.1.0/24", "10.0.0.5:22"]
exit = true
[services.jellyfin]
target = 8096
group = "media"
priority = 5
[services.wiki]
target = "http://wiki_1:3000"
host = ["Wiki.example.com", "*.example.org"]
path = "/wiki/"
strip_path = true
response_seconds = 600
plain_http = true
allow_from = ["192.168.0.0/16", "::1"]
[services.cloud]
target = "tls://10.0.0.5:443"
host = "cloud.example.com"
[services.ssh]
target = "tcp://127.0.0.1:22"
port = 2222
proxy_protocol = "v2"
[services.games]
target = "tcp://127.0.0.1:7000"
port = "30000-30100"
[services.shell]
target = "tcp://127.0.0.1:22"
host = "ssh.example.com"
[services.files]
target = "file:/srv/files"
listing = true
[services.nas]
target = "https://nas.lan"
verify = false
"""


def write(tmp_path: Path, text: str, name: str = "connector.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, name: str = "connector.toml") -> list[tuple[int, str, str]]:
    return [(found.line, found.field, found.text) for found in check(write(tmp_path, text, name))]


def test_edge(tmp_path: Path) -> None:
    config = load_edge(write(tmp_path, EDGE, "edge.toml"))
    assert config.domain == "example.com"
    assert config.address == Endpoint("vps.example.com", 8443)
    assert config.listen == (Endpoint("127.0.0.1", 8443), Endpoint("::1", 8443))
    assert not config.listen_is_default
    assert config.listen_http == ()
    assert config.state_dir == tmp_path / "state"
    assert config.workers == min(64, len(os.sched_getaffinity(0)))
    assert config.trusted_proxies == ("10.0.0.0/8", "192.0.2.1/32")
    assert config.tls.issuer == "acme"  # there is a table [acme]
    assert config.acme.dns is not None
    assert config.acme.dns.hook == ("/bin/secret-hook",)
    assert config.limits.connections_per_address == 10
    assert config.limits.idle_seconds == 75.0
    assert config.metrics.listen == Endpoint("127.0.0.1", 9150)
    assert config.admin.listen == Endpoint("127.0.0.1", 9151)
    assert "secret-hook" not in repr(config)


def test_edge_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/tunnelgw/edge:/other")
    config = load_edge(write(tmp_path, 'domain = "example.com"', "edge.toml"))
    assert str(config.address) == "edge.example.com:443"
    assert config.listen_is_default
    assert config.listen_http_is_default
    assert [str(item) for item in config.listen] == ["0.0.0.0:443", "[::]:443"]
    assert [str(item) for item in config.listen_http] == ["0.0.0.0:80", "[::]:80"]
    assert config.state_dir == Path("/var/lib/tunnelgw/edge")
    assert config.tls.issuer == "self-signed"
    assert (config.workers, config.resume_seconds, config.park_seconds, config.port_bind) == (1, 120, 20, "::")


def test_connector(tmp_path: Path) -> None:
    config = load_connector(write(tmp_path, CONNECTOR))
    assert (config.networks, config.exit) == (("192.168.1.0/24", "10.0.0.5/32:22"), True)
    assert [str(edge) for edge in config.edge] == ["edge.example.com:443", "b.example.com:8443"]
    services = {service.name: service for service in config.services}
    assert str(services["jellyfin"].target) == "http://127.0.0.1:8096"
    wiki = services["wiki"]
    assert wiki.host == ("wiki.example.com", "*.example.org")
    assert (wiki.path, wiki.strip_path, wiki.plain_http, wiki.response_seconds) == ("/wiki", True, True, 600)
    assert wiki.allow_from == ("192.168.0.0/16", "::1/128")
    assert services["ssh"].port == (PortRange(2222, 2222),)
    assert services["ssh"].target_port(2222) == 22
    assert services["games"].target_port(30005) == 7005
    assert services["games"].target_port(30101) == 0
    assert not services["nas"].verify
    assert config.service("shell") is services["shell"]
    assert config.service("none") is None


def test_groups_and_health(tmp_path: Path) -> None:
    text = """
services.plain = { target = 1 }
services.easy = { target = 2, health = {} }
[services.full]
target = 3
group = "pair"
priority = -2
affinity = "cookie"
[services.full.health]
path = "/healthz?deep=1"
interval = 1.5
threshold = 3
expect = 204
"""
    plain, easy, full = load_connector(write(tmp_path, text)).services
    assert (plain.group, plain.priority, plain.affinity, plain.health) == ("", 0, "none", None)
    assert easy.health == HealthConfig(path="/", interval=5.0, threshold=2, expect=0)
    assert (full.group, full.priority, full.affinity) == ("pair", -2, "cookie")
    assert full.health == HealthConfig(path="/healthz?deep=1", interval=1.5, threshold=3, expect=204)


@pytest.mark.parametrize(
    ("value", "target", "kind"),
    [
        (8096, Target("http", "127.0.0.1", 8096), "http"),
        ("8096", Target("http", "127.0.0.1", 8096), "http"),
        ("http://a", Target("http", "a", 80), "http"),
        ("HTTP://A_b:81/", Target("http", "a_b", 81), "http"),
        ("https://[::1]", Target("https", "::1", 443), "http"),
        ("h2c://a:50051", Target("h2c", "a", 50051), "h2c"),
        ("tcp://a:22", Target("tcp", "a", 22), "tcp"),
        ("tls://a", Target("tls", "a", 443), "tls"),
        ("udp://a:53", Target("udp", "a", 53), "udp"),
        ("unix:/run/a.sock", Target("unix", path="/run/a.sock"), "tcp"),
        ("http+unix:///run/a b.sock", Target("http+unix", path="/run/a b.sock"), "http"),
        ("file:/srv/x/", Target("file", path="/srv/x"), "http"),
    ],
)
def test_targets(value: int | str, target: Target, kind: str) -> None:
    found = parse_target(value)
    assert found == target
    assert found.kind == kind
    assert parse_target(str(found)) == found


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "is empty"),
        (0, "not a port"),
        (65536, "not a port"),
        ("gopher://a", "not a scheme"),
        ("file:srv", "absolute path"),
        ("file://host/x", "absolute path"),
        ("file:/a/../b", '".." segment'),
        ("unix:/" + "a" * 120, "too long"),
        ("unix:/run/", "is a folder"),
        ("http://u:hunter2@a", "user or password"),
        ("http://a:0", "not a port"),
        ("http://a:", "names no port"),
        ("tcp://a", "names no port"),
        ("http://a/x", "no path or query"),
        ("http://a?x", "no path or query"),
        ("tcp://a:1/x", "no path"),
        ("http://", "names no host"),
        ("http:a", "write"),
        ("a:80", 'did you mean "http://a:80"'),
        ("/srv", 'did you mean "file:/srv"'),
        ("htp://a", 'did you mean "http"'),
        ("http://::1", "brackets"),
        ("http://[a]", "no IPv6 address"),
        ("http://a b", "space"),
        ("http://0.0.0.0:80", "listen on"),
        ("http://169.254.169.254", "metadata"),
        ("http://[::ffff:169.254.169.254]", "metadata"),
        ("http://2852039166", "four decimal"),
        ("http://0xa9.0xfe.0xa9.0xfe", "four decimal"),
        ("http://169.254.43518", "four decimal"),
        ("tcp://metadata.google.internal:80", "metadata"),
    ],
)
def test_refused_targets(value: int | str, why: str) -> None:
    with pytest.raises(Bad) as caught:
        parse_target(value)
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"(http|tcp|unix|file):/{0,3}[\[\]a-z0-9:/@?.%-]*", fullmatch=True))
def test_any_target_is_parsed_or_bad(value: str) -> None:
    try:
        found = parse_target(value)
    except Bad:
        return
    assert parse_target(str(found)) == found


def test_metadata_addresses() -> None:
    assert is_metadata("169.254.169.254")
    assert not is_metadata("169.254.1.1")


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """edge = "edge.example.com:99999"
domain = "example.com"
[service.x]
target = 1
[services.a]
target = "http://a:80/x"
hots = "a.b"
strip_path = "yes"
[services.b]
target = "tcp://a:1"
path = "/x"
[services.c]
target = "tcp://a:1"
port = [
  2222,
  "70000",
]
[services.d]
[services.Big]
target = 1
[services.e]
target = 1
host = ["x.y",
        "bücher.example"]
port = 5
"""
    found = problems(tmp_path, text)
    assert [(line, field) for line, field, _ in found] == [
        (1, "edge"),
        (2, "domain"),
        (3, "service"),
        (6, "services.a.target"),
        (7, "services.a.hots"),
        (8, "services.a.strip_path"),
        (9, "services.b"),
        (11, "services.b.path"),
        (16, "services.c.port[1]"),
        (18, "services.d"),
        (19, "services.Big"),
        (24, "services.e.host[1]"),
        (25, "services.e.port"),
    ]
    texts = {field: text for _, field, text in found}
    assert 'did you mean "services"' in texts["service"]
    assert 'did you mean "host"' in texts["services.a.hots"]
    assert "edge.toml" in texts["domain"]
    assert "xn--bcher-kva.example" in texts["services.e.host[1]"]
    assert "has no target" in texts["services.d"]
    with pytest.raises(ConfigError) as caught:
        load_connector(tmp_path / "connector.toml")
    assert caught.value.exit_code == 2
    lines = caught.value.text.split("\n")
    assert len(lines) == len(found)
    assert lines[0].startswith(f"{tmp_path}/connector.toml:1: edge: ")


_SHARED = 'host="a.b"\nport=1'
_MC = '[services.{0}]\ntarget="tcp://a:1"\nhost="{1}"\nport={2}\nprotocol="minecraft"\n'
_SEEN = '[services.a]\ntarget="{0}"\nport=1\ntransparent=true'
_HOME = '[services.a]\ntarget=1\ntls="home"\n'


@pytest.mark.parametrize(
    ("text", "line", "field", "why"),
    [
        ("domain = \n", 1, "", "not valid TOML"),
        ('a = 1\nb = "x', 2, "", "not valid TOML"),
        ("a = 1\na = 2\n", 2, "", "not valid TOML"),
        ("edge = edge.example.com\n", 1, "", "needs quotes"),
        ("exit = 1", 1, "exit", "true or false"),
        ('networks = ["192.168.1.1/24"]', 1, "networks[0]", '"192.168.1.0/24"'),
        ('networks = ["10.0.0.0/8", "nas.lan"]', 1, "networks[1]", "is not a network"),
        ('networks = [":22"]', 1, "networks[0]", '"192.168.1.0/24:22"'),
        ('networks = ["10.0.0.5:ssh"]', 1, "networks[0]", "is no port"),
        ('networks = ["10.0.0.5", "10.0.0.5/32"]', 1, "networks[1]", "twice"),
        ('[services.a]\ntarget="udp://a:53"\nprivate=true', 3, "services.a.private", "not possible for a udp target"),
        (
            '[services.a]\ntarget="udp://127.0.0.1:53"\nport=53\ntransparent=true',
            4,
            "services.a.transparent",
            "only for TCP targets",
        ),
        ('[services.a]\ntarget=1\nprivate=true\nhost="a.org"', 4, "services.a.host", "a private service has none"),
        ('[services.a]\ntarget="tcp://h:1"\nprivate=true\nport=1', 4, "services.a.port", "a private service has none"),
        ('[services.a]\ntarget=1\nprivate=true\ntls="home"', 4, "services.a.tls", "a private service has none"),
        ('[services.a]\ntarget="udp://a:53"', 1, "services.a", "needs port"),
        ('[services.a]\ntarget="udp://a:53"\nport=53\nhost="x.y"', 4, "services.a.host", "has no names"),
        ('[services.a]\ntarget="udp://a:53"\nport=53\nproxy_protocol="v1"', 4, "*", '"v2-first" or "spp"'),
        ('[services.a]\ntarget="tcp://a:53"\nport=53\nproxy_protocol="spp"', 4, "*", "only for udp targets"),
        ('[services.a]\ntarget="udp://a:53"\nport=53\nhealth={}', 4, "services.a.health", "cannot be told"),
        ('services.a={target="udp://a:1",port="10-20"}\nservices.b={target="udp://a:1",port=15}', 2, "*", "overlaps"),
        ('[services.a]\ntarget="tcp://h:1"\nport=1\ntls="home"', 4, "services.a.tls", "only for HTTP targets"),
        ('[services.a]\ntarget="tls://h:1"\ntls="home"', 3, "services.a.tls", "it ends TLS itself"),
        ('[services.a]\ntarget=1\ntls="home"\nplain_http=true', 4, "services.a.plain_http", "keep one of the two"),
        ('[services.a]\ntarget=1\ntls="home"\nhost="*.x.org"', 4, "services.a.host", "set dns in [acme]"),
        (
            '[services.a]\ntarget=1\ntls="home"\nhost="h.org"\n[services.b]\ntarget=2\nhost="h.org"\npath="/b"',
            7,
            "services.b.host",
            'ends at home for "a" (line 1) and at the edge here',
        ),
        (
            '[services.a]\ntarget=1\nhost="h.org"\n[services.b]\ntarget=2\nhost="h.org"\npath="/b"\ntls="home"',
            8,
            "services.b.tls",
            'ends at the edge for "a" (line 1) and at home here',
        ),
        (_HOME + '[acme]\nchallenge="http-01"', 5, "acme.challenge", "answered at the edge"),
        (_HOME + '[acme]\nchallenge="dns-01"', 5, "acme.challenge", "needs dns"),
        (_HOME + "[acme]\nwildcard=true", 5, "acme.wildcard", "is for edge.toml"),
        (_HOME + '[tls]\nissuer="self-signed"', 5, "tls.issuer", '"acme" or "files"'),
        ('[services.a]\ntarget="tcp://a:1"\nport=1\nprotocol="mysql"', 4, "services.a.protocol", "port of its own"),
        ('[services.a]\ntarget="tcp://a:1"\nport=1\nprotocol="minecraft"', 4, "services.a.protocol", "needs host"),
        ('[services.a]\ntarget="tcp://a:1"\nhost="a.b"\nprotocol="postgres"', 4, "services.a.protocol", "needs port"),
        (
            f'[services.a]\ntarget="tls://a:1"\n{_SHARED}\nprotocol="minecraft"',
            2,
            "services.a.target",
            "tcp://host:port",
        ),
        (
            f'[services.a]\ntarget="http://a"\n{_SHARED}\nprotocol="postgres"',
            2,
            "services.a.target",
            "or tls://host:port",
        ),
        ('[services.a]\ntarget="tcp://a:1"\nhost="a.b"\nport=1', 3, "services.a.host", "needs protocol"),
        (_MC.format("a", "a.b", 1) + _MC.format("b", "a.b", 1), 9, "services.b.port", 'overlaps port 1 of "a"'),
        (
            _MC.format("a", "a.b", 1) + '[services.b]\ntarget="tcp://a:1"\nport=1',
            8,
            "services.b.port",
            "overlaps",
        ),
        (
            '[services.a]\ntarget="tcp://a:1"\nhost="a.b"\nport="5-6"\nprotocol="postgres"',
            4,
            "services.a.port",
            "5-6 is a range",
        ),
        (_SEEN.format("tcp://10.0.0.1:22"), 4, "services.a.transparent", "proxy_protocol"),
        (_SEEN.format("tcp://home.lan:22"), 4, "services.a.transparent", "this machine's loopback"),
        (_SEEN.format("unix:/run/x"), 4, "services.a.transparent", "this machine's loopback"),
        ('[services.a]\ntarget="file:/srv"\ntransparent=true', 3, "services.a.transparent", "this machine's loopback"),
        ('[services.a]\ntarget=1\nbasic_auth_file="/nowhere/x"', 3, "services.a.basic_auth_file", "cannot read"),
        ("[services.a]\ntarget=1\nallow_from=[]", 3, "services.a.allow_from", "nobody"),
        ('[services.a]\ntarget=1\npath="x"', 3, "services.a.path", 'begin with "/"'),
        ('[services.a]\ntarget=1\npath="/a/../b"', 3, "services.a.path", "segment"),
        ('[services.a]\ntarget=1\npath="/%2e%2e/b"', 3, "services.a.path", "must not escape"),
        ('[services.a]\ntarget=1\nhost="10.0.0.1"', 3, "services.a.host", "is an address"),
        ('[services.a]\ntarget=1\nhost="a.*.b"', 3, "services.a.host", "first label"),
        ('[services.a]\ntarget="tls://a"\nport=5', 3, "services.a.port", "raw port"),
        ('[services.a]\ntarget="tcp://a:1"', 1, "services.a", "needs port"),
        ('[services.a]\ntarget="tcp://a:65500"\nport="1000-1100"', 3, "services.a.port", "65535"),
        ('[services.a]\ntarget="tcp://a:1"\nport="9-5"', 3, "services.a.port", "ends before"),
        ("[services.a]\ntarget=1\nverify=false", 3, "services.a.verify", "https"),
        ("[services.a]\ntarget=1\npriority=1", 3, "services.a.priority", "no effect without group"),
        ('[services.a]\ntarget=1\naffinity="cookie"', 3, "services.a.affinity", "no effect without group"),
        ('[services.a]\ntarget=1\ngroup="g"\naffinity="cooky"', 4, "services.a.affinity", 'write "none" or "cookie"'),
        (
            '[services.a]\ntarget="tcp://a:1"\nport=1\ngroup="g"\naffinity="cookie"',
            5,
            "services.a.affinity",
            'write "address"',
        ),
        ('[services.a]\ntarget=1\ngroup="G G"', 3, "services.a.group", "lower-case"),
        ('[services.a]\ntarget=1\ngroup="g"\ntls="home"', 3, "services.a.group", "the issuer may reach another member"),
        ("[services.a]\ntarget=1\nhealth=true", 3, "services.a.health", "must be a table"),
        ("[services.a]\ntarget=1\n[services.a.health]\nintervall=5", 4, "services.a.health.intervall", "interval"),
        ("[services.a]\ntarget=1\nhealth={interval=0.5}", 3, "services.a.health.interval", "1 to 3600"),
        ("[services.a]\ntarget=1\nhealth={threshold=0}", 3, "services.a.health.threshold", "1 to 100"),
        ("[services.a]\ntarget=1\nhealth={expect=99}", 3, "services.a.health.expect", "200 to 599"),
        ('[services.a]\ntarget=1\nhealth={path="x y"}', 3, "services.a.health.path", "not a path to ask for"),
        (
            '[services.a]\ntarget="tcp://a:1"\nport=1\nhealth={path="/"}',
            4,
            "services.a.health.path",
            "only for HTTP targets",
        ),
        (
            '[services.a]\ntarget=1\nhost="x.y"\n[services.b]\ntarget=2\nhost="X.y"',
            6,
            "services.b.host",
            '"a" (line 1)',
        ),
        (
            'services.a={target=1,host="x.y",path="/a"}\nservices.b={target="tls://b",host="x.y"}',
            2,
            "*",
            "as a whole",
        ),
        ('services.a={target="tcp://a:1",port="10-20"}\nservices.b={target="tcp://a:1",port=15}', 2, "*", "overlaps"),
    ],
)
def test_single_problems(tmp_path: Path, text: str, line: int, field: str, why: str) -> None:
    found = problems(tmp_path, text)
    assert any(item[0] == line and field in (item[1], "*") and why in item[2] for item in found), found


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        ("", "domain", "is missing"),
        ('domain="*.x"', "domain", "wildcard"),
        ('domain="x"\nlisten=[]', "listen", "is empty"),
        ('domain="x"\nlisten=["a.b:443"]', "listen[0]", "address of this machine"),
        ('domain="x"\nlisten=["0.0.0.0:80"]', "listen_http", "one socket"),
        ('domain="x"\nworkers=0', "workers", "1 to 64"),
        ('domain="x"\nworkers=true', "workers", "whole number"),
        ('domain="x"\nresume_seconds="2m"', "resume_seconds", "without unit"),
        ('domain="x"\nresume_seconds=nan', "resume_seconds", "out of bounds"),
        ('domain="x"\nproxy_protocol=true', "proxy_protocol", "trusted_proxies"),
        ('domain="x"\n[tls]\nissuer="acme"\ncertificates=[{cert="a",key="b"}]', "tls.certificates", "only used with"),
        ('domain="x"\n[acme]\nwildcard=true', "acme.wildcard", "needs dns-01"),
        ('domain="x"\n[acme]\nchallenge="dns-01"', "acme.challenge", "needs dns"),
        ('domain="x"\n[acme]\nchallenge="dns"', "acme.challenge", "not possible"),
        ('domain="x"\nlisten_http=[]\n[acme]\nchallenge="http-01"', "acme.challenge", "listen_http is empty"),
        ('domain="x"\n[acme]\nwildcard=true\nchallenge="http-01"\ndns={hook="sh"}', "acme.challenge", "wildcard"),
        ('domain="x"\n[acme]\ndns={}', "acme.dns", "needs one of hook"),
        ('domain="x"\n[acme]\ndns={hook=[]}', "acme.dns.hook", "name a program"),
        ('domain="x"\n[acme]\ndns={hook="sh",server="a.b"}', "acme.dns", "needs one of hook"),
        ('domain="x"\n[acme]\ndns={server="a.b",key="aGk="}', "acme.dns", "needs key_name"),
        ('domain="x"\n[acme]\ndns={server="a.b",key_name="k"}', "acme.dns", "needs key_name"),
        ('domain="x"\n[acme]\ndns={server="a.b",key_name="k",key="not base64"}', "acme.dns.key", "base64"),
        ('domain="x"\n[acme]\ndns={server="a.b",check="c.d"}', "acme.dns.wait_seconds", "how long"),
        ('domain="x"\n[acme]\neab_kid="k"', "acme", "both are needed"),
        ('domain="x"\n[acme]\ndirectory="http://x"', "acme.directory", "https://"),
        ('domain="x"\n[tls]\nissuer="files"', "tls.issuer", "needs certificates"),
        ('domain="x"\n[tls]\ncertificates=[{cert="a"}]', "tls.certificates[0]", "has no key"),
        ('domain="x"\n[limit]', "limit", 'did you mean "limits"'),
        ('domain="x"\n[services.a]\ntarget=1', "services", "connector.toml"),
        ('domain="x"\n[metrics]\nlisten="9150"', "metrics.listen", "names no host"),
    ],
)
def test_problems_of_an_edge(tmp_path: Path, text: str, field: str, why: str) -> None:
    found = problems(tmp_path, text, "edge.toml")
    assert any(field == item[1] and why in item[2] for item in found), found
    with pytest.raises(ConfigError):
        load_edge(tmp_path / "edge.toml")


def test_certificates_of_services_whose_tls_ends_at_home(tmp_path: Path) -> None:
    plain = load_connector(write(tmp_path, _HOME))
    assert plain.ends_tls
    assert plain.tls.issuer == "acme"
    assert plain.acme.directory.startswith("https://acme-v02")
    assert home_challenges(plain.acme) == ("tls-alpn-01",)
    text = _HOME + 'host = "*.x.org"\n[acme]\nemail = "me@example.com"\ndns = { hook = "/bin/true" }'
    wildcard = load_connector(write(tmp_path, text))
    assert wildcard.acme.email == "me@example.com"
    assert home_challenges(wildcard.acme) == ("dns-01",)
    files = load_connector(write(tmp_path, _HOME + '[tls]\ncertificates = [{ cert = "a.pem", key = "a.key" }]'))
    assert files.tls.issuer == "files"
    assert diff_connector(plain, files).keys == ("tls",)
    unused = check(write(tmp_path, '[services.a]\ntarget=1\n[acme]\nemail = "me@example.com"'))
    assert [(found.severity, found.field) for found in unused] == [("warning", "acme")]


def test_hosts_that_share_a_port(tmp_path: Path) -> None:
    text = _MC.format("a", "a.b", 25565) + _MC.format("b", "*.c.d", 25565) + '[services.c]\ntarget=1\nhost="a.b"\n'
    config = load_connector(
        write(tmp_path, text + '[services.d]\ntarget="tls://a:5432"\nhost="d.e"\nport=5432\nprotocol="postgres"')
    )
    assert [service.protocol for service in config.services] == ["minecraft", "minecraft", "", "postgres"]


@pytest.mark.parametrize("target", ["tcp://localhost:22", "tcp://127.0.0.1:22", "tcp://[::1]:22", "tcp://127.1.2.3:22"])
def test_targets_that_can_be_transparent(tmp_path: Path, target: str) -> None:
    assert load_connector(write(tmp_path, _SEEN.format(target))).services[0].transparent
    assert load_connector(write(tmp_path, "[services.a]\ntarget=8080\ntransparent=true")).services[0].transparent


def test_what_is_rarely_meant_to_be_reached_is_a_warning(tmp_path: Path) -> None:
    for networks, shown in (
        ('["192.168.1.0/24", "127.0.0.1:8123"]', ("networks[1]", "127.0.0.0/8")),
        ('["::1"]', ("networks[0]", "::1/128")),
        ('["169.254.169.254"]', ("networks[0]", "169.254.0.0/16")),
        ('["0.0.0.0/0"]', ("networks[0]", "exit = true")),
        ('["::/0"]', ("networks[0]", "exit = true")),
    ):
        (found,) = check(write(tmp_path, f"networks = {networks}\n", "connector.toml"))
        assert (found.severity, found.field, found.line) == ("warning", shown[0], 1)
        assert shown[1] in found.text
    assert not check(write(tmp_path, 'networks = ["0.0.0.0/0", "fd00::/8"]\nexit = true\n', "connector.toml"))


def test_missing_certificates_are_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, 'domain="x"\n[tls]\ncertificates=[{cert="a.pem", key="a.key"}]', "edge.toml")
    assert {found.severity for found in check(path)} == {"warning"}
    assert load_edge(path).tls.certificates[0].key == tmp_path / "a.key"
    (tmp_path / "a.pem").write_text("")
    (tmp_path / "a.key").write_text("")
    (tmp_path / "a.key").chmod(0o644)
    assert "chmod 600" in check(path)[0].text


def test_unreadable_files(tmp_path: Path) -> None:
    for content, why in ((b"\xff\n", "not UTF-8"), (b"a=" + b"[" * 50000, "nested"), (b"#" * (5 << 20), "4 MiB")):
        path = tmp_path / "x.toml"
        path.write_bytes(content)
        assert why in str(check(path)[0])
    with pytest.raises(ConfigError, match="no such file"):
        load_edge(tmp_path / "none.toml")
    assert "folder" in str(check(tmp_path)[0]).lower() or "directory" in str(check(tmp_path)[0])


def test_differences(tmp_path: Path) -> None:
    old = load_connector(write(tmp_path, CONNECTOR))
    text = (
        CONNECTOR.replace("8096", "8097").replace("[services.shell]", "[services.shell2]").replace("/var/lib/x", "/y")
    )
    new = load_connector(write(tmp_path, "# comment\n" + text))
    diff = diff_connector(old, new)
    assert [service.name for service in diff.added] == ["shell2"]
    assert [service.name for service in diff.removed] == ["shell"]
    assert [service.name for service in diff.changed] == ["jellyfin"]
    assert diff.keys == diff.restart == ("state_dir",)
    assert "only a restart" in restart_warning(diff.restart)
    assert not diff_connector(old, old).services_changed
    first = load_edge(write(tmp_path, EDGE, "edge.toml"))
    second = load_edge(
        write(tmp_path, EDGE.replace("= 10\n", "= 11\n").replace("127.0.0.1:8443", "127.0.0.1:8444"), "edge.toml")
    )
    assert diff_edge(first, second).changed == ("address", "listen", "limits.connections_per_address")
    assert diff_edge(first, second).restart == ("listen",)


def test_default_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNNELGW_CONFIG", "STATE_DIRECTORY", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config_path("edge") == Path("/etc/tunnelgw/edge.toml")
    assert default_state_dir("edge") == Path("/var/lib/tunnelgw/edge")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    system = tmp_path / "etc"
    system.mkdir()
    monkeypatch.setattr("tunnelgw.config.paths.SYSTEM_CONFIG", system)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    own = tmp_path / "home/.config/tunnelgw/connector.toml"
    assert config_path("connector") == own
    (system / "connector.toml").write_text("")
    assert config_path("connector") == system / "connector.toml"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert config_path("connector") == own
    assert default_state_dir("connector") == tmp_path / "home/.local/state/tunnelgw/connector"
    monkeypatch.setenv("TUNNELGW_CONFIG", "/x.toml")
    assert config_path("connector") == Path("/x.toml")
    assert config_path("connector", "/y.toml") == Path("/y.toml")


def test_secrets(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    secret = read_secret(path)
    assert secret.reveal() == "hunter2"
    assert "hunter2" not in f"{secret} {secret!r}"
    assert secret == Secret("hunter2") != Secret("x")
    path.write_text(" \n")
    for bad in (path, tmp_path / "none"):
        with pytest.raises(LocalError):
            read_secret(bad)


def test_one_number_may_be_a_tcp_port_and_a_udp_port(tmp_path: Path) -> None:
    text = 'services.a={target="udp://a:53",port=53}\nservices.b={target="tcp://a:53",port="50-60"}'
    assert problems(tmp_path, text) == []

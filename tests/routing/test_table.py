"""The routing table: hosts, wildcards, paths by whole segments, claims."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.counters import RouteCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.hostname import normalise
from tunnelgw.routing.paths import normalise_path
from tunnelgw.routing.table import Route, RouteTable, target_path

COUNTERS = RouteCounters("test")


def route(host: str, path: str = "/", *, connector: str = "home", service: str = "", **more: object) -> Route:
    more.setdefault("kind", "http")
    return Route(host=host, path=path, connector=connector, service=service or path, counters=COUNTERS, **more)  # type: ignore[arg-type]


def table_of(*routes: Route, reserved: tuple[str, ...] = ()) -> RouteTable:
    table = RouteTable(reserved=reserved)
    for connector in dict.fromkeys(item.connector for item in routes):
        table.replace(connector, [item for item in routes if item.connector == connector])
    return table


def test_exact_before_wildcard_of_exactly_one_label() -> None:
    exact, wild = route("a.example.com"), route("*.example.com", connector="other")
    table = table_of(exact, wild)
    assert table.find_http("a.example.com", b"/") is exact
    assert table.find_http("b.example.com", b"/") is wild
    for host in ("example.com", "a.b.example.com", "xa.example.com.evil", "", "com", "127.0.0.1", "*.example.com.x"):
        assert table.find_http(host, b"/") is None
        assert table.find_name(host) is None


def test_longest_path_by_whole_segments() -> None:
    root, wiki, deep = route("h.x"), route("h.x", "/wiki"), route("h.x", "/wiki/a/")
    table = table_of(root, wiki, deep)
    for path, expected in [
        (b"/", root),
        (b"/wikileaks", root),
        (b"/wiki", wiki),
        (b"/wiki/", wiki),
        (b"/wiki?q=/wiki/a", wiki),
        (b"/wiki/ab", wiki),
        (b"/wiki/a", deep),
        (b"/wiki/a/b?x", deep),
        (b"/WIKI", root),
        (b"/%77iki/x", wiki),  # an unreserved character, encoded: the same path (RFC 3986 section 6.2.2.2)
        (b"/w%69ki", wiki),
        (b"/%2577iki", root),
        (b"/x%20y", root),
        (b"/x//y", root),
        (b"*", root),
    ]:
        assert table.find_http("h.x", path) is expected, path


@pytest.mark.parametrize(
    "path", [b"//wiki", b"///wiki/a", b"/%2fwiki", b"/wiki%2fa", b"/wiki//a", b"/wiki%5Ca", b"/%2F%77iki", b"/wiki%2f"]
)
def test_paths_that_could_be_another_services_are_refused(path: bytes) -> None:
    table = table_of(route("h.x"), route("h.x", "/wiki"), route("h.x", "/wiki/a"))
    with pytest.raises(RemoteError) as caught:
        table.find_http("h.x", path)
    assert caught.value.reason is Reason.BAD_REQUEST
    alone = table_of(route("h.x"))
    assert alone.find_http("h.x", path) is not None


def test_without_a_root_route_other_paths_lead_nowhere() -> None:
    table = table_of(route("h.x", "/wiki"))
    assert table.find_http("h.x", b"/") is None
    assert table.find_http("h.x", b"/wikileaks") is None
    assert table.find_http("h.x", b"*") is None


def test_paths_in_unicode() -> None:
    table = table_of(route("h.x", "/café"), route("h.x"))
    assert table.find_http("h.x", b"/caf%C3%A9/x").path == "/café"  # type: ignore[union-attr]
    assert table.find_http("h.x", b"/caf%c3%a9").path == "/café"  # type: ignore[union-attr]


def test_names_and_kinds() -> None:
    table = table_of(
        route("pass.x", kind="tls"), route("ssh.x", kind="tcp"), route("web.x", kind="h2c"), route("web.x", "/a")
    )
    assert table.find_name("pass.x").kind == "tls"  # type: ignore[union-attr]
    assert table.find_name("pass.x").route.host == "pass.x"  # type: ignore[union-attr]
    assert table.find_name("ssh.x").kind == "tcp"  # type: ignore[union-attr]
    assert table.find_name("web.x").kind == "http"  # type: ignore[union-attr]
    assert table.find_name("web.x").route is None  # type: ignore[union-attr]
    assert table.find_http("pass.x", b"/") is None
    assert table.find_http("ssh.x", b"/") is None


def test_paths_of_a_host_whose_tls_ends_at_home() -> None:
    table = table_of(route("h.x", kind="home"), route("h.x", "/wiki", kind="home"))
    entry = table.find_name("h.x")
    assert entry is not None
    assert entry.kind == "home"
    assert entry.route in table.routes(), "any of them: the paths are told apart at home"
    assert table.find_http("h.x", b"/wiki") is None, "no request of it is ever read here"


def test_ports() -> None:
    ssh = route("", kind="tcp", port=2222)
    table = table_of(ssh)
    assert table.find_port(2222) is ssh
    assert table.find_port(2223) is None
    assert table.holders(2222) == ("home",)
    assert table.ports() == [2222]
    with pytest.raises(Refused, match="held by home"):
        table.replace("other", [route("", connector="other", kind="tcp", port=2222)])
    table.replace("home", [])
    assert table.find_port(2222) is None


def test_a_number_is_a_tcp_port_and_a_udp_port() -> None:
    dns, over_tcp = route("", kind="udp", port=53), route("", connector="other", kind="tcp", port=53)
    table = table_of(dns, over_tcp)
    assert (table.find_udp(53), table.find_port(53)) == (dns, over_tcp)
    assert table.find_udp(54) is None
    assert (table.holders(("udp", 53)), table.holders(53)) == (("home",), ("other",))
    with pytest.raises(Refused, match=r"^udp port 53 is held by home$"):
        table.replace("third", [route("", connector="third", kind="udp", port=53)])
    table.replace("home", [])
    assert table.find_udp(53) is None
    assert table.ports() == [53]


def test_a_held_host_is_refused_with_all_its_paths_and_nothing_changes() -> None:
    table = table_of(route("h.x", "/wiki"), route("mine.x", connector="other"))
    with pytest.raises(Refused) as caught:
        table.replace("other", [route("new.x", connector="other"), route("h.x", "/else", connector="other")])
    assert caught.value.reason is Reason.CLAIM_HELD
    assert "home" in caught.value.text
    assert sorted(table.hosts()) == ["h.x", "mine.x"]
    assert table.holders("h.x") == ("home",)
    assert table.holders("free.x") == ()


@pytest.mark.parametrize(
    "routes",
    [
        [route("h.x"), route("h.x")],
        [route("h.x", "/a"), route("h.x", "/a/")],
        [route("h.x"), route("h.x", "/a", kind="tls")],
        [route("h.x"), route("h.x", "/a", kind="home")],
        [route("h.x", kind="tls"), route("h.x", "/a", kind="home")],
        [route("h.x", "/a", kind="home"), route("h.x", "/a", kind="home")],
        [route("h.x", kind="tcp"), route("h.x", kind="tcp")],
        [route("", kind="tcp", port=1), route("", kind="tcp", port=1)],
    ],
)
def test_one_connector_cannot_give_an_address_twice(routes: list[Route]) -> None:
    table = RouteTable()
    with pytest.raises(Refused):
        table.replace("home", routes)
    assert table.hosts() == []


def test_replacing_swaps_the_whole_set() -> None:
    table = table_of(route("a.x"), route("b.x"))
    kept = route("b.x", "/new")
    table.replace("home", [kept])
    assert table.hosts() == ["b.x"]
    assert table.routes_of("home") == (kept,)
    assert table.routes() == [kept]
    assert table.find_http("a.x", b"/") is None
    table.replace("home", [])
    assert table.routes_of("home") == ()
    assert table.find_http("b.x", b"/new") is None


def test_the_edges_own_names() -> None:
    table = table_of(route("*.example.com"), reserved=("edge.example.com",))
    assert table.find_name("edge.example.com") is None
    assert table.find_http("edge.example.com", b"/") is None
    assert table.find_http("a.example.com", b"/") is not None
    assert table.holders("edge.example.com") == ()
    with pytest.raises(Refused, match="held by the edge"):
        table.replace("home", [route("edge.example.com")])


def test_ten_thousand_routes_of_a_thousand_connectors() -> None:
    table = RouteTable()
    for number in range(1000):
        name = f"c{number}"
        table.replace(name, [route(f"s{i}.{name}.x", connector=name) for i in range(10)])
    assert len(table.hosts()) == 10_000
    started = time.process_time()
    for _ in range(100):
        table.replace("c7", [route(f"s{i}.c7.x", connector="c7") for i in range(10)])
    assert time.process_time() - started < 0.5  # 100 swaps of ten routes; a swap over all routes would take longer
    assert table.find_http("s3.c999.x", b"/").connector == "c999"  # type: ignore[union-attr]


def test_many_hosts_are_found_by_every_spelling() -> None:
    """What is looked up is the normalised name, so that a rule of a route holds however its host is written."""
    many = [route(f"h{number}.many.x", allow_from=("192.0.2.0/24",)) for number in range(150)]
    table = table_of(*many)
    for item in many:
        name = item.host
        for spelled in (name, name.upper(), name.title(), name + ".", name.upper() + "."):
            found = table.find_http(normalise(spelled), b"/")
            assert found is item
            assert found.allow_from == ("192.0.2.0/24",)
            assert table.find_name(normalise(spelled)).host == name  # type: ignore[union-attr]


def test_stripping() -> None:
    wiki = route("h.x", "/wiki", strip_path=True)
    deep = route("h.x", "/a/b/", strip_path=True)
    for item, path, expected in [
        (wiki, b"/wiki", b"/"),
        (wiki, b"/wiki/", b"/"),
        (wiki, b"/wiki?q=/wiki", b"/?q=/wiki"),
        (wiki, b"/wiki/a/b?c", b"/a/b?c"),
        (wiki, b"/%77iki/a", b"/a"),
        (wiki, b"/wiki//evil.example/", b"/evil.example/"),
        (deep, b"/a/b/c/d", b"/c/d"),
        (deep, b"/a/b", b"/"),
        (route("h.x", strip_path=True), b"/x", b"/x"),
        (route("h.x", "/wiki"), b"/wiki/x", b"/wiki/x"),
    ]:
        assert target_path(item, path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/wiki/", "/wiki"),
        ("/a/b", "/a/b"),
        ("/%77iki", "/wiki"),
        ("/café", "/caf%C3%A9"),
        ("/a b", "/a%20b"),
    ],
)
def test_configured_paths(path: str, expected: str) -> None:
    assert normalise_path(path) == expected
    assert normalise_path(expected) == expected


@pytest.mark.parametrize(
    "path", ["", "wiki", "/a//b", "/a/../b", "/.", "/%2e%2e", "/a%2fb", "/a?b", "/a#b", "/a\\b", "/a%00"]
)
def test_configured_paths_that_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        normalise_path(path)


@given(st.lists(st.sampled_from(["/", "wiki", "a", "%2f", "%5c", "%77", "%25", "x", "?"]), max_size=8))
def test_router_never_sees_more_than_the_target(parts: list[str]) -> None:
    """Where a path route is chosen over the root, an eager target would also see that path; else it is refused."""
    from tunnelgw.routing.paths import eager

    path = ("/" + "".join(parts)).encode()
    table = table_of(route("h.x"), route("h.x", "/wiki"), route("h.x", "/wiki/a"))
    try:
        found = table.find_http("h.x", path)
    except RemoteError:
        return
    assert found is not None
    seen = eager(path.partition(b"?")[0])
    under = [p for p in ("/wiki/a", "/wiki") if seen == p.encode() or seen.startswith(p.encode() + b"/")]
    assert found.path == (under[0] if under else "/")


def named(host: str, port: int = 25565, *, protocol: str = "minecraft", **more: object) -> Route:
    return route(host, kind="tcp", port=port, protocol=protocol, **more)


def test_hosts_that_share_a_port() -> None:
    one, wild, far = named("mc.a.b"), named("*.a.b", connector="other"), named("mc.a.b", 25566, service="far")
    web = route("mc.a.b", connector="third")
    table = table_of(one, far, wild, web, reserved=("edge.a.b",))
    assert table.find_named(25565, "mc.a.b") is one
    assert table.find_named(25566, "mc.a.b") is far
    assert table.find_named(25565, "x.a.b") is wild
    for host in ("", "a.b", "edge.a.b", "x.mc.a.b"):
        assert table.find_named(25565, host) is None
    assert table.find_named(25567, "mc.a.b") is None
    assert (table.protocol(25565), table.protocol(25567)) == ("minecraft", "")
    assert (table.find_alone(25566), table.find_alone(25565)) == (far, None)
    assert table.find_port(25565) is None
    assert table.find_http("mc.a.b", b"/") is web, "on 443 the host is somebody else's"
    assert set(table.holders(25565)) == {"home", "other"}
    assert {id(item) for item in table.visible()} == {id(item) for item in (one, far, wild, web)}
    table.replace("home", ())
    assert table.find_named(25565, "mc.a.b") is wild
    assert table.protocol(25566) == ""
    table.replace("other", ())
    assert table.protocol(25565) == ""
    assert not table.ports()


def test_a_port_has_one_use() -> None:
    table = table_of(named("mc.a.b"), route("", kind="tcp", port=22, connector="other"))
    for wanted, why in (
        ([route("", kind="tcp", port=25565, connector="x")], "port 25565 is used otherwise"),
        ([named("db.a.b", protocol="postgres", connector="x")], "port 25565 is used otherwise"),
        ([named("mc.a.b", 22, connector="x")], "port 22 is used otherwise"),
        ([named("mc.a.b", connector="x")], "is held by home"),
        ([named("q.a.b", 9, connector="x"), route("", kind="tcp", port=9, connector="x")], "port 9 is used otherwise"),
        ([named("q.a.b", 9, connector="x"), named("q.a.b", 9, connector="x", service="y")], "q.a.b on port 9 is held"),
    ):
        with pytest.raises(Refused, match=why) as caught:
            table.replace("x", wanted)
        assert caught.value.reason is Reason.CLAIM_HELD
        assert not table.routes_of("x")
    table.replace("home", [route("", kind="tcp", port=25565)])  # its own to change
    assert table.protocol(25565) == ""
    with pytest.raises(Refused, match="held by the edge"):
        table_of(named("edge.a.b"), reserved=("edge.a.b",))

"""The PAC file for browsers: what may be reached goes through the proxy, everything else stays as it is.

A browser runs it for each request, so it looks at names and numbers only: `isInNet` and `dnsResolve` would ask the
local resolver for every name, which tells others where somebody goes. Pure.
Invariant: nothing is written into the script but numbers and names of letters, digits, dots and hyphens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.reach import parse_host, parse_rule

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names that mean something at home only: RFC 6762, 8375, ICANN's for private use, and what home routers hand out.
HOME_NAMES = ("local", "home.arpa", "internal", "lan", "home", "localdomain")

_SCRIPT = """\
var proxy = "PROXY {proxy}", everything = {everything};
var names = [{names}], networks4 = [{networks4}], networks6 = [{networks6}];

function groups(text) {{
  var last = text.match(/^(.*:)(\\d+)\\.(\\d+)\\.(\\d+)\\.(\\d+)$/), i;
  if (last) {{
    text = last[1] + (last[2] * 256 + +last[3]).toString(16) + ":" + (last[4] * 256 + +last[5]).toString(16);
  }}
  var halves = text.split("::"), before = halves[0] ? halves[0].split(":") : [];
  var after = halves[1] ? halves[1].split(":") : [], all = before.slice();
  for (i = before.length + after.length; halves.length > 1 && i < 8; i++) all.push("0");
  all = all.concat(after);
  for (i = 0; i < all.length; i++) all[i] = parseInt(all[i], 16);
  return all;
}}

function inside(parts, network, bits) {{
  var size = parts.length === 4 ? 8 : 16, i, left, drop;
  for (i = 0; i < parts.length && bits > 0; i++, bits -= size) {{
    left = bits < size ? bits : size;
    drop = Math.pow(2, size - left);
    if (Math.floor(parts[i] / drop) !== Math.floor(network[i] / drop)) return false;
  }}
  return true;
}}

function FindProxyForURL(url, host) {{
  var parts, list, i, name;
  host = host.toLowerCase().replace(/^\\[|\\]$/g, "");
  if (/^(.*\\.)?localhost$|^127\\.\\d+\\.\\d+\\.\\d+$|^::1$/.test(host)) return "DIRECT";
  if (everything) return proxy;
  if (/^\\d+\\.\\d+\\.\\d+\\.\\d+$/.test(host)) {{
    parts = host.split(".");
    for (i = 0; i < 4; i++) parts[i] = +parts[i];
    list = networks4;
  }} else if (host.indexOf(":") >= 0) {{
    parts = groups(host.split("%")[0]);
    list = networks6;
  }} else {{
    host = host.replace(/\\.$/, "");
    if (host.indexOf(".") < 0) return proxy;
    for (i = 0; i < names.length; i++) {{
      name = names[i];
      if (host === name || host.slice(-name.length - 1) === "." + name) return proxy;
    }}
    return "DIRECT";
  }}
  for (i = 0; i < list.length; i++) {{
    if (inside(parts, list[i][0], list[i][1])) return proxy;
  }}
  return "DIRECT";
}}
"""


def pac_file(
    proxy: str, networks: Iterable[str], *, names: Iterable[str] = HOME_NAMES, everything: bool = False
) -> bytes:
    """The script. proxy: `127.0.0.1:3128`; networks: rules. `ValueError` for a name or a network that is none."""
    lists: dict[int, list[str]] = {4: [], 6: []}
    for text in networks:
        network = parse_rule(text).network
        if network is None:  # ports of whatever the connector offers, which is not known here
            continue
        packed, size = network.network_address.packed, 1 if network.version == 4 else 2
        parts = [str(int.from_bytes(packed[at : at + size], "big")) for at in range(0, len(packed), size)]
        lists[network.version].append(f"[[{', '.join(parts)}], {network.prefixlen}]")
    host, _, port = proxy.rpartition(":")
    parse_host(host)
    return _SCRIPT.format(
        proxy=f"{host}:{int(port)}",
        everything="true" if everything else "false",
        names=", ".join(f'"{parse_host(name)}"' for name in names),
        networks4=", ".join(lists[4]),
        networks6=", ".join(lists[6]),
    ).encode("ascii")

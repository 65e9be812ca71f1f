"""Certificates from an ACME server (RFC 8555), for the edge and for connectors that end TLS themselves.

Who holds certificates uses a `Keeper` (keeper.py): it knows a folder, an account, when to order, renew or wait. Each
order is done by a short-lived child, `python -m tunnelgw.identity.acme`, the only process that ever imports acme,
dnspython and cryptography for it: they cost 25 MB, for some seconds every few weeks. The child makes the keys and
speaks to the server and to DNS; who started it (`run_job` in job.py) only shows challenges to visitors.

The child reads JSON lines on standard input, the first one is its job:

    {"do": "order", "account": folder, "directory": URL, "ca_file": path or null, "email": text, "seconds": number,
     "eab": {"kid", "hmac" or "hmac_file"} or null, "names": [...], "challenges": kinds in order of preference,
     "out": path, "replaces": path or null, "profile": text, "preferred_chain": text, "dns": settings or null}
    {"do": "revoke", account as above, "certificate": path, "reason": number}
    {"do": "renewal-info", "directory", "ca_file", "seconds", "certificates": [paths]}

and writes JSON lines on standard output:

    {"event": "present", "kind": "http-01", "host", "token", "answer"}       answered on standard input by
    {"event": "present", "kind": "tls-alpn-01", "host", "certificate", "key"}    {"ready": true}
    {"event": "warning", "text"}    for the log
    {"event": "done", ...}          order: "not_before", "not_after", "window"; renewal-info: "windows" by path
    {"event": "failed", "text", "retry_after": seconds or 0, "scope": "host" or "issuer"}

dns-01 is answered by the child alone. `out` is one PEM file (0600): the chain, leaf first, then its key; it is replaced
as a whole, so that a reader finds the old pair or the new one. A window is {"start", "end", "retry_after", "why"}
(RFC 9773) in Unix seconds.

Invariants: no key leaves the child but into `out` and the account's file, both 0600; the child ends when its standard
input does, and takes back what it wrote into DNS.
"""

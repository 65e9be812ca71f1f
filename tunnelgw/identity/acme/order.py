"""One order from begin to end, a revocation, and the look at renewal windows: what the child does.

RFC 8555, section 7.4: new order, authorizations, challenges, finalize, certificate. Nothing is polled faster than the
server asks for. Invariant: a certificate replaces the old one only after it was checked to be for our key and names.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acme import errors, messages
from josepy.b64 import b64encode
from josepy.errors import Error as JoseError

from tunnelgw.config.files import write_atomic
from tunnelgw.identity.acme import proofs
from tunnelgw.identity.acme.session import Failed, Session, new_key, problem_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509 import Certificate

    from tunnelgw.identity.acme.dns import Records

    Present = Callable[[dict[str, Any]], None]

POLL_SECONDS = (0.2, 3.0)  # first and longest pause between two looks, where the server names none
CHAIN_CHARACTERS = 200_000  # a chain is about 4 KB
# RFC 9773, 5: it was replaced already, is not known, or is another account's. Then it is an order like any other.
_NOT_REPLACEABLE = ("alreadyReplaced", "malformed", "unauthorized")
DNS_PREFIX = "_acme-challenge."


class Order:
    """Inputs: a session, the job, `present` (returns once a challenge can be seen). Output: the file `out`."""

    def __init__(self, session: Session, job: dict[str, Any], present: Present) -> None:
        self._session = session
        self._job = job
        self._present = present
        self._until = time.monotonic() + job["seconds"]
        self._records: Records | None = None

    def run(self) -> dict[str, Any]:
        """The "done" message's values. Raises `Failed`, or what the library raises."""
        session, names = self._session, self._job["names"]
        session.sign_in()
        try:
            url, order = self._begin()
        except messages.Error as error:
            if error.code != "accountDoesNotExist":
                raise
            session.register_again()
            url, order = self._begin()
        try:
            self._authorize(order["authorizations"])
            key = new_key()
            request = b64encode(proofs.make_request(key, names)).decode()
            order = self._poll(url, ready=("ready",), busy=("pending",))
            session.post(order["finalize"], {"csr": request})
            order = self._poll(url, ready=("valid",), busy=("processing", "ready"))
        finally:
            self._clean()
        chain = self._chain(order["certificate"])
        leaf = proofs.check_issued(chain, key, names)
        write_atomic(Path(self._job["out"]), (chain.strip() + "\n" + key).encode(), mode=0o600)
        return {
            "not_before": leaf.not_valid_before_utc.timestamp(),
            "not_after": leaf.not_valid_after_utc.timestamp(),
            "window": self._window_or_none(leaf),
        }

    def _begin(self) -> tuple[str, dict[str, Any]]:
        session, job = self._session, self._job
        wanted: dict[str, Any] = {"identifiers": [{"type": "dns", "value": name} for name in job["names"]]}
        if job.get("profile"):
            wanted["profile"] = job["profile"]
        replaced = job.get("replaces")
        if replaced and session.offers("renewalInfo") and Path(replaced).exists():
            try:
                leaf = proofs.leaf_of(Path(replaced).read_text("ascii"))
                return self._new_order({**wanted, "replaces": proofs.renewal_id(leaf)})
            except (errors.ConflictError, messages.Error, Failed) as error:
                if isinstance(error, messages.Error) and error.code not in _NOT_REPLACEABLE:
                    raise
        return self._new_order(wanted)

    def _new_order(self, wanted: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        response = self._session.post(self._session.directory["newOrder"], wanted)
        return response.headers["Location"], response.json()

    # Authorizations.

    def _authorize(self, urls: list[str]) -> None:
        """Prove control of every name: show all proofs first, then ask the server to look."""
        asked = []
        for url in urls:
            authorization = self._session.post(url).json()
            if authorization["status"] == "valid":
                continue
            if authorization["status"] != "pending":
                raise Failed(f"the issuer will not look at {authorization['identifier']['value']} in this order")
            challenge = self._choose(authorization)
            self._show(challenge, authorization["identifier"]["value"])
            asked.append((url, challenge))
        if self._records is not None:
            self._records.settle()
        for _, challenge in asked:
            self._session.post(challenge["url"], {})
        for url, _ in asked:
            self._poll(url, ready=("valid",), busy=("pending",))

    def _choose(self, authorization: dict[str, Any]) -> dict[str, Any]:
        offered = {challenge["type"]: challenge for challenge in authorization["challenges"]}
        for kind in self._job["challenges"]:
            if kind in offered:
                return dict(offered[kind])
        name = authorization["identifier"]["value"]
        ways = " or ".join(self._job["challenges"])
        offers = ", ".join(sorted(offered)) or "nothing"
        raise Failed(f"the issuer offers {offers} for {name}, and we can answer {ways}")

    def _show(self, challenge: dict[str, Any], name: str) -> None:
        key = self._session.key
        assert key is not None
        if challenge["type"] != "dns-01":
            self._present(proofs.challenge_message(challenge["type"], name, challenge["token"], key))
            return
        if self._records is None:
            from tunnelgw.identity.acme.dns import Records

            self._records = Records(self._job["dns"])
        authorization = proofs.key_authorization(challenge["token"], key)
        self._records.publish(DNS_PREFIX + name, proofs.dns_value(authorization))

    def _clean(self) -> None:
        if self._records is not None:
            for problem in self._records.close():
                self._present({"event": "warning", "text": f"a DNS record was left behind: {problem}"})

    # Waiting.

    def _poll(self, url: str, *, ready: tuple[str, ...], busy: tuple[str, ...]) -> dict[str, Any]:
        """Look again until the status is one of `ready`; the object. Raises `Failed` with the server's reason."""
        pause, longest = POLL_SECONDS
        while True:
            found: dict[str, Any] = self._session.post(url).json()
            if found["status"] in ready:
                return found
            if found["status"] not in busy:
                raise Failed(_reason(found))
            wait = self._session.net.retry_after or pause
            if time.monotonic() + wait > self._until:
                raise Failed("the issuer did not come to a decision in time")
            time.sleep(wait)
            pause = min(pause * 2, longest)

    # The certificate.

    def _chain(self, url: str) -> str:
        response = self._session.post(url)
        chain = str(response.text)
        if len(chain) > CHAIN_CHARACTERS:
            raise Failed("the issuer sent a certificate that is far too long")
        preferred = self._job.get("preferred_chain")
        if not preferred or proofs.topmost_issuer(chain) == preferred:
            return chain
        for link in response.raw.headers.getlist("Link"):
            target, _, rest = link.partition(">")
            if 'rel="alternate"' in rest:
                other = str(self._session.post(target.lstrip("< ")).text)
                if len(other) <= CHAIN_CHARACTERS and proofs.topmost_issuer(other) == preferred:
                    return other
        return chain

    def _window_or_none(self, leaf: Certificate) -> dict[str, Any] | None:
        """The certificate is there; a server that stumbles over its renewal information takes nothing away."""
        try:
            return window(self._session, leaf)
        except (Failed, errors.Error, JoseError, OSError, ValueError, KeyError, TypeError):
            return None


def revoke(session: Session, job: dict[str, Any]) -> dict[str, Any]:
    """Tell the issuer that a certificate is not to be trusted any more; by the account that ordered it."""
    session.sign_in()
    leaf = proofs.leaf_of(Path(job["certificate"]).read_text("ascii"))
    request = {"certificate": proofs.as_text(leaf), "reason": job["reason"]}
    try:
        session.post(session.directory["revokeCert"], request)
    except messages.Error as error:
        if error.code != "alreadyRevoked":
            raise
    return {}


def renewal_windows(session: Session, job: dict[str, Any]) -> dict[str, Any]:
    """What the server suggests for each certificate; nothing for those that it does not know."""
    found: dict[str, Any] = {}
    for path in job["certificates"]:
        try:
            found[path] = window(session, proofs.leaf_of(Path(path).read_text("ascii")))
        except (Failed, errors.Error, JoseError, OSError, ValueError, KeyError, TypeError) as error:
            found[path] = {"error": str(error) or type(error).__name__, "retry_after": session.net.retry_after}
    return {"windows": found}


def window(session: Session, leaf: Certificate) -> dict[str, Any] | None:
    """RFC 9773, 4.2; None where the server suggests nothing."""
    base = session.offers("renewalInfo")
    if not base:
        return None
    response = session.net.get(f"{base.rstrip('/')}/{proofs.renewal_id(leaf)}")
    answer = response.json()
    suggested = answer["suggestedWindow"]
    return {
        "start": datetime.datetime.fromisoformat(suggested["start"]).timestamp(),
        "end": datetime.datetime.fromisoformat(suggested["end"]).timestamp(),
        "retry_after": session.net.retry_after,
        "why": str(answer.get("explanationURL", "")),
    }


def _reason(found: dict[str, Any]) -> str:
    """Why an order or an authorization failed, in the server's words."""
    texts = [problem_text(found["error"])] if found.get("error") else []
    name = found.get("identifier", {}).get("value", "")
    texts += [
        f"{challenge['type']} for {name}: {problem_text(challenge['error'])}"
        for challenge in found.get("challenges", ())
        if challenge.get("error")
    ]
    return "; ".join(texts) or f"the issuer gave up ({found['status']})"

"""The line to one ACME server: signed requests, and the account behind them.

The `acme` library signs, keeps nonces and checks answers. Added here: more patience with refused nonces, the server's
Retry-After, and failures as one line each. Invariant: an account's key is on disk (0600, synced) before the server
hears of it, so an account is made once and never lost.
"""

from __future__ import annotations

import email.utils
import json
import time
from pathlib import Path
from typing import Any

from acme import client, errors, messages
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.errors import DeserializationError
from josepy.interfaces import JSONDeSerializable
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from tunnelgw import __version__
from tunnelgw.config.files import make_private_folder, write_atomic
from tunnelgw.config.secret import read_secret

# A load balancer in front of a server that keeps nonces apart refuses some of them; each try takes a fresh one.
NONCE_TRIES = 16
REQUEST_SECONDS = 30
TEXT_CHARACTERS = 400  # of what a server says; the rest helps nobody in a log


class Failed(Exception):  # noqa: N818 - what the job's answer says
    """The job cannot be done. scope: "issuer" where the next host would fare no better."""

    def __init__(self, text: str, *, retry_after: float = 0.0, scope: str = "host") -> None:
        super().__init__(text)
        self.text = one_line(text)
        self.retry_after = retry_after
        self.scope = scope


class Json(JSONDeSerializable):
    """A request's body."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    def to_partial_json(self) -> dict[str, Any]:
        return self._value

    @classmethod
    def from_json(cls, jobj: Any) -> Json:
        return cls(jobj)


class Network(client.ClientNetwork):
    """As the library's; remembers how long the server asks to be left alone."""

    status = 0
    retry_after = 0.0

    def post(self, *args: Any, **options: Any) -> Any:
        for _ in range(NONCE_TRIES - 1):
            try:
                return self._post_once(*args, **options)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return self._post_once(*args, **options)

    def _send_request(self, *args: Any, **options: Any) -> Any:
        self.status, self.retry_after = 0, 0.0
        response = super()._send_request(*args, **options)
        self.status = response.status_code
        self.retry_after = retry_seconds(response.headers.get("Retry-After", ""), time.time())
        return response


class Session:
    """Requests to one server. `sign_in` before anything that needs an account."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.signed_in = False
        self.key: JWKEC | None = None
        self.net = Network(
            verify_ssl=job.get("ca_file") or True, user_agent=f"tunnelgw/{__version__}", timeout=REQUEST_SECONDS
        )
        self.directory = client.ClientV2.get_directory(job["directory"], self.net)

    def offers(self, name: str) -> str:
        """The URL of a resource; empty where the server has none."""
        return str(self.directory.to_partial_json().get(name, ""))

    def post(self, url: str, value: dict[str, Any] | None = None) -> Any:
        """A signed request; None fetches (POST-as-GET). The `requests` response."""
        body = None if value is None else Json(value)
        return self.net.post(url, body, new_nonce_url=self.directory["newNonce"])

    def sign_in(self) -> None:
        """With the account in the job's folder, made if there is none yet (its terms of service are agreed to)."""
        self._account = _Account(Path(self.job["account"]))
        key = serialization.load_pem_private_key(self._account.key.encode(), None)
        self.key = JWKEC(key=key)
        self.net.key, self.net.alg = self.key, ES256
        if not self._account.uri:
            self._register()
        self.net.account = messages.RegistrationResource(uri=self._account.uri, body=messages.Registration())
        if self._account.email != self.job["email"]:
            self.post(self._account.uri, {"contact": _contact(self.job["email"])})
            self._account.save(uri=self._account.uri, email=self.job["email"])
        self.signed_in = True

    def register_again(self) -> None:
        """The server does not know the account (it was made anew): register the same key."""
        self.net.account = None
        self._register()

    def _register(self) -> None:
        assert self.key is not None
        options: dict[str, Any] = {"terms_of_service_agreed": True, "contact": _contact(self.job["email"])}
        binding = self.job.get("eab")
        if binding:
            secret = binding.get("hmac") or read_secret(Path(binding["hmac_file"])).reveal()
            try:
                options["external_account_binding"] = messages.ExternalAccountBinding.from_data(
                    self.key.public_key(), binding["kid"], secret, self.directory
                )
            except DeserializationError:
                raise Failed("eab_hmac is not base64url as the issuer gives it", scope="issuer") from None
        server = client.ClientV2(self.directory, self.net)
        try:
            uri = server.new_account(messages.NewRegistration(**options)).uri
        except errors.ConflictError as error:  # the key is known: the account of an earlier time
            uri = error.location
        self.net.account = messages.RegistrationResource(uri=uri, body=messages.Registration())
        self._account.save(uri=uri, email=self.job["email"])


class _Account:
    """`account.json`: the key, the account's URL once the server gave one, and the address it was told."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "account.json"
        self.key, self.uri, self.email = "", "", ""
        try:
            found = json.loads(self._path.read_bytes())
            self.key, self.uri, self.email = str(found["key"]), str(found["uri"]), str(found["email"])
        except FileNotFoundError:
            make_private_folder(folder)
            self.key = new_key()
            self.save(uri="", email="")
        except (ValueError, KeyError, TypeError):
            raise Failed(f"{self._path} is damaged; move it away, and a new account is made", scope="issuer") from None

    def save(self, *, uri: str, email: str) -> None:
        self.uri, self.email = uri, email
        text = json.dumps({"key": self.key, "uri": uri, "email": email}, indent=1)
        write_atomic(self._path, text.encode(), mode=0o600)


def new_key() -> str:
    """A private key, PEM; ECDSA P-256, which every issuer signs and every browser takes."""
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def retry_seconds(text: str, now: float) -> float:
    """Retry-After (RFC 9110, 10.2.3) as seconds from now; 0.0 for none, or none that can be read."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def explain(error: Exception, net: Network | None) -> Failed:
    """Any failure of the library as one of ours."""
    status, retry_after = (net.status, net.retry_after) if net is not None else (0, 0.0)
    scope = "issuer" if status >= 500 else "host"
    if isinstance(error, messages.Error):
        if error.code == "externalAccountRequired":
            text = "the issuer wants an account made beforehand: set eab_kid and eab_hmac_file in [acme]"
            return Failed(text, scope="issuer", retry_after=retry_after)
        text = f"{error.code or status}: {problem_text(error.to_partial_json())}"
        return Failed(text, retry_after=retry_after, scope=scope)
    if isinstance(error, OSError):
        return Failed(f"the issuer cannot be reached: {_innermost(error)}", scope="issuer")
    if status >= 400:
        return Failed(f"the issuer answered {status}", retry_after=retry_after, scope=scope)
    return Failed(f"the issuer's answer makes no sense: {type(error).__name__} {error}", scope=scope)


def problem_text(problem: dict[str, Any]) -> str:
    """What a problem document (RFC 7807) says, its first subproblem included."""
    text = str(problem.get("detail") or problem.get("type") or "no reason given")
    for part in list(problem.get("subproblems") or ())[:1]:
        inner = part if isinstance(part, dict) else part.to_partial_json()
        text += f" ({inner.get('detail', '')})"
    return text


def one_line(text: str) -> str:
    """Fit for a log."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= TEXT_CHARACTERS else shown[:TEXT_CHARACTERS] + "..."


def _innermost(error: BaseException) -> str:
    """`requests` wraps what happened three times over."""
    while True:
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    return str(getattr(error, "verify_message", "") or getattr(error, "strerror", "") or error)


def _contact(address: str) -> tuple[str, ...]:
    return (f"mailto:{address}",) if address else ()

"""How to reach the broker: an address and the security options, for aiokafka's clients and for Faust."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient

SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER")
OPTIONS = (
    "security_protocol",
    "sasl_mechanism",
    "sasl_username",
    "sasl_password",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "sasl_token_file",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_check_hostname",
)

# What a mechanism cannot do without; GSSAPI takes its ticket from the environment.
_NEEDED = {
    "PLAIN": ("sasl_username", "sasl_password"),
    "SCRAM-SHA-256": ("sasl_username", "sasl_password"),
    "SCRAM-SHA-512": ("sasl_username", "sasl_password"),
    "GSSAPI": (),
    "OAUTHBEARER": ("sasl_token_file",),
}


@dataclass(frozen=True)
class Connection:
    """One broker address, `host:port[,host:port…]`, with security options named as in `OPTIONS`.

    Options left out, or None, take Kafka's defaults: PLAINTEXT, mechanism PLAIN, the system's
    authorities, host names checked. Raises ValueError for an unknown option or value, and for one
    that is missing. Options hold secrets and never show in `repr`.
    """

    address: str
    options: Mapping[str, str | bool | None] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        unknown = self.options.keys() - set(OPTIONS)
        if unknown:
            raise ValueError(f"broker {self.address}: no option {', '.join(sorted(unknown))}")
        _one_of("security_protocol", self._protocol, SECURITY_PROTOCOLS)
        _one_of("sasl_mechanism", self._mechanism, SASL_MECHANISMS)
        if self._text("ssl_keyfile") and not self._text("ssl_certfile"):
            raise ValueError("ssl_keyfile is set without ssl_certfile, the certificate it belongs to")
        missing = [name for name in _NEEDED[self._mechanism] if not self._text(name)]
        if self._protocol.startswith("SASL") and missing:
            raise ValueError(f"{self._protocol} with {self._mechanism} needs {' and '.join(missing)}")

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for an aiokafka producer, consumer or admin client.

        Reads the certificate files on the first call only; raises OSError or ssl.SSLError that names
        the file.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.address,
            "security_protocol": self._protocol,
        }
        if self._protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context
        if self._protocol.startswith("SASL"):
            options |= self._sasl_options()
        return options

    # Every client of an agent is made here, so that a connection may lead to another log than a broker's.

    def consumer(self, **options: Any) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(**self.client_options(), **options)

    def producer(self, **options: Any) -> AIOKafkaProducer:
        return AIOKafkaProducer(**self.client_options(), **options)

    def admin(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(**self.client_options())

    def faust_options(self) -> dict[str, Any]:
        """Keyword arguments for `faust.App`: `broker`, and `broker_credentials` unless PLAINTEXT."""
        options: dict[str, Any] = {"broker": [f"kafka://{host}" for host in self.address.split(",")]}
        if self._protocol != "PLAINTEXT":
            options["broker_credentials"] = self._faust_credentials()
        return options

    @property
    def _protocol(self) -> str:
        return self._text("security_protocol") or "PLAINTEXT"

    @property
    def _mechanism(self) -> str:
        return self._text("sasl_mechanism") or "PLAIN"

    def _text(self, name: str) -> str | None:
        value = self.options.get(name)
        return None if value is None else str(value)

    def _sasl_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"sasl_mechanism": self._mechanism}
        if self._mechanism == "GSSAPI":
            options["sasl_kerberos_service_name"] = self._text("sasl_kerberos_service_name") or "kafka"
            options["sasl_kerberos_domain_name"] = self._text("sasl_kerberos_domain_name")
        elif self._mechanism == "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = self._token_provider()
        else:
            options["sasl_plain_username"] = self._text("sasl_username")
            options["sasl_plain_password"] = self._text("sasl_password")
        return options

    def _faust_credentials(self) -> Any:
        # Only the supervisor is a Faust app; the other agents start without loading it.
        import faust

        if self._protocol == "SSL":
            return faust.SSLCredentials(self._ssl_context)
        context = self._ssl_context if self._protocol == "SASL_SSL" else None
        if self._mechanism == "GSSAPI":
            return faust.GSSAPICredentials(
                kerberos_service_name=self._text("sasl_kerberos_service_name") or "kafka",
                kerberos_domain_name=self._text("sasl_kerberos_domain_name"),
                ssl_context=context,
            )
        if self._mechanism == "OAUTHBEARER":
            return faust.auth.OAuthCredentials(oauth_cb=self._token_provider(), ssl_context=context)
        return faust.SASLCredentials(
            username=self._text("sasl_username"),
            password=self._text("sasl_password"),
            mechanism=self._mechanism,
            ssl_context=context,
        )

    def _token_provider(self) -> "TokenFile":
        return TokenFile(Path(str(self.options["sasl_token_file"])))

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._file("ssl_cafile"))
        context.check_hostname = self.options.get("ssl_check_hostname") is not False
        certificate = self._file("ssl_certfile")
        if certificate is not None:
            # Called for an encrypted key without a password, which else would ask the terminal.
            password = self._text("ssl_password") or ""
            context.load_cert_chain(certificate, self._file("ssl_keyfile"), lambda: password)
        return context

    def _file(self, name: str) -> str | None:
        path = self._text(name)
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{name}: {path} is not a file")  # OpenSSL's own error names no file
        return path


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships without types
    """The OAuth token in a file that something else renews, such as a projected service account token."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """The file's text, read anew for every connection; blocks for one small local read."""
        return self._path.read_text().strip()  # noqa: ASYNC240  a few kB on tmpfs


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(allowed)}")

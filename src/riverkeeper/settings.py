"""The settings of a process: flags first, then the environment (`RIVERKEEPER_…`), then the defaults.

docs/settings.md is `python -m riverkeeper.settings`.
"""

import os
import socket
import sys
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from .topics.connection import OPTIONS, Connection

PREFIX = "RIVERKEEPER_"
MIN_KEY_CHARACTERS = 32  # characters; 128 bits if they are hex digits, the least that HMAC-SHA256 deserves
NEW_KEY_COMMAND = "python3 -c 'import secrets; print(secrets.token_hex(32))'"


class SettingsError(ValueError):
    """A setting is missing or unfit; the message says which, and what to do."""


class Settings(BaseSettings):
    """What differs between deployments. A keyword argument wins over its environment variable.

    Raises pydantic.ValidationError, whose text never repeats a value it was given.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    broker: str = "127.0.0.1:9092"
    """Kafka's address, `host:port`, several with commas between. Default: Kafka's port on this machine."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to speak to the broker. Default: as Kafka's."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"] = "PLAIN"
    """How to prove who we are, with a SASL protocol. Default: as aiokafka's."""
    sasl_username: str | None = None
    """User name for PLAIN and SCRAM."""
    sasl_password: SecretStr | None = None
    """Password for PLAIN and SCRAM; never logged."""
    sasl_kerberos_service_name: str = "kafka"
    """The broker's Kerberos service, for GSSAPI. Default: Kafka's convention."""
    sasl_kerberos_domain_name: str | None = None
    """The broker's Kerberos domain, for GSSAPI; unset: the broker's host name."""
    sasl_token_file: str | None = None
    """File with the token for OAUTHBEARER, read again for every connection, so that it may be renewed."""
    ssl_cafile: str | None = None
    """File with the authorities that sign the broker's certificate; unset: the system's."""
    ssl_certfile: str | None = None
    """File with our own certificate, for brokers that ask for one."""
    ssl_keyfile: str | None = None
    """File with the certificate's key; unset: it is in the certificate's file."""
    ssl_password: SecretStr | None = None
    """Password of the key; never logged."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name its host. Default: yes, else anyone with a certificate could
    pose as the broker."""
    client_id: str = "riverkeeper"
    """Name under which the broker's logs, metrics and quotas know us."""
    signing_key: SecretStr | None = None
    """Key that model versions are signed with, 32 characters or more, the same in every process. No default,
    for a version is code to whoever opens it, and who knows the key can make one. The demo makes its own."""
    host: str = "127.0.0.1"
    """Address that /livez, /readyz and /metrics listen on. Default: this machine only, for they ask for no
    password; 0.0.0.0 in a container."""
    port: int = Field(default=9464, ge=0, le=65535)
    """Port of the same; 0: any free one. Default: the one that exporters of this kind use."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level of our own logs; those of libraries pass from WARNING on."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """How logs look. Default: text on a terminal, JSON elsewhere."""
    replica: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """Name of this process in vitals and logs. Default: `<host name>-<process id>`, which no two running
    processes share."""
    session_timeout: float = Field(default=10.0, ge=6.0, le=300.0)
    """Seconds without a heartbeat after which the group gives our partitions to others. Default: three missed
    heartbeats and time for a pause; brokers refuse less than 6."""
    replication: int = Field(default=3, ge=1, le=9)
    """Copies of each partition that `riverkeeper topics` asks for. Default: the loss of one broker of three
    stops nothing."""
    min_insync: int = Field(default=2, ge=1, le=9)
    """Copies that must have a record before it counts as written. Default: what was acknowledged outlives the
    loss of one broker."""
    checkpoint_seconds: float = Field(default=1.0, gt=0.0, le=60.0)
    """Seconds between checkpoints. Default: a takeover repeats about a second of work, and one transaction a
    second costs about 2 ms."""
    checkpoint_records: int = Field(default=50_000, ge=1, le=10_000_000)
    """Records of a partition after which a checkpoint is due even sooner. Default: about two seconds of
    scoring at full speed."""
    vitals_seconds: float = Field(default=1.0, gt=0.0, le=60.0)
    """Seconds that one report of vitals covers. Default: the supervisor notices within about a second, for
    one record per agent and model."""
    max_batch: int = Field(default=2_000, ge=1, le=100_000)
    """Records in one batch. Default: 0.1 s of work at 20 000/s, large enough to spread a batch's fixed
    costs."""
    lease_ms: int = Field(default=500, ge=50, le=1_000)
    """Milliseconds for which a model may be asked after the verdicts were last read to their end. Default:
    half of the second within which every replica must obey a verdict."""

    @field_validator("broker")
    @classmethod
    def _address(cls, broker: str) -> str:
        hosts = [host.strip() for host in broker.split(",")]
        for host in hosts:
            name, _, port = host.rpartition(":")
            if not name or not port.isdecimal():
                raise ValueError(f"{host!r} is not host:port; write 127.0.0.1:9092, say")
        return ",".join(hosts)

    @field_validator("signing_key")
    @classmethod
    def _long_enough(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < MIN_KEY_CHARACTERS:
            raise ValueError(f"shorter than {MIN_KEY_CHARACTERS} characters; make one with {NEW_KEY_COMMAND}")
        return key

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_insync > self.replication:
            raise ValueError(f"min_insync {self.min_insync} asks for more copies than replication makes")
        self.connection()
        return self

    def connection(self) -> Connection:
        """Where the broker is and how to speak to it, secrets in the clear: pass it on, do not print it."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return Connection(self.broker, {name: _plain(value) for name, value in values.items()})

    def required_signing_key(self) -> bytes:
        """The key's bytes. Raises SettingsError that says how to make one."""
        if self.signing_key is None:
            raise SettingsError(
                f"{PREFIX}SIGNING_KEY is not set, and model versions must be signed on a shared broker; "
                f"make a key with {NEW_KEY_COMMAND} and give the same one to every process"
            )
        return self.signing_key.get_secret_value().encode()

    def json_logs(self) -> bool:
        """Whether logs go out as JSON; for "auto", whether standard error is no terminal."""
        return self.log_format == "json" or (self.log_format == "auto" and not sys.stderr.isatty())


# Settings that are variables only: every user of a machine may list its command lines.
SECRETS = frozenset({"sasl_password", "ssl_password", "signing_key"})


def _plain(value: SecretStr | str | bool | None) -> str | bool | None:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def document() -> str:
    """docs/settings.md, from `Settings`."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join([*_HEAD, *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    meaning = " ".join(str(field.description).split())
    return f"| `{PREFIX}{name.upper()}` | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "computed"
    if field.default is None:
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


_HEAD = [
    "# Settings",
    "",
    "Environment variables of every process. A command's flag of the same name wins; an empty variable",
    "counts as unset. This page is made from the code: `python -m riverkeeper.settings > docs/settings.md`.",
    "",
    "| variable | default | meaning |",
    "|---|---|---|",
]


if __name__ == "__main__":
    sys.stdout.write(document())

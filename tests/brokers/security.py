"""A secured Kafka for the tests: TLS with an authority of its own, SCRAM users, nothing allowed unless granted."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

ADMIN = "admin"
SECONDS = 30.0  # for a request of the administrator, or a certificate
LOOK_SECONDS = 1.0  # for an answer while the broker starts
ITERATIONS = 4_096  # of SCRAM: the least that Kafka takes


@dataclass(frozen=True)
class Authority:
    """A certificate authority and a broker's certificate that it signed, made by openssl in a folder."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def broker(self) -> Path:
        """Key and certificate in one file, as Kafka takes them."""
        return self.folder / "broker.pem"

    @classmethod
    def make(cls, folder: Path) -> Authority:
        folder.mkdir(parents=True, exist_ok=True)
        it = cls(folder)
        new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        it._openssl(*new, "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.crt")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        it._openssl(*new, *signed, "-subj", "/CN=broker", "-keyout", "broker.key", "-out", "broker.crt")
        pieces = [(folder / name).read_text() for name in ("broker.key", "broker.crt", "ca.crt")]
        it.broker.write_text("".join(pieces))
        return it

    def _openssl(self, *words: str) -> None:
        done = subprocess.run(
            ["openssl", *words], cwd=self.folder, capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode != 0:
            raise RuntimeError(f"openssl {words[0]}: {done.stderr}")


@dataclass(frozen=True)
class Secured:
    """SASL_SSL with SCRAM-SHA-512 for whoever comes to the port, and Kafka's own authorizer behind it."""

    authority: Authority
    password: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def format_arguments(self) -> tuple[str, ...]:
        return ("--add-scram", f"SCRAM-SHA-512=[name={ADMIN},password={self.password}]")

    def properties(self, port: int, controller_port: int) -> dict[str, object]:
        jaas = f'required username="{ADMIN}" password="{self.password}"'
        module = "org.apache.kafka.common.security"
        return {
            "listeners": f"SECURED://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"SECURED://127.0.0.1:{port}",
            "listener.security.protocol.map": "SECURED:SASL_SSL,CONTROLLER:SASL_PLAINTEXT",
            "inter.broker.listener.name": "SECURED",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secured.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule {jaas};",
            "listener.name.controller.plain.sasl.jaas.config": (
                f'{module}.plain.PlainLoginModule {jaas} user_{ADMIN}="{self.password}";'
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.authority.broker,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority.certificate,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{ADMIN}",
        }

    def brokers_seen(self, port: int) -> set[int]:
        """The ids of the live brokers by the one on that port; none if it does not answer."""
        try:
            return set(self.admin(f"127.0.0.1:{port}").list_topics(timeout=LOOK_SECONDS).brokers)
        except KafkaException:
            return set()

    # The administrator.

    def admin(self, address: str) -> AdminClient:
        return AdminClient(
            {
                "bootstrap.servers": address,
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": ADMIN,
                "sasl.password": self.password,
                "ssl.ca.location": str(self.authority.certificate),
                "log_level": 0,
            }
        )

    def tool_properties(self) -> str:
        """The administrator's `--command-config` for Kafka's own tools."""
        jaas = f'username="{ADMIN}" password="{self.password}"'
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        settings = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.jaas.config": f"{module} required {jaas};",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority.certificate,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def add_user(admin: AdminClient, user: str, password: str) -> None:
    made = UserScramCredentialUpsertion(
        user, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS), password.encode()
    )
    for future in admin.alter_user_scram_credentials([made]).values():
        future.result(SECONDS)


@dataclass(frozen=True)
class Grant:
    """One right of one user, as Kafka keeps it: "transactional-id", "a.", "prefixed", "Write"."""

    user: str
    resource: str
    name: str
    pattern: str
    operation: str

    def binding(self) -> AclBinding:
        return AclBinding(*self._words(), AclPermissionType.ALLOW)

    def filter(self) -> AclBindingFilter:
        return AclBindingFilter(*self._words(), AclPermissionType.ALLOW)

    def _words(self) -> tuple[ResourceType, str, ResourcePatternType, str, str, AclOperation]:
        return (
            ResourceType[self.resource.upper().replace("-", "_")],
            self.name,
            ResourcePatternType[self.pattern.upper()],
            f"User:{self.user}",
            "*",
            AclOperation[re.sub("(?<=[a-z])(?=[A-Z])", "_", self.operation).upper()],
        )


def grant(admin: AdminClient, grants: Iterable[Grant]) -> None:
    for future in admin.create_acls([each.binding() for each in grants]).values():
        future.result(SECONDS)


def revoke(admin: AdminClient, grants: Iterable[Grant]) -> None:
    """Raises KeyError for a grant that is not there: a test that takes nothing away proves nothing."""
    for each, future in admin.delete_acls([each.filter() for each in grants]).items():
        if not future.result(SECONDS):
            raise KeyError(each)


def granted(admin: AdminClient, user: str) -> set[Grant]:
    """All that a user may."""
    anything = AclBindingFilter(
        ResourceType.ANY,
        None,  # type: ignore[arg-type]  # any
        ResourcePatternType.ANY,
        f"User:{user}",
        None,  # type: ignore[arg-type]
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    return {
        Grant(
            user,
            acl.restype.name.lower().replace("_", "-"),
            acl.name,
            acl.resource_pattern_type.name.lower(),
            acl.operation.name.title().replace("_", ""),
        )
        for acl in admin.describe_acls(anything).result(SECONDS)
    }

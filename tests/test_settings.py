"""Settings come from flags, then the environment; secrets never show; a wrong one says what to do."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaProducer
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from pydantic import ValidationError

from riverkeeper.settings import NEW_KEY_COMMAND, Settings, SettingsError, document
from riverkeeper.topics.connection import OPTIONS, Connection, TokenFile

ROOT = Path(__file__).parents[1]
KEY = "0123456789abcdef" * 4
SASL = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "jane", "sasl_password": "hunter2"}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("RIVERKEEPER_"):
            monkeypatch.delenv(name)


def settings(**flags: Any) -> Settings:
    return Settings(**flags)


def test_flags_win_over_the_environment_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings().broker == "127.0.0.1:9092"
    monkeypatch.setenv("RIVERKEEPER_BROKER", "kafka:9092")
    assert settings().broker == "kafka:9092"
    assert settings(broker="a:1,b:2").broker == "a:1,b:2"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERKEEPER_SIGNING_KEY", "")
    assert settings().signing_key is None


def test_the_page_is_current() -> None:
    current = (ROOT / "docs/settings.md").read_text()
    assert current == document(), "run: python -m riverkeeper.settings > docs/settings.md"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description, name
    if field.default is not None:
        assert "Default" in field.description or name in ("client_id", "log_level"), (
            "the reason for the default"
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"broker": "kafka"},
        {"broker": "kafka:9092,other"},
        {"broker": ":9092"},
        {"security_protocol": "TLS"},
        {"security_protocol": "SASL_SSL"},
        {**SASL, "sasl_password": None},
        {**SASL, "sasl_mechanism": "OAUTHBEARER"},
        {"ssl_keyfile": "key.pem"},
        {"min_insync": 4},
        {"session_timeout": 1.0},
        {"lease_ms": 5_000},
        {"port": 70_000},
        {"signing_key": "short"},
        {"brokers": "kafka:9092"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(wrong: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)


def test_secrets_show_nowhere() -> None:
    held = settings(**SASL, signing_key=KEY)
    for text in (repr(held), str(held), held.model_dump_json(), repr(held.connection())):
        assert "hunter2" not in text
        assert KEY not in text


def test_an_error_does_not_repeat_a_secret() -> None:
    with pytest.raises(ValidationError) as refused:
        settings(signing_key="only-hunter2")
    assert "hunter2" not in str(refused.value)
    assert NEW_KEY_COMMAND in str(refused.value)


def test_a_missing_key_says_how_to_make_one() -> None:
    with pytest.raises(SettingsError, match="RIVERKEEPER_SIGNING_KEY is not set.*secrets.token_hex"):
        settings().required_signing_key()
    made = subprocess.run(
        NEW_KEY_COMMAND, shell=True, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert settings(signing_key=made).required_signing_key() == made.encode()


def test_logs_are_json_unless_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(log_format="json").json_logs()
    assert not settings(log_format="console").json_logs()
    for watched in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda watched=watched: watched)
        assert settings().json_logs() is not watched


# What becomes of them: a connection.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate, and its key with the password `hunter2`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -passout pass:hunter2 -days 1 -subj /CN=kafka"
    subprocess.run(
        [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_options_are_settings() -> None:
    assert set(OPTIONS) <= Settings.model_fields.keys()


def test_a_plain_connection() -> None:
    connection = settings(broker="a:1, b:2").connection()
    assert connection == Connection("a:1,b:2", connection.options)
    assert connection.client_options() == {"bootstrap_servers": "a:1,b:2", "security_protocol": "PLAINTEXT"}
    assert connection.faust_options() == {"broker": ["kafka://a:1", "kafka://b:2"]}


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match="no option sasl_pasword"):
        Connection("a:1", {"sasl_pasword": "x"})


def test_a_password_reaches_both_clients() -> None:
    connection = settings(**SASL, sasl_mechanism="SCRAM-SHA-512").connection()
    options = connection.client_options()
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("jane", "hunter2")
    assert as_faust_would(connection) == as_ours(connection)


def test_certificates_reach_both_clients(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    connection = settings(
        **(SASL | {"security_protocol": "SASL_SSL"}),
        ssl_cafile=cert,
        ssl_certfile=cert,
        ssl_keyfile=key,
        ssl_password="hunter2",
    ).connection()
    context = connection.client_options()["ssl_context"]
    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert [ca["subject"] for ca in context.get_ca_certs()] == [((("commonName", "kafka"),),)]
    assert as_faust_would(connection) == as_ours(connection)


def test_tls_without_a_password_of_our_own(certificate: tuple[str, str]) -> None:
    connection = Connection(
        "a:1", {"security_protocol": "SSL", "ssl_cafile": certificate[0], "ssl_check_hostname": False}
    )
    assert not connection.client_options()["ssl_context"].check_hostname
    assert as_faust_would(connection) == as_ours(connection)


def test_a_wrong_key_password_is_an_error_and_no_question(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    options = {"security_protocol": "SSL", "ssl_certfile": cert, "ssl_keyfile": key}
    with pytest.raises(ssl.SSLError):
        Connection("a:1", options).client_options()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="ssl_cafile: /nowhere/ca.pem"):
        Connection("a:1", {"security_protocol": "SSL", "ssl_cafile": "/nowhere/ca.pem"}).client_options()


async def test_a_token_is_read_again_for_every_connection(tmp_path: Path) -> None:
    file = tmp_path / "token"
    connection = Connection(
        "a:1",
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_token_file": str(file),
        },
    )
    provider = connection.client_options()["sasl_oauth_token_provider"]
    assert isinstance(provider, TokenFile)
    for token in ("first", "second"):
        file.write_text(token + "\n")
        assert await provider.token() == token
    assert as_faust_would(connection).keys() == as_ours(connection).keys()


def test_kerberos_reaches_both_clients() -> None:
    connection = settings(security_protocol="SASL_PLAINTEXT", sasl_mechanism="GSSAPI").connection()
    assert connection.client_options()["sasl_kerberos_service_name"] == "kafka"
    assert as_faust_would(connection) == as_ours(connection)


@pytest.mark.parametrize("options", [{}, SASL])
async def test_aiokafka_takes_the_options(options: Mapping[str, str]) -> None:
    await AIOKafkaProducer(**Connection("127.0.0.1:1", options).client_options()).stop()


def as_faust_would(connection: Connection) -> dict[str, Any]:
    """What Faust itself hands to aiokafka for these credentials."""
    app = faust.App("test", **connection.faust_options())
    return {
        k: v for k, v in credentials_to_aiokafka_auth(app.conf.broker_credentials).items() if v is not None
    }


def as_ours(connection: Connection) -> dict[str, Any]:
    options = connection.client_options()
    del options["bootstrap_servers"]
    return {k: v for k, v in options.items() if v is not None}

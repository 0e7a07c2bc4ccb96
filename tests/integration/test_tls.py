"""TLS: the exchange's own certificate, pinned by its clients, or an operator's."""

from __future__ import annotations

import asyncio
import datetime
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from academy.exception import ExchangeConnectionError
from academy.exchange import HttpExchangeFactory
from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.cloud.security.certificate import Certificate
from academy.handle import Handle
from academy.manager import Manager
from tests.support.agents import Adder
from tests.support.server import ExchangeServer

WRONG = "ab" * 32
Issuer: TypeAlias = tuple[x509.Name, ec.EllipticCurvePrivateKey]
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    with ExchangeServer(tmp_path_factory.mktemp("exchange"), tls=True) as server:
        yield server


async def ask(factory: HttpExchangeFactory) -> None:
    async with await factory.create_user_client() as client:
        await client.status(client.client_id)


def certify(
    folder: Path, subject: str, days: int, issuer: Issuer | None = None
) -> Issuer:
    """Write subject.pem and subject.key, of an authority or signed by one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    issuer_name, issuer_key = issuer or (name, key)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
        )
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True
        )
        .sign(issuer_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / f"{subject}.pem").write_bytes(certificate.public_bytes(pem))
    (folder / f"{subject}.key").write_bytes(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return name, key


# --- a certificate of its own


def test_an_exchange_makes_a_certificate_once_and_only_its_owner_can_read_the_key(
    academy_home: Path,
) -> None:
    first = ExchangeServingConfig().certificate()
    again = ExchangeServingConfig().certificate()

    assert first is not None
    assert first == again
    assert first.certfile == academy_home / "exchange.pem"
    assert stat.S_IMODE(first.certfile.stat().st_mode) == 0o600
    assert first.fingerprint is not None
    assert len(bytes.fromhex(first.fingerprint)) == 32


@pytest.mark.parametrize("days", [-1, 5])
def test_a_certificate_that_has_expired_or_soon_will_is_made_anew(
    tmp_path: Path, days: int
) -> None:
    certify(tmp_path, "old", days)
    old = (tmp_path / "old.pem").read_bytes()

    made = Certificate.made_here(tmp_path / "old.pem")

    assert (tmp_path / "old.pem").read_bytes() != old
    assert made == Certificate.made_here(tmp_path / "old.pem")


def test_what_is_no_certificate_is_left_alone_and_named(tmp_path: Path) -> None:
    path = tmp_path / "exchange.pem"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"exchange\.pem holds no certificate"):
        Certificate.made_here(path)
    assert path.read_text() == "precious"


# --- pinned


async def test_agents_take_along_which_certificate_to_trust(
    exchange: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factory that is launched with them finds it; they need not."""
    monkeypatch.setenv("ACADEMY_EXCHANGE_FINGERPRINT", exchange.fingerprint)
    factory = exchange.factory(fingerprint=None)
    travels = pickle.loads(pickle.dumps(factory.for_agents()))
    monkeypatch.delenv("ACADEMY_EXCHANGE_FINGERPRINT")

    assert travels.find_fingerprint() == exchange.fingerprint
    async with await Manager.from_exchange_factory(
        travels.with_token(factory.find_token())
    ) as manager:
        adder: Handle[Adder] = await manager.launch(Adder)
        assert await adder.add(1, 2) == 3


async def test_a_fingerprint_is_found_in_the_file_of_exchanges_by_url(
    exchange: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_HOME", str(exchange.home))
    factory = HttpExchangeFactory(exchange.url)

    assert factory.find_fingerprint() == exchange.fingerprint
    await ask(factory)


async def test_a_fingerprint_may_be_spelled_as_openssl_does(
    exchange: ExchangeServer,
) -> None:
    digits = exchange.fingerprint.upper()
    colons = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    await ask(exchange.factory(fingerprint=colons))


@pytest.mark.parametrize("text", ["ab", "x" * 64, WRONG + "00"])
def test_what_is_no_fingerprint_is_refused_with_where_to_get_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"64 hex digits.*academy exchange status"):
        HttpExchangeFactory("https://a", fingerprint=text)


@pytest.mark.parametrize("older", [False, True], ids=["v2", "v1"])
async def test_a_stranger_with_another_certificate_gets_no_byte_of_a_token(
    exchange: ExchangeServer, tmp_path: Path, older: bool
) -> None:
    stranger = Certificate.made_here(tmp_path / "stranger.pem")
    received = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(
        serve, "127.0.0.1", 0, ssl=stranger.context()
    ) as server:
        port = server.sockets[0].getsockname()[1]
        factory = exchange.factory(port, retries=0)
        factory.speaks_v1 = older
        with pytest.raises(ExchangeConnectionError) as refused:
            await ask(factory)

    assert exchange.fingerprint in str(refused.value)
    assert str(stranger.fingerprint) in str(refused.value)  # so that it was reached
    assert not any(received)


async def test_a_certificate_that_nobody_vouches_for_is_refused_with_what_to_do(
    exchange: ExchangeServer,
) -> None:
    with pytest.raises(ExchangeConnectionError, match=r"fingerprint=.*SSL_CERT_FILE"):
        await ask(exchange.factory(fingerprint=None, retries=0))


async def test_any_certificate_will_do_for_who_says_so(
    exchange: ExchangeServer,
) -> None:
    await ask(exchange.factory(fingerprint=None, ssl_verify=False))


async def test_protocol_v1_pins_as_well(exchange: ExchangeServer) -> None:
    factory = exchange.factory()
    factory.speaks_v1 = True
    await ask(factory)


# --- http and https


async def test_http_to_a_port_that_speaks_https_says_so(
    exchange: ExchangeServer,
) -> None:
    plain = exchange.url.replace("https", "http")
    factory = HttpExchangeFactory(plain, token="x", retries=0)
    with pytest.raises(ExchangeConnectionError, match=f"its url is {exchange.url}"):
        await ask(factory)


async def test_https_to_a_port_that_speaks_http_says_so(tmp_path: Path) -> None:
    with ExchangeServer(tmp_path) as plain:
        url = plain.url.replace("http", "https")
        factory = HttpExchangeFactory(url, token="x", retries=0, fingerprint=WRONG)
        with pytest.raises(ExchangeConnectionError, match=f"is its url {plain.url}"):
            await ask(factory)


# --- an operator's certificate


def test_a_certificate_of_an_authority_needs_no_fingerprint(tmp_path: Path) -> None:
    """In a process of its own, since Python reads SSL_CERT_FILE once."""
    certify(tmp_path, "server", 90, certify(tmp_path, "authority", 90))
    exchange = ExchangeServer(
        tmp_path / "exchange",
        tls=True,
        certfile=tmp_path / "server.pem",
        keyfile=tmp_path / "server.key",
    )
    program = (
        "import asyncio, sys\n"
        "from academy.exchange import HttpExchangeFactory\n"
        "async def main():\n"
        "    factory = HttpExchangeFactory(sys.argv[1])\n"
        "    assert factory.find_fingerprint() is None\n"
        "    async with await factory.create_user_client() as client:\n"
        "        print(await client.status(client.client_id))\n"
        "asyncio.run(main())\n"
    )
    with exchange:
        url = exchange.url.replace("127.0.0.1", "localhost")
        child = subprocess.run(
            [sys.executable, "-c", program, url],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "ACADEMY_EXCHANGE_TOKEN": exchange.authority.user_token("tester"),
                "SSL_CERT_FILE": str(tmp_path / "authority.pem"),
            },
        )

    assert child.stdout == "MailboxStatus.ACTIVE\n", child.stderr


@pytest.mark.parametrize(
    ("certfile", "keyfile", "words"),
    [
        ("nowhere.pem", None, "nowhere.pem"),
        ("a.pem", None, "no certificate and its key"),
        ("a.pem", "b.key", "no certificate and its key"),
        ("text", None, "no certificate and its key"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, certfile: str, keyfile: str | None, words: str
) -> None:
    certify(tmp_path, "a", 90)
    certify(tmp_path, "b", 90)
    (tmp_path / "text").write_text("text")
    key = tmp_path / keyfile if keyfile else None
    with pytest.raises(ValueError, match=words) as refused:
        Certificate(tmp_path / certfile, key).context()
    assert certfile in str(refused.value)


def test_settings_of_tls_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="tls = false serves no"):
        ExchangeServingConfig(tls=False, certfile=Path("a.pem"))
    with pytest.raises(ValueError, match="certfile, which is missing"):
        ExchangeServingConfig(keyfile=Path("a.key"))


def test_an_insecure_exchange_speaks_http_unless_it_is_given_a_certificate() -> None:
    assert ExchangeServingConfig(insecure=True).certificate() is None
    given = ExchangeServingConfig(insecure=True, certfile=Path("a.pem"))
    assert given.certificate() == Certificate(Path("a.pem"))

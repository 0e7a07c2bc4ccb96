"""The certificate that an exchange makes for itself, for clients that pin it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from academy.home import get_academy_home, write_private
from academy.socket import reachable_addresses

LIFETIME = datetime.timedelta(days=3650)
"""Long, since clients trust the certificate itself and not whoever has issued it."""

SPARE = datetime.timedelta(days=30)
"""A server that starts so shortly before the end makes a new certificate."""


@dataclass(frozen=True)
class Certificate:
    """What a server shows that speaks TLS.

    Attributes:
        certfile: the certificate, and those between it and its authority.
        keyfile: its key; None if that is in `certfile`.
        fingerprint: SHA-256 in hex digits, if clients have to pin the certificate.
    """

    certfile: Path
    keyfile: Path | None = None
    fingerprint: str | None = None

    @classmethod
    def made_here(cls, path: Path | None = None) -> Certificate:
        """Return the one that this exchange has made for itself, now or before.

        Args:
            path: where it lies. Default: `exchange.pem` under the Academy home.

        Raises:
            ValueError: something else lies there.
        """
        path = _self_signed(path or get_academy_home() / "exchange.pem")
        return cls(path, fingerprint=cls(path).digest())

    def digest(self) -> str:
        """Return its SHA-256, which other servers of this exchange pin in any case."""
        return _load(self.certfile).fingerprint(hashes.SHA256()).hex()

    def context(self) -> ssl.SSLContext:
        """Return what a server needs.

        Raises:
            ValueError: the files are not what they should be; says which, and why.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        files = [file for file in (self.certfile, self.keyfile) if file is not None]
        names = " and ".join(map(str, files))
        try:
            context.load_cert_chain(self.certfile, self.keyfile)
        except FileNotFoundError as error:
            gone = [str(file) for file in files if not file.exists()]
            raise ValueError(f"TLS needs {names}: no {' nor '.join(gone)}.") from error
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"{names}: no certificate and its key, both as PEM ({error})."
            ) from error
        return context


def _self_signed(path: Path) -> Path:
    """Return a file (mode 0600) of a key and its certificate; make it if need be."""
    with contextlib.suppress(FileNotFoundError):
        if _load(path).not_valid_after_utc > _now() + SPARE:
            return path
    # An elliptic curve: RSA keys take a second to make, and each handshake longer.
    key = ec.generate_private_key(ec.SECP256R1())
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return write_private(path, content + _certificate(key))


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} holds no certificate ({error}). Delete it for a new one."
        ) from error


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Academy exchange")])
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # Clocks of a cluster may differ.
        .not_valid_before(_now() - datetime.timedelta(days=1))
        .not_valid_after(_now() + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(_names()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public), critical=False
        )
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def _names() -> list[x509.GeneralName]:
    """Name this machine in all ways by which clients may know it."""
    hosts = {socket.gethostname(), socket.getfqdn(), "localhost"}
    addresses = {"127.0.0.1", "::1", *reachable_addresses()}
    return [
        *(x509.DNSName(host) for host in sorted(hosts) if host.isascii()),
        *(x509.IPAddress(ipaddress.ip_address(text)) for text in sorted(addresses)),
    ]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

"""Certificates of a SuperLink and keys of SuperNodes:
`python -m fedduet.scripts.deploy.keys --out keys --host NAME --node north ...`."""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAYS = 825  # longest that common TLS clients accept of a server's certificate


def make_keys(out: Path, hosts: Sequence[str], nodes: Sequence[str], days: int = DAYS) -> None:
    """`ca.crt`, `server.pem` and `server.key` for a SuperLink reached as `hosts`; `NODE` (private)
    and `NODE.pub` for each SuperNode.

    What is there stays as it is, so that a new node can be added later: the authority's key is
    `ca.key`, for nobody else's machine. Private keys have mode 600. Raises ValueError for no host.
    """
    if not hosts:
        raise ValueError(
            "--host: found none; give every name and address under which the SuperLink is reached"
        )
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, issuer = _authority(out, days)
    if not (out / "server.pem").exists():
        key = ec.generate_private_key(ec.SECP384R1())
        names = [
            x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)
            for host in hosts
        ]
        request = _builder(_name(hosts[0]), issuer, key.public_key(), days)
        request = request.add_extension(x509.SubjectAlternativeName(names), critical=False)
        request = request.add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        request = request.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        _write(out / "server.key", _private(key), 0o600)
        _write(
            out / "server.pem",
            request.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM),
            0o644,
        )
    for node in nodes:
        if not (out / node).exists():
            key = ec.generate_private_key(ec.SECP384R1())
            _write(out / node, _private(key, serialization.PrivateFormat.OpenSSH), 0o600)
            public = key.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
            _write(out / f"{node}.pub", public + f" {node}\n".encode(), 0o644)


def _authority(out: Path, days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Name]:
    issuer = _name("FedDuet SuperLink authority")
    if (out / "ca.key").exists():
        key = serialization.load_pem_private_key((out / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key, issuer
    key = ec.generate_private_key(ec.SECP384R1())
    made = _builder(issuer, issuer, key.public_key(), days)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = made.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    # signs certificates and revocation lists
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = made.add_extension(usage, critical=True).sign(key, hashes.SHA384())
    _write(out / "ca.key", _private(key), 0o600)
    _write(out / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return key, issuer


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return (
        made.serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _private(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(file: Path, content: bytes, mode: int) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(content)


def main(argv: Sequence[str]) -> int:
    """Make what is missing; 2 for input that cannot work."""
    parser = argparse.ArgumentParser(
        prog="python -m fedduet.scripts.deploy.keys", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, made with mode 700")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        help="name or address under which the SuperLink is reached; repeatable",
    )
    parser.add_argument(
        "--node", action="append", default=[], help="name of a SuperNode; repeatable"
    )
    given = parser.parse_args(list(argv))
    try:
        make_keys(given.out, given.host, given.node)
    except (OSError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(
        f"{given.out}: ca.crt (for every machine), server.pem and server.key (the SuperLink's),"
        f" {', '.join(given.node) or 'no nodes'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

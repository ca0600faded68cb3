"""A certificate authority for the lab, made by the openssl program."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ramnet.errors import LabError
from ramnet.lab.programs import require

DAYS = 7  # a lab lives for minutes

_CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {names}
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class Pki:
    """An authority whose certificate is ``ca``: give it to programs as SSL_CERT_FILE."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = self._make("ca", "ramnet lab", "authority", ())

    @property
    def ca(self) -> Path:
        """The authority's certificate, a PEM file."""
        return self._authority.certificate

    def issue(self, file: str, hosts: Iterable[str]) -> Certificate:
        """Make a server certificate for host names, ``*.`` wildcards and addresses."""
        names = sorted(set(hosts))
        if not names:
            raise LabError("a server certificate needs a name")
        return self._make(file, names[0], "server", names)

    def _make(self, file: str, name: str, section: str, hosts: Iterable[str]) -> Certificate:
        made = Certificate(self._directory / f"{file}.pem", self._directory / f"{file}.key")
        config = self._directory / f"{file}.cnf"
        names = ", ".join(map(_alternative_name, hosts)) or "DNS:unused"
        config.write_text(_CONFIG.format(name=name, names=names), encoding="utf-8")
        argv = [require("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        argv += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", str(DAYS)]
        argv += ["-config", str(config), "-extensions", section]
        argv += ["-keyout", str(made.key), "-out", str(made.certificate)]
        if section == "server":
            argv += ["-CA", str(self._authority.certificate), "-CAkey", str(self._authority.key)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(
                f"openssl made no certificate for {name}: {done.stderr.strip()}",
                hint="the lab needs OpenSSL 3",
            )
        return made


def _alternative_name(host: str) -> str:
    try:
        return f"IP:{ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"

"""How the relay proves itself to an upstream over TLS, and what it takes for one."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi


def context(ca_file: Path | None = None, client_cert: Path | None = None) -> ssl.SSLContext:
    """Who is trusted: the authorities in `ca_file` and no others, else the public ones and the system's own. Raises
    ValueError, with a message that names the file."""
    if ca_file is None:
        made = ssl.create_default_context(cafile=certifi.where())
        made.load_default_certs()
    else:
        try:
            made = ssl.create_default_context(cafile=str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"ca_file {ca_file}: cannot be used ({_why(error)}); give a PEM file with the certificates of the "
                "authorities"
            ) from None
    if client_cert is not None:
        try:
            # A key with a passphrase would have the start wait for somebody at a terminal.
            made.load_cert_chain(str(client_cert), password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"client_cert {client_cert}: cannot be used ({_why(error)}); give a PEM file with the certificate, its "
                "chain and its key, which has no passphrase"
            ) from None
    return made


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__

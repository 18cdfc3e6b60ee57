"""Whose certificates commands believe, and in words what is wrong with the TLS of a connection that failed."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

import httpx

from fastchat_serve.errors import StartupError

__all__ = ["tls_mismatch", "trusted"]

_UNKNOWN_AUTHORITY: Final = frozenset((18, 19, 20, 21))
"""OpenSSL's codes for a certificate that leads to no authority we have; others are expired, of another host, …"""


def trusted(ca: Path | None) -> ssl.SSLContext:
    """The authority in the file `ca`, else those of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``, else the usual ones.

    Raises:
        StartupError: There is no such file, or it is none of certificates.
    """
    named = f"--ca {ca}" if ca is not None else f"SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE', '')}"
    try:
        return httpx.create_ssl_context() if ca is None else ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise StartupError(f"{named}: this is no file of certificates in PEM.") from None
    except OSError as error:
        raise StartupError(f"{named}: cannot read this file: {error.strerror or error}.") from None


def tls_mismatch(error: Exception, url: str) -> str | None:
    """What to tell of a request that got no answer, and what to do; None if it has nothing to do with TLS."""
    if url.startswith("http://"):
        if not isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            return None
        return f"The server at {url} hung up without a reply. If it speaks TLS, its address begins with https://."
    cause = _ssl_error(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        said = f"The certificate of {url} is not believed: {cause.verify_message.rstrip('.')}."
        if cause.verify_code in _UNKNOWN_AUTHORITY:
            said += " If it is of an authority of your own, name that with --ca FILE or in SSL_CERT_FILE."
        return said
    if cause is not None and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return f"The server at {url} does not speak TLS. If it is the right one, its address begins with http://."
    return None


def _ssl_error(error: BaseException) -> ssl.SSLError | None:
    """Behind what the HTTP libraries have made of it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause

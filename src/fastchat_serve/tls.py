"""TLS between the roles, and for clients: contexts from the config.

Either side of a link shows the certificate of its process, ``[server] tls_certificate``. With ``[cluster] tls_ca`` both
sides check the other's against it.
"""

from __future__ import annotations

import ssl

from fastchat_serve.config import Config
from fastchat_serve.configfile.places import KeyPath

__all__ = ["dialling_context", "serving_context"]


def serving_context(config: Config) -> ssl.SSLContext | None:
    """For the server's socket; None: plain HTTP. Raises `ConfigError`.

    Clients of the API need no certificate, so none is demanded at this point: links are refused without one.
    """
    server, cluster = config.server, config.cluster
    if server.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_own(config, context)
    if cluster.tls_ca is not None:
        _trust(config, context)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def dialling_context(config: Config) -> ssl.SSLContext | None:
    """For ``https://`` addresses of other roles; None: the system's authorities. Raises `ConfigError`."""
    if config.cluster.tls_ca is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _trust(config, context)
    if config.server.tls_certificate is not None:
        _load_own(config, context)
    return context


def _load_own(config: Config, context: ssl.SSLContext) -> None:
    server = config.server
    assert server.tls_certificate is not None
    assert server.tls_key is not None
    try:
        context.load_cert_chain(server.tls_certificate, server.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        raise config.error(_CERTIFICATE, f"cannot be used with server.tls_key: {_why(error)}") from None


def _trust(config: Config, context: ssl.SSLContext) -> None:
    try:
        context.load_verify_locations(config.cluster.tls_ca)
    except (OSError, ValueError) as error:
        raise config.error(("cluster", "tls_ca"), f"cannot be used: {_why(error)}") from None


_CERTIFICATE: KeyPath = ("server", "tls_certificate")


def _no_password() -> str:
    raise ValueError("the key is protected by a password, and nobody is there to give it")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "it is no PEM file of the right kind"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)

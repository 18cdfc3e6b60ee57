"""What must hold between tables, and what a type cannot say about one value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from fastchat_serve.config import Secret, Tables
from fastchat_serve.configfile.places import KeyPath, Places
from fastchat_serve.errors import ConfigError

__all__ = ["broken_rules", "is_loopback", "key_problem"]

_HASHED = re.compile(r"sha256:[0-9a-fA-F]{64}")
_KEY = re.compile(r"[\x21-\x7e]+")


def broken_rules(tables: Tables, places: Places) -> Iterator[ConfigError]:
    """Everything in `tables` that does not hold together."""
    parts = (_roles, _processes, _node, _tls, _secrets, _names, _urls, _networks, _circles)
    problems = [problem for part in parts for problem in part(tables)]
    for path, problem in problems or _exposure(tables):  # what is exposed depends on the rest being right
        yield places.error(path, problem)


def key_problem(secret: Secret) -> str | None:
    """Why `secret` can be no API key, or None."""
    text = secret.reveal()
    if text.startswith("sha256:") and not _HASHED.fullmatch(text):
        return 'after "sha256:" come the 64 hexadecimal digits of the key\'s SHA-256 hash.'
    if not _KEY.fullmatch(text):
        return "a key is not empty and has only printable ASCII characters without spaces."
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket bound to `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_Problems = Iterator[tuple[KeyPath, str]]


def _roles(tables: Tables) -> _Problems:
    if tables.controller is None and tables.api is None and not tables.worker:
        yield ("worker",), "nothing to run: add a [controller], an [api] or a [[worker]] table."
    if tables.controller is not None:
        return
    hint = 'Add a [controller] table, or say where the controllers are: controllers = ["http://host:port"].'
    if tables.api is not None and not tables.api.controllers:
        yield ("api", "controllers"), f"the API has no controller to ask. {hint}"
    for index, worker in enumerate(tables.worker):
        if not worker.controllers:
            yield ("worker", index, "controllers"), f"this worker has no controller to register with. {hint}"


def _processes(tables: Tables) -> _Problems:
    if tables.server.processes > 1 and (tables.api is None or tables.controller is not None or tables.worker):
        yield (
            ("server", "processes"),
            "only API processes can share a port: give [controller] and [[worker]] config files of their own, and name "
            "the controllers in api.controllers.",
        )


def _node(tables: Tables) -> _Problems:
    """The workers of one process are called through the same links."""
    for index, worker in enumerate(tables.worker):
        first = tables.worker[0]
        for key in ("controllers", "advertise", "reach"):
            if getattr(worker, key) != getattr(first, key):
                yield (
                    ("worker", index, key),
                    f"the workers of one process are called through the same links, so this has to be as in worker.0: "
                    f"{_shown(getattr(first, key))}.",
                )
        if worker.reach == "out" and worker.advertise is not None:
            yield ("worker", index, "advertise"), 'with reach = "out" nobody dials this worker. Remove one of the two.'
        if worker.reach == "out" and not worker.controllers:
            yield ("worker", index, "reach"), '"out" needs controllers to dial: set worker.controllers.'


def _shown(value: object) -> str:
    return "none" if value is None else repr(list(value) if isinstance(value, tuple) else value)


def _tls(tables: Tables) -> _Problems:
    server = tables.server
    if server.tls_certificate is not None and server.tls_key is None:
        yield ("server", "tls_key"), "missing: the private key of server.tls_certificate."
    if server.tls_key is not None and server.tls_certificate is None:
        yield ("server", "tls_certificate"), "missing: the certificate of server.tls_key."
    for path, file in (
        (("server", "tls_certificate"), server.tls_certificate),
        (("server", "tls_key"), server.tls_key),
        (("cluster", "tls_ca"), tables.cluster.tls_ca),
    ):
        if file is not None and not file.is_file():
            yield path, f"no such file: {file}"


def _is_split(tables: Tables) -> bool:
    """Whether other processes take part: a role is missing here, or controllers elsewhere are named."""
    elsewhere = any(worker.controllers for worker in tables.worker) or (tables.api and tables.api.controllers)
    has_workers = bool(tables.worker) or tables.fastchat.enabled  # FastChat's are found without a token
    return bool(elsewhere) or tables.controller is None or tables.api is None or not has_workers


def _exposure(tables: Tables) -> _Problems:
    server, api = tables.server, tables.api
    if server.insecure:
        return
    if api is not None and not api.keys and not is_loopback(server.host):
        yield (
            ("server", "host"),
            "other machines can reach this address, and the API would serve them without a key. Set api.keys or "
            'api.keys_file, listen on "127.0.0.1", or accept it with server.insecure = true.',
        )
    if tables.cluster.token is None and _is_split(tables):
        yield (
            ("cluster", "token"),
            "missing: controller, API and workers are not all in this process, so they need a shared secret to know "
            "each other by. Set the same cluster.token everywhere, or go without one with server.insecure = true.",
        )


def _secrets(tables: Tables) -> _Problems:
    for index, key in enumerate(tables.api.keys if tables.api else ()):
        if problem := key_problem(key):
            yield ("api", "keys", index), problem
    token = tables.cluster.token
    if token is not None and not _KEY.fullmatch(token.reveal()):
        yield ("cluster", "token"), "a token is not empty and has only printable ASCII characters without spaces."


def _names(tables: Tables) -> _Problems:
    for index, worker in enumerate(tables.worker):
        for number, name in enumerate(worker.names):
            if name in worker.names[:number]:
                yield ("worker", index, "names", number), f'"{name}" is already a name of this worker.'


def _urls(tables: Tables) -> _Problems:
    urls: dict[KeyPath, str] = {}
    for number, url in enumerate(tables.api.controllers if tables.api else ()):
        urls["api", "controllers", number] = url
    for index, worker in enumerate(tables.worker):
        for number, url in enumerate(worker.controllers):
            urls["worker", index, "controllers", number] = url
        if worker.advertise is not None:
            urls["worker", index, "advertise"] = worker.advertise
    if tables.api is not None and tables.api.advertise is not None:
        urls["api", "advertise"] = tables.api.advertise
    for key in ("upstreams", "controllers"):
        for number, url in enumerate(getattr(tables.fastchat, key)):
            urls["fastchat", key, number] = url
    if tables.fastchat.advertise is not None:
        urls["fastchat", "advertise"] = tables.fastchat.advertise
    for path, url in urls.items():
        if not _has_host_and_port(url):
            yield path, "expected a URL of the form http://host:port, with a port from 1 to 65535."


def _networks(tables: Tables) -> _Problems:
    for number, network in enumerate(tables.fastchat.networks):
        try:
            ip_network(network)
        except ValueError as error:
            yield ("fastchat", "networks", number), f"{error}."


def _circles(tables: Tables) -> _Problems:
    for number, url in enumerate(tables.fastchat.upstreams):
        if url in tables.fastchat.controllers:
            yield (
                ("fastchat", "upstreams", number),
                "this process also registers there, as fastchat.controllers says: requests would go round in a circle.",
            )
    if tables.fastchat.enabled and tables.server.processes > 1:
        yield (
            ("fastchat", "enabled"),
            "FastChat's workers register at one process, and others would not know them. Set server.processes = 1.",
        )


def _has_host_and_port(url: str) -> bool:
    """Whether `url` can be dialled: a scheme's default port will do, port 0 or 99999 will not."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False

"""Processes that share a port: whichever of them is asked for metrics answers for all.

Counters and histograms are added up. Of gauges the largest counts, and of whatever tells of a single worker: all of
them see the same workers, and of event loops that which is worst off is of interest.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Container, Iterable, Sequence
from typing import Final

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Siblings", "merged"]

logger = logging.getLogger(__name__)

_ALONE: Final = "x-fastchat-alone"
"""The header of a request that is for one process only."""

_WORKER: Final = "worker"
"""The label of what all of them tell of the same worker."""

ANSWER_S: Final = 2.0
"""How long a sibling may take; without its answer the others' is given."""


class Siblings:
    """Where the other processes are.

    Args:
        addresses: Hosts and ports on this machine.
        key: An API key that they accept.
        name: A host name that they go by.
        tls: Whether they speak TLS.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], key: str, *, name: str, tls: bool) -> None:
        self._addresses, self._key, self._name = tuple(addresses), key, name
        self._tls = _trusting() if tls else None

    def but(self, index: int) -> Siblings:
        """All but one of them, from its own point of view."""
        others = (*self._addresses[:index], *self._addresses[index + 1 :])
        return Siblings(others, self._key, name=self._name, tls=self._tls is not None)

    def are_meant(self, headers: Container[str]) -> bool:
        """Whether a request for metrics is for all: one from a sibling is not."""
        return _ALONE not in headers

    async def with_theirs(self, metrics: str) -> bytes:
        """Our own `metrics` and what each of the others says; those that do not answer are left out."""
        said = [metrics]

        async def ask(host: str, port: int) -> None:
            with anyio.move_on_after(ANSWER_S):
                try:
                    said.append(await self._ask(host, port))
                except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                    logger.warning("A process beside this one does not tell its metrics.")

        async with anyio.create_task_group() as tasks:
            for host, port in self._addresses:
                tasks.start_soon(ask, host, port)
        return merged(said)

    async def _ask(self, host: str, port: int) -> str:
        head = f"GET /metrics HTTP/1.1\r\nhost: {self._name}\r\nauthorization: Bearer {self._key}\r\n"
        stream: ByteStream = await anyio.connect_tcp(host, port)
        if self._tls is not None:
            stream = await TLSStream.wrap(stream, server_side=False, ssl_context=self._tls, standard_compatible=False)
        async with stream:
            await stream.send(f"{head}{_ALONE}: 1\r\nconnection: close\r\n\r\n".encode())
            reply = b"".join([part async for part in stream])
        status, _, rest = reply.partition(b"\r\n")
        if b" 200 " not in status:
            raise OSError(status.decode("latin-1"))
        return rest.partition(b"\r\n\r\n")[2].decode()


def _trusting() -> ssl.SSLContext:
    """For sockets that our own parent has bound on this machine: their certificate is for another name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def merged(texts: Iterable[str]) -> bytes:
    """Several processes' metrics as those of one."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, family)
            found = values.setdefault(family.name, {})
            for sample in family.samples:
                of = sample.name, tuple(sorted(sample.labels.items()))
                if family.type == "gauge" or _WORKER in sample.labels or sample.name.endswith("_created"):
                    found[of] = max(found.get(of, sample.value), sample.value)
                else:
                    found[of] = found.get(of, 0.0) + sample.value
    registry = CollectorRegistry()
    for name, family in families.items():
        registry.register(_Merged(family, values[name]))
    return generate_latest(registry)


class _Merged:
    """One family of them."""

    def __init__(self, family: Metric, values: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> None:
        self._metric = Metric(family.name, family.documentation, family.type)
        for (name, labels), value in values.items():
            self._metric.add_sample(name, dict(labels), value)

    def collect(self) -> Iterable[Metric]:
        yield self._metric

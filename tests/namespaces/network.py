"""A network of hosts inside this one: each place is a network namespace, and all are joined by a hub that forwards.

What the hub forwards can be cut, one direction at a time: packets vanish there as they do in a dead switch, and nobody
is told. A place can also stand behind a router that translates addresses (NAT): nobody can dial it. Needs root, and
for NAT iptables.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, Self

from tests.end_to_end.raw import Connection

__all__ = ["Network", "Place", "why_no_nat", "why_not"]

_CLONE_NEWNET: Final = 0x40000000
_FOR_GOOD: Final = "90"
_UNTIL_HEALED: Final = "100"
"""Both name rules of the hub by their place in its order."""
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why no namespaces can be made here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"probe{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except FileNotFoundError:
        return "the command ip is not installed"
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made here: {error.stderr.strip()}"
    return ""


def why_no_nat() -> str:
    """Why no place can be behind NAT; empty if one can."""
    return "" if shutil.which("iptables") else "NAT needs iptables, which is not installed"


class Place:
    """One host. `address` is where others see it: behind NAT its router's, at which nobody answers."""

    def __init__(self, namespace: str, address: str) -> None:
        self.namespace, self.address = namespace, address

    @property
    def prefix(self) -> tuple[str, ...]:
        """Of a command that is to run here; it keeps its process id."""
        return ("ip", "netns", "exec", self.namespace)

    @asynccontextmanager
    async def connected(self, address: str, port: int = 8000) -> AsyncIterator[Connection]:
        """A connection from here, closed at the end."""
        with self._entered():
            sock = socket.socket(proto=socket.IPPROTO_TCP)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(5):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except (OSError, TimeoutError):
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            yield Connection(reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """This thread is there meanwhile; a socket stays where it was made."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)
            os.close(there)


class Network:
    """``with Network() as network``, then `place` hosts in it; all are gone at the end."""

    def __init__(self) -> None:
        self._prefix = f"fcs{os.getpid()}"
        self._made: list[str] = []
        self._hub = ""

    def __enter__(self) -> Self:
        self._hub = self._namespace("hub")
        self._forward(self._hub)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for namespace in self._made:
            _ip("netns", "del", namespace)

    def place(self, name: str) -> Place:
        """A host that all others reach."""
        namespace = self._namespace(name)
        net = f"10.77.{len(self._made)}"
        self._wire(namespace, self._hub, net)
        return Place(namespace, f"{net}.2")

    def place_behind_nat(self, name: str) -> Place:
        """A host that reaches all others, and that none can dial."""
        router = self._namespace(f"{name}-nat")
        self._forward(router)
        outside = f"10.77.{len(self._made)}"
        self._wire(router, self._hub, outside)
        namespace = self._namespace(name)
        inside = f"192.168.{len(self._made)}"
        self._wire(namespace, router, inside)
        translate = ("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", f"{inside}.0/24", "-j", "MASQUERADE")
        _run("ip", "netns", "exec", router, *translate)
        return Place(namespace, f"{outside}.2")

    @staticmethod
    def is_listened_at(place: Place) -> bool:
        """Whether any process there waits for connections."""
        return bool(_run(*place.prefix, "ss", "--listening", "--tcp", "--no-header").strip())

    def cut(self, sender: Place, receiver: Place) -> None:
        """What one sends to the other vanishes on its way."""
        self._drop("from", sender.address, "to", receiver.address, order=_UNTIL_HEALED)

    def shield(self, place: Place, port: int = 8000) -> None:
        """Let nobody dial it there, for good: what a firewall does that is not told of a port."""
        self._drop("to", place.address, "ipproto", "tcp", "dport", str(port), order=_FOR_GOOD)

    def part(self, one: Place, other: Place) -> None:
        """Cut both directions."""
        self.cut(one, other)
        self.cut(other, one)

    def mend(self, one: Place, other: Place) -> None:
        """Forward again what these send to each other."""
        for sender, receiver in ((one, other), (other, one)):
            with suppress(subprocess.CalledProcessError):  # it was not cut that way
                _ip(
                    "-n",
                    self._hub,
                    "rule",
                    "del",
                    "from",
                    sender.address,
                    "to",
                    receiver.address,
                    "pref",
                    _UNTIL_HEALED,
                )

    def heal(self) -> None:
        """Forward again whatever was cut."""
        for _ in _ip("-n", self._hub, "rule", "show", "pref", _UNTIL_HEALED).splitlines():
            _ip("-n", self._hub, "rule", "del", "pref", _UNTIL_HEALED)

    # -------------------------------------------------------------------------------------------------

    def _drop(self, *selector: str, order: str) -> None:
        _ip("-n", self._hub, "rule", "add", *selector, "blackhole", "pref", order)

    def _namespace(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        _ip("netns", "add", namespace)
        self._made.append(namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _wire(self, namespace: str, router: str, net: str) -> None:
        """Give `namespace` one interface, at the end of a wire to `router`, and everything else lies behind that."""
        there = f"to-{net[-6:]}"
        _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", there, "netns", router)
        _ip("-n", namespace, "address", "add", f"{net}.2/24", "dev", "eth0")
        _ip("-n", router, "address", "add", f"{net}.1/24", "dev", there)
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", router, "link", "set", there, "up")
        _ip("-n", namespace, "route", "add", "default", "via", f"{net}.1")

    @staticmethod
    def _forward(namespace: str) -> None:
        every_packet_is_answered = "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit"
        script = f"echo 1 > /proc/sys/net/ipv4/ip_forward; {every_packet_is_answered}"
        _run("ip", "netns", "exec", namespace, "sh", "-c", script)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot change the network namespace")

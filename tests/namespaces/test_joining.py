"""What keeps a worker from being listed, or from being called, is said in one line, with what to change. These are the
cases that leave others with an empty list of models."""

from __future__ import annotations

import anyio
import pytest
from msgspec import Struct

from tests.cluster import api, worker
from tests.namespaces.hosts import OPEN, Host, Hosts

pytestmark = pytest.mark.anyio

NOWHERE = "http://10.77.250.2:8000"
"""No host has that address."""
ADVICE = "check server.host and server.port of this process, set worker.advertise"
RETRIES_S = 2.5
"""In which a worker that is refused tries again a few times."""


class Wrong(Struct, frozen=True):
    """A worker with something wrong in its config, and what is said of it.

    ``{self}``, ``{controller}`` and ``{shielded}``, a host at which nobody can dial, stand for addresses.
    """

    says: str
    advertise: str = ""
    controller: str = "http://{controller}:8000"
    server: str = OPEN
    is_told: bool = True
    """The controller hears of it, too."""


WRONG = {
    "a port where nobody listens": Wrong(
        advertise="http://{self}:8001",
        says="its address http://{self}:8001 was called back in vain: nothing listens at http://{self}:8001. "
        f"Other processes have to reach it there: {ADVICE}",
    ),
    "a host that is not there": Wrong(
        advertise=NOWHERE,
        says=f"its address {NOWHERE} was called back in vain: {NOWHERE} cannot be reached",
    ),
    "a host that does not answer": Wrong(
        advertise="http://{shielded}:8000",
        says="was called back in vain: http://{shielded}:8000 does not answer within 2 s (is that address right",
    ),
    "the controller's address as its own": Wrong(
        advertise="http://{controller}:8000",
        says="was called back in vain: the server at http://{controller}:8000 has no role for this: "
        "a process with workers is to be dialled",
    ),
    "loopback": Wrong(
        server="",
        says="its address http://127.0.0.1:8000 leads every other host to itself, but it comes from {self}. "
        f"Other processes have to reach it there: {ADVICE}",
    ),
    "a wrong host of the controller": Wrong(
        controller=NOWHERE,
        says=f"{NOWHERE} cannot be reached",
        is_told=False,
    ),
    "a controller behind a firewall": Wrong(
        controller="http://{shielded}:8000",
        says="http://{shielded}:8000 does not answer within 2 s (is that address right, and the way open?)",
        is_told=False,
    ),
}


@pytest.fixture(scope="module")
async def controller(hosts: Hosts) -> Host:
    controller = hosts.controller()
    await controller.role.start()
    return controller


@pytest.fixture(scope="module")
async def refused(hosts: Hosts, controller: Host) -> dict[str, tuple[Host, str]]:
    """All of those workers, refused for a while, and what each is to say."""
    shielded = hosts.network.place("shielded")
    hosts.network.shield(shielded)
    workers: dict[str, tuple[Host, str]] = {}
    for number, (name, wrong) in enumerate(WRONG.items()):
        place = hosts.network.place(f"wrong{number}")
        names = {"self": place.address, "controller": controller.address, "shielded": shielded.address}
        more = f'advertise = "{wrong.advertise.format(**names)}"' if wrong.advertise else ""
        config = worker(wrong.controller.format(**names), more=more)
        workers[name] = hosts.at(place, f"wrong{number}", config, server=wrong.server), wrong.says.format(**names)
    await hosts.start(*(host for host, _ in workers.values()))
    await anyio.sleep(RETRIES_S)
    return workers


@pytest.mark.parametrize("name", WRONG)
async def test_a_worker_that_cannot_be_listed_says_once_what_to_change(controller, refused, name):
    host, says = refused[name]
    await host.role.says("Not listed at")
    lines = [line for line in host.role.log.splitlines() if "WARNING" in line]
    assert len(lines) == 1, host.role.log
    assert says in lines[0]
    refusal = f"A node at {host.address} is not listed"
    if WRONG[name].is_told:
        await controller.role.says(refusal)
    told = [line for line in controller.role.log.splitlines() if refusal in line]
    assert len(told) == WRONG[name].is_told, controller.role.log
    assert all(says in line for line in told)


async def test_none_of_them_was_listed(hosts, controller, refused):
    assert await hosts.cards(controller) == []


async def test_an_api_that_cannot_reach_a_listed_worker_says_once_what_is_in_the_way(hosts, controller):
    back, front = hosts.worker(controller), hosts.api(controller)
    hosts.network.cut(front.place, back.place)
    await hosts.start(back, front)
    await hosts.know(controller, 1)
    await front.role.says("does not answer within 2 s")
    await anyio.sleep(RETRIES_S)
    lines = [line for line in front.role.log.splitlines() if "WARNING" in line]
    hosts.network.heal()
    await hosts.know(front, 1)
    assert len(lines) == 1, front.role.log
    assert f"{back.url} does not answer within 2 s (is that address right, and the way open?)" in lines[0]


async def test_the_order_of_starting_does_not_matter(hosts):
    """The controller, which both others dial, comes last."""
    place = hosts.network.place("late")
    url = f"http://{place.address}:8000"
    front = hosts.at(hosts.network.place("early-api"), "early-api", f'{api(url)}keys = ["sk-client"]\n')
    back = hosts.at(hosts.network.place("early-worker"), "early-worker", worker(url))
    await hosts.start(front, back)
    await back.role.says("Not listed at")
    await front.role.says("No controller at")
    await hosts.controller("late", at=place).role.start()
    await hosts.know(front, 1)

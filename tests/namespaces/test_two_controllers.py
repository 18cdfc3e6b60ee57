"""Two controllers, of which either is enough, and a worker behind NAT, which nobody can dial."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.cluster import worker
from tests.faults.load import BROKEN
from tests.namespaces.hosts import HARDLY_S, SOON_S, Host, Hosts
from tests.namespaces.network import Network, why_no_nat

pytestmark = pytest.mark.anyio


class Pair(NamedTuple):
    one: Host
    other: Host
    api: Host
    worker: Host
    behind_nat: Host


@pytest.fixture(scope="module")
async def pair(hosts: Hosts) -> Pair:
    if reason := why_no_nat():
        pytest.skip(reason)
    one, other = hosts.controller("c1"), hosts.controller("c2")
    out = worker(one.url, other.url, more='reach = "out"', options="delay_ms = 20")
    behind_nat = hosts.at(hosts.network.place_behind_nat("inside"), "inside", out)
    pair = Pair(one, other, hosts.api(one, other), hosts.worker(one, other), behind_nat)
    await hosts.start(*pair)
    await hosts.is_well(pair.api, one, other, ready=2)
    return pair


async def test_a_worker_behind_nat_listens_on_nothing_and_fails_over_like_any_other(hosts, pair):
    assert not Network.is_listened_at(pair.behind_nat.place)
    assert Network.is_listened_at(pair.worker.place)
    load = hosts.load(pair.api)
    async with load.running():
        await load.is_at_work()
        await pair.worker.role.kill()
        await hosts.know(pair.api, 1)
        await load.is_at_work()
        await pair.worker.role.start()
        await hosts.know(pair.api, 2)
        await load.what_is_under_way_has_ended()
        await pair.behind_nat.role.kill()
        gone_s = await hosts.know(pair.api, 1)
        await load.is_at_work()
        await pair.behind_nat.role.start()
        back_s = await hosts.know(pair.api, 2)
        await load.is_at_work()
    assert load.errors == {}
    assert gone_s < HARDLY_S
    assert back_s < SOON_S
    assert load.longest_wait_s < HARDLY_S


async def test_f9_a_worker_behind_nat_that_is_cut_off_from_the_api_is_back_soon(hosts, pair, network):
    load = hosts.load(pair.api)
    async with load.running():
        await load.is_at_work()
        network.part(pair.behind_nat.place, pair.api.place)
        gone_s = await hosts.know(pair.api, 1)
        await load.is_at_work(2.5)
        network.heal()
        back_s = await hosts.know(pair.api, 2)
        await load.is_at_work()
    assert load.errors == {}
    assert gone_s < SOON_S
    assert back_s < SOON_S


async def test_f4_an_api_that_is_killed_and_started_again_is_dialled_by_the_worker_behind_nat(hosts, pair):
    load = hosts.load(pair.api)
    async with load.running():
        await load.is_at_work()
        await pair.api.role.kill()
        await pair.api.role.start()
        back_s = await hosts.know(pair.api, 2)
        await load.is_at_work()
    assert set(load.errors) <= {BROKEN, "no_worker"}
    assert back_s < SOON_S


async def test_g10_either_controller_can_be_killed_and_nobody_notices(hosts, pair):
    load = hosts.load(pair.api)
    async with load.running():
        for controller in (pair.one, pair.other):
            await load.is_at_work()
            await controller.role.kill()
            await load.is_at_work()
            await controller.role.start()
            assert await hosts.know(controller, 2) < SOON_S
    assert load.errors == {}
    assert load.longest_wait_s < HARDLY_S


async def test_f6_a_controller_that_slept_while_workers_changed_confuses_nobody(hosts, pair):
    """What it lists when it wakes is what was true before: a process at an address where there is another by now."""
    load = hosts.load(pair.api)
    async with load.running():
        await load.is_at_work()
        pair.one.role.pause()
        await pair.worker.role.kill()
        await pair.worker.role.start()
        await hosts.know(pair.api, 2)
        await load.is_at_work(2.0)
        pair.one.role.go_on()
        for _ in range(20):
            assert await hosts.ready(pair.api) == 2
            await load.is_at_work(0.05)
        assert await hosts.know(pair.one, 2) < SOON_S
    assert await hosts.ready(pair.one) == 2
    assert load.errors == {}
    assert load.longest_wait_s < HARDLY_S

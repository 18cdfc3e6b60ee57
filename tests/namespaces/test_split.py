"""A controller, an API, two workers and a client, each on a host of its own: what they do together, and what is left of
it when one of them, or the way between two, is gone."""

from __future__ import annotations

from typing import NamedTuple

import anyio
import pytest

from tests.end_to_end.raw import events
from tests.faults.load import BROKEN
from tests.namespaces.hosts import AT_ONCE_S, HARDLY_S, SOON_S, Host, Hosts

pytestmark = pytest.mark.anyio


class Split(NamedTuple):
    controller: Host
    api: Host
    one: Host
    other: Host


@pytest.fixture(scope="module")
async def split(hosts: Hosts) -> Split:
    controller = hosts.controller()
    split = Split(controller, hosts.api(controller), *(hosts.worker(controller, name=name) for name in ("w1", "w2")))
    await hosts.start(*split)
    await hosts.is_well(split.api, split.controller, ready=2)
    return split


async def test_chats_streams_and_embeddings_reach_the_workers(hosts, split):
    chat = {"model": "echo", "messages": [{"role": "user", "content": "to be or not"}]}
    whole = await hosts.ask(split.api, "/v1/chat/completions", chat)
    assert whole.json()["choices"][0]["message"]["content"] == "to be or not"
    streamed = events((await hosts.ask(split.api, "/v1/chat/completions", chat | {"stream": True})).body)
    deltas = [choice["delta"] for chunk in streamed[:-1] for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "to be or not"
    embedded = await hosts.ask(split.api, "/v1/embeddings", {"model": "echo", "input": ["a", "b"]})
    assert [len(each["embedding"]) for each in embedded.json()["data"]] == [64, 64]


async def test_f1_a_worker_that_is_killed_and_started_again_costs_no_request(hosts, split):
    load = hosts.load(split.api)
    async with load.running():
        await load.is_at_work()
        await split.one.role.kill()
        gone_s = await hosts.know(split.api, 1)
        await split.one.role.start()
        back_s = await hosts.know(split.api, 2)
        await load.is_at_work()
    assert load.errors == {}
    assert gone_s < AT_ONCE_S
    assert back_s < SOON_S
    assert load.longest_wait_s < HARDLY_S


async def test_f3_a_worker_that_is_frozen_is_out_within_two_seconds_and_what_it_says_late_reaches_nobody(hosts, split):
    load = hosts.load(split.api)
    async with load.running():
        await load.is_at_work()
        split.one.role.pause()
        gone_s = await hosts.know(split.api, 1)
        await load.is_at_work()
        split.one.role.go_on()
        back_s = await hosts.know(split.api, 2)
        await load.is_at_work()
    assert load.errors == {}
    assert gone_s < SOON_S
    assert back_s < SOON_S
    assert load.longest_wait_s < SOON_S + 1.0


async def test_f3_an_api_that_is_frozen_for_three_seconds_goes_on_where_it_was(hosts, split):
    """For its workers it is silent meanwhile, and they wait for it."""
    load = hosts.load(split.api)
    async with load.running():
        await load.is_at_work()
        split.api.role.pause()
        await anyio.sleep(3.0)
        split.api.role.go_on()
        await load.is_at_work()
    assert load.errors == {}


async def test_f4_an_api_that_is_killed_leaves_no_slot_taken(hosts, split):
    load = hosts.load(split.api, words=1000)  # some twenty seconds of each stream
    async with hosts.client.connected(split.one.address) as watching:
        async with load.running():
            await load.is_at_work()
            await split.api.role.kill()
            free_s = await hosts.idle(watching)
        await split.api.role.start()
    assert free_s < AT_ONCE_S / 2
    assert set(load.errors) <= {BROKEN}


async def test_f5_g10_a_controller_that_is_killed_costs_no_request_and_knows_all_workers_when_it_is_back(hosts, split):
    load = hosts.load(split.api)
    async with load.running():
        await load.is_at_work()
        await split.controller.role.kill()
        await load.is_at_work(1.5)
        await split.controller.role.start()
        known_s = await hosts.know(split.controller, 2)
        await load.is_at_work()
    assert load.errors == {}
    assert known_s < SOON_S
    assert load.longest_wait_s < HARDLY_S


async def test_f7_f8_workers_that_only_the_controller_cannot_reach_serve_and_are_listed_again(hosts, split, network):
    """From one it is cut off both ways, until it has forgotten it; from the other for a while and so that its beats
    would arrive, and nothing comes back to it."""
    load = hosts.load(split.api)
    async with load.running():
        network.part(split.controller.place, split.one.place)
        network.cut(split.controller.place, split.other.place)
        await hosts.know(split.controller, 0)
        await load.is_at_work(2.0)
        network.mend(split.controller.place, split.other.place)
        other_back_s = await hosts.know(split.controller, 1)
        while len(await hosts.cards(split.controller)) == 2:
            await load.is_at_work()
        assert await hosts.ready(split.api) == 2
        network.heal()
        back_s = await hosts.know(split.controller, 2)
    assert len(await hosts.cards(split.controller)) == 2
    assert load.errors == {}
    assert max(back_s, other_back_s) < SOON_S
    assert load.longest_wait_s < HARDLY_S


@pytest.mark.parametrize("direction", ["to it", "from it"])
async def test_f9_a_worker_that_only_the_api_cannot_reach_is_out_there_and_comes_back(hosts, split, network, direction):
    load = hosts.load(split.api)
    async with load.running():
        await load.is_at_work()
        if direction == "to it":
            network.cut(split.api.place, split.one.place)
        else:
            network.cut(split.one.place, split.api.place)
        gone_s = await hosts.know(split.api, 1)
        await load.is_at_work(2.5)
        assert await hosts.ready(split.controller) == 2
        network.heal()
        back_s = await hosts.know(split.api, 2)
        await load.is_at_work()
    assert load.errors == {}
    assert gone_s < SOON_S
    assert back_s < SOON_S
    assert load.longest_wait_s < SOON_S + 1.0


async def test_f10_a_connection_to_a_worker_that_was_killed_unheard_is_given_up(hosts, split, network):
    load = hosts.load(split.api)
    async with load.running():
        await load.is_at_work()
        network.part(split.api.place, split.one.place)
        await split.one.role.kill()
        await hosts.know(split.api, 1)
        await split.one.role.start()
        await load.is_at_work()
        network.heal()
        back_s = await hosts.know(split.api, 2)
    assert load.errors == {}
    assert back_s < SOON_S
    assert load.longest_wait_s < SOON_S + 1.0


async def test_an_api_that_was_cut_off_from_its_controller_learns_what_it_has_missed(hosts, split, network):
    load = hosts.load(split.api)
    async with load.running():
        await load.is_at_work()
        network.part(split.api.place, split.controller.place)
        await split.other.role.kill()
        await split.other.role.start()
        await hosts.know(split.controller, 2)
        await load.is_at_work(2.0)
        network.heal()
        back_s = await hosts.know(split.api, 2)
    assert load.errors == {}
    assert back_s < SOON_S
    assert load.longest_wait_s < HARDLY_S

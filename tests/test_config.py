"""The tables of a config as plain Structs."""

import math
from pathlib import Path

import msgspec
import pytest

from fastchat_serve.config import Api, Cluster, Config, Limits, Secret, Server, Timeouts, Worker
from fastchat_serve.configfile.places import Place, Places, dotted


def test_a_worker_is_called_after_the_last_part_of_its_model() -> None:
    assert Worker(backend="hf", model="org/Some-Model").names == ("Some-Model",)
    assert Worker(backend="hf", model="/models/demo/").names == ("demo",)
    assert Worker(backend="hf", model="org/m", names=("a", "b")).names == ("a", "b")


def test_a_worker_without_a_model_is_called_after_its_backend() -> None:
    assert Worker(backend="echo").names == ("echo",)
    assert Worker(backend="echo", model="/").names == ("echo",)


def test_an_infinite_timeout_is_none() -> None:
    timeouts = Timeouts(queue_s=math.inf, between_tokens_s=5)

    assert timeouts.queue_s is None
    assert timeouts.between_tokens_s == 5


def test_a_worker_is_loaded_on_demand_if_it_is_loaded_late_or_unloaded_early() -> None:
    assert not Worker(backend="echo").on_demand
    assert Worker(backend="echo", load="first_request").on_demand
    assert Worker(backend="echo", idle_unload_s=60).on_demand
    assert not Worker(backend="echo", idle_unload_s=math.inf).on_demand


def test_tables_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Server().port = 1  # type: ignore[misc]


def test_secrets_show_in_no_representation() -> None:
    config = Config(api=Api(keys=(Secret("marker-key"),)), cluster=Cluster(token=Secret("marker-token")))

    assert config.api is not None
    assert config.api.keys[0].reveal() == "marker-key"
    for shown in (repr(config), str(config), f"{config.cluster.token}", repr(config.api.keys)):
        assert "marker" not in shown


def test_secrets_cannot_be_encoded_by_accident() -> None:
    with pytest.raises(TypeError):
        msgspec.json.encode(Cluster(token=Secret("marker-token")))


def test_every_limit_has_a_default_that_lets_ordinary_requests_through() -> None:
    limits = Limits()

    assert all(value >= 1 for value in msgspec.structs.astuple(limits))
    assert limits.max_n >= 1
    assert limits.max_stop >= 4  # OpenAI's own limit
    assert limits.max_logprobs >= 20


def test_a_config_made_by_hand_can_still_raise_errors_about_its_keys() -> None:
    error = Config(worker=(Worker(backend="no-such"),)).error(("worker", 0, "backend"), "there is no such backend")

    assert str(error) == "config: worker.0.backend: there is no such backend"


def test_what_has_no_place_of_its_own_stands_where_its_parent_does() -> None:
    here = Place("a.toml", 3, 1, directory=Path("/"))
    places = Places(Place("a.toml", 1, 1), values={("worker", 0): here})

    assert places.of(("worker", 0, "options", "device")) == here
    assert places.of(("server", "port")).line == 1


def test_the_places_of_a_config_show_no_values() -> None:
    places = Places(Place("--set cluster.token", text="marker-token"))

    assert "marker" not in repr(places)


def test_keys_are_quoted_in_messages_where_toml_would_need_it() -> None:
    assert dotted(("worker", 0, "options", "max_memory")) == "worker.0.options.max_memory"
    assert dotted(("server", "a.b", "", "\x1b[31m")) == 'server."a.b".""."\\u001b[31m"'

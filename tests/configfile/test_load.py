"""Files, environment, command line and options become one `Config`, or a `ConfigError`."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from fastchat_serve.config import Config
from fastchat_serve.configfile.load import config_for_model, convert_options, load_config
from fastchat_serve.errors import ConfigError

CONF = Path(__file__).parent.parent.parent / "conf"
ALL_ROLES = "[controller]\n[api]\n[[worker]]\nbackend = 'echo'\n"

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a config from text, with overrides and an environment."""

    def load_text(text: str, *overrides: str, **environ: str) -> Config:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides=overrides, environ=environ)

    return load_text


def refusal(load: Callable[..., Any], *args: Any, **environ: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*args, **environ)
    return caught.value


# ------------------------------------------------------------------------------------ whole configs


@pytest.mark.parametrize("path", sorted(CONF.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_config_is_valid(path: Path) -> None:
    config = load_config(path, environ={})

    assert config.controller is not None
    assert config.api is not None
    assert config.worker


def test_the_local_example_is_one_process_on_the_embedded_model() -> None:
    config = load_config(CONF / "local.toml", environ={})

    (worker,) = config.worker
    assert (worker.backend, worker.model, worker.names) == ("hf", "demo", ("demo",))
    assert (worker.concurrency, worker.queue, worker.options) == (16, 64, {"device": "auto"})
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8000)


def test_one_argument_is_a_whole_config() -> None:
    config = config_for_model("org/model", environ={})

    assert config.controller is not None
    assert config.api is not None
    assert [(worker.backend, worker.model, worker.names) for worker in config.worker] == [
        ("hf", "org/model", ("model",))
    ]


def test_a_config_without_a_file_takes_overrides_and_environment() -> None:
    environ = {"FASTCHAT_SERVE_SERVER__PORT": "9000"}
    config = config_for_model("", backend="echo", overrides=["worker.0.options.loop=true"], environ=environ)

    assert config.server.port == 9000
    assert config.worker[0].options == {"loop": True}


def test_a_config_may_come_from_overrides_alone() -> None:
    config = load_config(None, overrides=["controller={}", "api={}", "worker.0.backend=echo"], environ={})

    assert [worker.backend for worker in config.worker] == ["echo"]


def test_nothing_at_all_is_refused_without_a_file() -> None:
    assert "nothing to run" in refusal(load_config, None, environ={}).problem


@pytest.mark.parametrize(
    "roles",
    [
        "[controller]",
        "[controller]\n[api]",
        "[api]\ncontrollers = ['http://10.0.0.1:8000', 'https://c2.example.org']",
        "[[worker]]\nbackend = 'echo'\ncontrollers = ['http://[::1]:8000']\nadvertise = 'http://10.0.0.5:8000'",
    ],
    ids=["controller", "controller and api", "api", "worker"],
)
def test_split_roles_are_valid_once_they_share_a_token(load: Load, roles: str) -> None:
    assert load(f"{roles}\n[cluster]\ntoken = 't'").cluster.token is not None
    assert load(f"{roles}\n[server]\ninsecure = true").cluster.token is None


def test_the_same_name_on_two_workers_is_load_balancing(load: Load) -> None:
    worker = "[[worker]]\nbackend = 'echo'\nnames = ['demo']\n"
    config = load(f"[controller]\n[api]\n{worker}{worker}")

    assert [worker.names for worker in config.worker] == [("demo",), ("demo",)]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(load: Load, host: str) -> None:
    assert load(f"{ALL_ROLES}[server]\nhost = '{host}'").server.host == host


@pytest.mark.parametrize("excuse", ["server.insecure=true", 'api.keys=["a-key"]', "api.keys_file=keys.txt"])
def test_other_addresses_need_keys_or_an_explicit_wish(
    load: Load, excuse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.txt").write_text("a-key\n", encoding="utf-8")

    assert refusal(load, ALL_ROLES, "server.host=0.0.0.0").key == "server.host"
    assert load(ALL_ROLES, "server.host=0.0.0.0", excuse).server.host == "0.0.0.0"


def test_an_empty_keys_file_does_not_count_as_keys(load: Load, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("# none yet\n", encoding="utf-8")

    error = refusal(load, f"server.host = '0.0.0.0'\napi.keys_file = 'keys.txt'\n{ALL_ROLES}".replace("[api]\n", ""))

    assert error.key == "server.host"


def test_timeouts_can_be_switched_off(load: Load) -> None:
    config = load(f"{ALL_ROLES}timeouts = {{ queue_s = inf, total_s = 5 }}")

    assert config.worker[0].timeouts.queue_s is None
    assert config.worker[0].timeouts.total_s == 5


# --------------------------------------------------------------------------------------- precedence


def test_the_environment_beats_the_file_and_set_beats_both(load: Load) -> None:
    text = f"{ALL_ROLES}[server]\nport = 1\nmax_body_bytes = 1\nhost = '127.0.0.1'"
    environ = {"FASTCHAT_SERVE_SERVER__PORT": "2", "FASTCHAT_SERVE_SERVER__MAX_BODY_BYTES": "2"}

    server = load(text, "server.port=3", **environ).server

    assert (server.port, server.max_body_bytes, server.host) == (3, 2, "127.0.0.1")


def test_the_last_of_two_overrides_wins(load: Load) -> None:
    assert load(ALL_ROLES, "server.port=1", "server.port=2").server.port == 2


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("cpu", "cpu"),
        ("'8'", "8"),
        ("8", 8),
        ("0.5", 0.5),
        ("true", True),
        ("[1, 'a']", [1, "a"]),
        ("{a = 1}", {"a": 1}),
        ("", ""),
        ("org/some-model", "org/some-model"),
        ("a = b", "a = b"),
        ("1\nx = 2", "1\nx = 2"),
        (" padded ", "padded"),
    ],
)
def test_an_override_is_a_toml_value_or_else_a_bare_word(load: Load, written: str, value: object) -> None:
    assert load(ALL_ROLES, f"worker.0.options.device={written}").worker[0].options == {"device": value}


def test_text_that_looks_like_a_number_is_a_string_where_a_string_belongs(load: Load) -> None:
    config = load(ALL_ROLES, "worker.0.model=2024-01-01", FASTCHAT_SERVE_CLUSTER__TOKEN="1234")

    assert config.cluster.token is not None
    assert config.cluster.token.reveal() == "1234"
    assert config.worker[0].model == "2024-01-01"


def test_options_keep_the_text_of_an_override_for_when_their_type_is_known(load: Load) -> None:
    config = load(ALL_ROLES, "worker.0.options.revision=1e5", FASTCHAT_SERVE_WORKER__0__OPTIONS__BLOCKS="7")

    options = convert_options(config, 0, Options)

    assert (options.revision, options.blocks) == ("1e5", 7)


def test_list_items_are_set_by_number_and_the_next_number_adds_one(load: Load) -> None:
    config = load(ALL_ROLES, "worker.0.queue=1", "worker.1.backend=hf", "worker.1.names=['a']", "worker.1.names.1=b")

    assert [(worker.backend, worker.queue) for worker in config.worker] == [("echo", 1), ("hf", 64)]
    assert config.worker[1].names == ("a", "b")


def test_environment_items_are_applied_in_the_order_of_their_numbers(load: Load) -> None:
    environ = {f"FASTCHAT_SERVE_WORKER__{number}__BACKEND": f"b{number}" for number in (10, 2, 1, 9, 3, 8, 4, 7, 5, 6)}

    assert [worker.backend for worker in load(ALL_ROLES, **environ).worker][1:] == [f"b{n}" for n in range(1, 11)]


def test_a_replaced_table_loses_its_old_keys_and_their_places(load: Load) -> None:
    error = refusal(load, f"{ALL_ROLES}[server]\nhost = '127.0.0.1'\nport = 1\n", "server={port = -1}")

    assert (error.file, error.line, error.key) == ("--set server", None, "server.port")


@pytest.mark.parametrize(
    ("override", "file", "key", "says"),
    [
        ("server.prot=1", "--set server.prot", "server.prot", 'Did you mean "port"?'),
        ("server.port=99999", "--set server.port", "server.port", "from 0 to 65535, not 99999"),
        ("server.port=abc", "--set server.port", "server.port", "not a string"),
        ("servr.port=1", "--set servr.port", "servr", 'Did you mean "server"?'),
        ("worker.0.modle=x", "--set worker.0.modle", "worker.0.modle", 'Did you mean "model"?'),
        ("worker.2.backend=echo", "--set worker.2.backend", "worker.2", "a list of 1"),
        ("worker.x.backend=echo", "--set worker.x.backend", "worker.x", "numbered from 0, the next is 1"),
        ("worker.1.model=x", "--set worker.1.model", "worker.1.backend", "missing"),
        ("worker.0.backend.x=1", "--set worker.0.backend.x", "worker.0.backend.x", "is a single value"),
        ("api.keys=['marker", "--set api.keys", "api.keys", "not a TOML value"),
        ("api.keys=marker", "--set api.keys", "api.keys", """A list is written so: '["a", "b"]'."""),
        ("cluster.token=a marker", "--set cluster.token", "cluster.token", "without spaces"),
        ("cluster.token=[5]", "--set cluster.token", "cluster.token", "not a list of 1"),
        ("server", "--set server", None, "expected KEY=VALUE"),
        ("server port=marker", "--set server port", None, "expected KEY=VALUE"),
        ("=1", "--set ", None, "expected KEY=VALUE"),
    ],
)
def test_a_wrong_override_is_named_instead_of_a_file(
    load: Load, override: str, file: str, key: str | None, says: str
) -> None:
    error = refusal(load, ALL_ROLES, override)

    assert (error.file, error.line, error.key) == (file, None, key)
    assert says in error.problem
    assert "marker" not in str(error)


def test_a_key_is_not_said_twice(load: Load) -> None:
    assert str(refusal(load, ALL_ROLES, "server.prot=1")).startswith("--set server.prot: unknown key.")
    assert str(refusal(load, ALL_ROLES, "worker.1.model=x")).startswith("--set worker.1.model: worker.1.backend: ")


def test_a_string_of_another_form_is_not_wrong_for_being_a_string(load: Load) -> None:
    error = refusal(load, ALL_ROLES, 'worker.0.controllers=["127.0.0.1:8000"]')

    assert error.key == "worker.0.controllers.0"
    assert error.problem == "expected a URL of the form http://host:port, without a path."


@pytest.mark.parametrize(
    ("variable", "value", "key", "says"),
    [
        ("FASTCHAT_SERVE_SERVER__PROT", "1", "server.prot", 'Did you mean "port"?'),
        ("FASTCHAT_SERVE_SERVER__PORT", "tcp://10.0.0.1:8000", "server.port", "not a string"),
        ("FASTCHAT_SERVE_SERVER__HOST", "", "server.host", "not an empty string"),
        ("FASTCHAT_SERVE_PORTS", "1", "ports", "unknown key"),
        ("FASTCHAT_SERVE_", "1", '""', "unknown key"),
        ("FASTCHAT_SERVE_SERVER_PORT", "1", "server_port", "unknown key"),
        ("FASTCHAT_SERVE_API__KEYS__0", "two words", "api.keys.0", "without spaces"),
    ],
)
def test_a_wrong_variable_is_named_instead_of_a_file(
    load: Load, variable: str, value: str, key: str, says: str
) -> None:
    error = refusal(load, ALL_ROLES, **{variable: value})

    assert (error.file, error.line, error.key) == (variable, None, key)
    assert says in error.problem


def test_what_kubernetes_says_about_a_service_of_our_name_is_no_setting(load: Load) -> None:
    environ = {
        "FASTCHAT_SERVE_SERVICE_HOST": "10.0.0.1",
        "FASTCHAT_SERVE_SERVICE_PORT": "8000",
        "FASTCHAT_SERVE_SERVICE_PORT_HTTP": "8000",
        "FASTCHAT_SERVE_PORT": "tcp://10.0.0.1:8000",
        "FASTCHAT_SERVE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "FASTCHAT_SERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "FASTCHAT_SERVE_PORT_8000_TCP_PROTO": "tcp",
    }

    assert load(ALL_ROLES, **environ).server.port == 8000


def test_other_programs_variables_are_left_alone(load: Load) -> None:
    assert load(ALL_ROLES, PATH="/bin", FASTCHAT_TOKEN="x", fastchat_serve_server__port="1").server.port == 8000


# ------------------------------------------------------------------------------------ interpolation


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("${NAME}", "value"),
        ("<${NAME}-${NAME}>", "<value-value>"),
        ("${UNSET:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${NAME:-default}", "value"),
        ("<${UNSET:-}>", "<>"),
        ("<${EMPTY}>", "<>"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$${NAME}"),
        ("$NAME $ $$ {NAME}", "$NAME $ $$ {NAME}"),
        ("${NESTED}", "${NAME}"),
        ("${UNSET:-a:-b $ {}", "a:-b $ {"),
        ("${TOML}", '"]\nx = 1'),
    ],
)
def test_variables_are_put_into_strings_once(load: Load, written: str, read: str) -> None:
    environ = {"NAME": "value", "EMPTY": "", "NESTED": "${NAME}", "TOML": '"]\nx = 1'}
    config = load(f"{ALL_ROLES}options = {{ plain = '{written}', inside = [{{ list = ['{written}'] }}] }}", **environ)

    assert config.worker[0].options == {"plain": read, "inside": [{"list": [read]}]}


def test_values_of_the_environment_and_of_set_are_not_searched_for_variables(load: Load) -> None:
    config = load(ALL_ROLES, "worker.0.options.a=${HOME}", FASTCHAT_SERVE_WORKER__0__OPTIONS__B="${HOME}", HOME="/h")

    assert config.worker[0].options == {"a": "${HOME}", "b": "${HOME}"}


def test_a_variable_that_is_not_set_does_not_matter_once_its_value_is_overridden(load: Load) -> None:
    config = load(f"{ALL_ROLES}[cluster]\ntoken = '${{UNSET}}'", "cluster.token=given")

    assert config.cluster.token is not None
    assert config.cluster.token.reveal() == "given"


def test_secrets_from_variables_show_in_no_error(load: Load) -> None:
    text = f"{ALL_ROLES}[cluster]\ntoken = '${{T}}'\n[server]\nlog_level = '${{T}}'"

    error = refusal(load, text, T="marker words")

    assert "marker" not in str(error)


# -------------------------------------------------------------------------------------------- paths


def test_a_model_that_is_a_folder_beside_the_file_becomes_absolute(load: Load, tmp_path: Path) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)

    for written in ("models/small", "./models/small", "models/../models/small", str(tmp_path / "models/small")):
        (worker,) = load(ALL_ROLES + f"model = '{written}'").worker
        assert worker.model == str(tmp_path / "models" / "small")
        assert worker.names == ("small",)


@pytest.mark.parametrize("model", ["demo", "org/model", "a" * 5000, "http://host/x", "nul\\u0000"])
def test_a_model_that_is_no_folder_stays_a_name(load: Load, model: str) -> None:
    assert load(f'{ALL_ROLES}model = "{model}"').worker[0].model == model.replace("\\u0000", "\0")


def test_a_tilde_is_the_home_folder(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()

    assert load(f"{ALL_ROLES}model = '~/model'").worker[0].model == str(tmp_path / "model")


def test_paths_on_the_command_line_are_meant_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    file = tmp_path / "config.toml"
    file.write_text(ALL_ROLES, encoding="utf-8")

    assert config_for_model("./model", environ={}).worker[0].model == str(tmp_path / "here" / "model")
    overridden = load_config(file, overrides=["worker.0.model=./model"], environ={})
    assert overridden.worker[0].model == str(tmp_path / "here" / "model")


def test_a_model_on_the_command_line_that_is_no_folder_is_named_by_its_flag() -> None:
    error = refusal(config_for_model, "./no-such-model", environ={})

    assert (error.file, error.key) == ("--model", "worker.0.model")
    assert "no such folder" in error.problem


def test_keys_of_the_file_are_added_to_those_of_the_table(load: Load, tmp_path: Path) -> None:
    hashed = "sha256:" + "ab" * 32
    (tmp_path / "keys.txt").write_text(f"# ours\nse#cond # of Ann\n\n  {hashed}\r\n", encoding="utf-8")

    api = load(ALL_ROLES.replace("[api]\n", "[api]\nkeys = ['first']\nkeys_file = 'keys.txt'\n")).api

    assert api is not None
    assert [key.reveal() for key in api.keys] == ["first", "se#cond", hashed]
    assert api.keys_file == tmp_path / "keys.txt"


# ------------------------------------------------------------------------------------------ options


class Cache(Struct, frozen=True, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=0)] = 0


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    blocks: Annotated[int, Meta(ge=1)] | Literal["auto"] = "auto"
    revision: str | None = None
    adapters: Mapping[str, Path] = {}
    memory: dict[str, Annotated[int, Meta(ge=0)]] = {}
    layers: dict[int, str] = {}
    cache: Cache | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.blocks == 13:
            raise ValueError("13 blocks do not fit into a CPU")


def options(load: Load, text: str) -> Options:
    return convert_options(load(f"{ALL_ROLES}[worker.options]\n{text}"), 0, Options)


def test_options_are_typed_by_the_backends_struct(load: Load, tmp_path: Path) -> None:
    typed = options(
        load, 'device = "cuda"\nblocks = 7\ncache.size = 3\nadapters = { a = "lora" }\nlayers.3 = "cpu"\ntags = ["x"]'
    )

    assert typed == Options(
        device="cuda", blocks=7, cache=Cache(size=3), adapters={"a": tmp_path / "lora"}, layers={3: "cpu"}, tags=("x",)
    )


def test_a_worker_without_options_has_the_backends_defaults(load: Load) -> None:
    assert convert_options(load(ALL_ROLES), 0, Options) == Options()


@pytest.mark.parametrize(
    ("text", "line", "column", "key", "says"),
    [
        ("devise = 'cpu'", 6, 1, "devise", 'Did you mean "device"?'),
        ("device = 'gpu'", 6, 10, "device", 'one of "auto", "cpu", "cuda". Did you mean "cpu"?'),
        ("blocks = 0", 6, 10, "blocks", 'an integer of at least 1 or one of "auto", not 0'),
        ("\ncache = { size = -1 }", 7, 18, "cache.size", "an integer of at least 0, not -1"),
        ("cache = { sise = 1 }", 6, 11, "cache.sise", 'Did you mean "size"?'),
        ("[worker.options.cache]\nsize = 'x'", 7, 8, "cache.size", "not a string"),
        ("cache = 5", 6, 9, "cache", "expected a table, not 5"),
        ("memory = { cpu = 1, '0' = -1 }", 6, 27, "memory.0", "an integer of at least 0, not -1"),
        ("layers.first = 'cpu'", 6, 1, "layers", "Expected `int`, got `str` - at `key`"),
        ("adapters.a = 5", 6, 14, "adapters.a", "a string, not a number"),
        ("tags = ['a', 5]", 6, 14, "tags.1", "a string, not 5"),
        ("revision = 1", 6, 12, "revision", "a string, not 1"),
        ("device = 'cpu'\nblocks = 13", 5, 1, "", "13 blocks do not fit into a CPU"),
    ],
)
def test_wrong_options_are_refused_at_their_place(
    load: Load, text: str, line: int, column: int, key: str, says: str
) -> None:
    error = refusal(options, load, text)

    assert (error.line, error.column, error.key) == (line, column, f"worker.0.options.{key}".rstrip("."))
    assert says in error.problem


# --------------------------------------------------------------------------------------- robustness

WORDS = """
    [server] [[worker]] [api] [controller] port backend model names options keys_file controllers plugins
    = . , { } [ ] " ' 'echo' true 1 -1 inf nan 1979-05-27 ${A} ${ # \\ ~ ../ http://[ http://a:b
"""
SCRAPS = st.sampled_from([*WORDS.split(), " ", "\n", "\r", "\0", "\ufeff", '"""', "'''"])
TEXTS = st.one_of(st.lists(SCRAPS, max_size=40).map("".join), st.text(max_size=60))


@given(content=st.one_of(TEXTS.map(str.encode), st.binary(max_size=60)))
def test_whatever_a_file_holds_it_is_a_config_or_a_config_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)

    _loads_or_is_refused(path)


@given(overrides=st.lists(TEXTS, max_size=3), settings=st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_whatever_the_command_line_and_the_environment_hold_it_is_a_config_or_a_config_error(
    overrides: list[str], settings: dict[str, str]
) -> None:
    environ = {f"FASTCHAT_SERVE_{name}": value for name, value in settings.items()}

    _loads_or_is_refused(CONF / "echo.toml", overrides=overrides, environ=environ)


@given(
    st.sampled_from(["server.port", "worker.0.model", "worker.0.names", "api.keys_file", "worker.0.options.x"]), TEXTS
)
def test_whatever_value_a_key_is_given_it_is_a_config_or_a_config_error(key: str, value: str) -> None:
    _loads_or_is_refused(CONF / "echo.toml", overrides=[f"{key}={value}"])


def _loads_or_is_refused(path: Path, **sources: Any) -> None:
    with suppress(ConfigError):
        assert load_config(path, **{"environ": {}, **sources}).controller is not None

"""Plugins are loaded by name only, and whatever is wrong with one says whose it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from fastchat_serve.errors import PluginError
from fastchat_serve.plugins import Plugins, inspect, installed

GOOD = """
    from fastchat_serve import NoOptions, hookimpl

    @hookimpl
    def register_engines(register):
        register("{name}", lambda setup: None, contract=1)
"""

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(name, source)`` makes a distribution ``dist-name`` 1.2.3 with an entry point; gives its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = set(sys.modules)

    def install(name: str, source: str = GOOD, *, distribution: str = "", target: str = "") -> str:
        distribution = distribution or f"dist-{name}"
        module = f"{distribution}_plugin".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(dedent(source.replace("{name}", name)))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[fastchat_serve]\n{name} = {target or module}\n")
        return module

    yield install
    for module in set(sys.modules) - modules:
        if module.startswith("dist_"):
            del sys.modules[module]


def problem_of(name: str) -> str:
    with pytest.raises(PluginError) as refusal:
        Plugins().load([name])
    return str(refusal.value)


def test_only_what_is_named_is_imported(install: Install) -> None:
    good, bad = install("good"), install("bad", "raise RuntimeError('imported')")

    plugins = Plugins()
    assert {good, bad}.isdisjoint(sys.modules)
    assert plugins.backend("good").name == "good"

    assert good in sys.modules
    assert bad not in sys.modules


def test_echo_is_a_plugin_like_any_other() -> None:
    backend = Plugins().backend("echo")

    assert (backend.name, backend.contract, backend.options.__name__) == ("echo", 1, "EchoOptions")


def test_loading_twice_registers_once(install: Install) -> None:
    install("good")
    plugins = Plugins()
    plugins.load(["good", "good"])
    plugins.load(["good"])

    assert set(plugins.backends) == {"good"}


def test_the_plugins_of_one_server_hear_of_their_own_registration_only(install: Install) -> None:
    install("good")
    install("other")
    plugins = Plugins()
    plugins.load(["good", "other"])

    assert set(plugins.backends) == {"good", "other"}


def test_a_name_that_nobody_has_is_refused_with_the_nearest(install: Install) -> None:
    install("llama")

    problem = problem_of("lama")

    assert "No plugin is called 'lama'" in problem
    assert "Did you mean 'llama'?" in problem
    assert "echo" in problem, "and with those there are"


HOOK = "from fastchat_serve import hookimpl\n@hookimpl\ndef "
ENGINE = HOOK + "register_engines(register):\n    "


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit('no GPU here')", "SystemExit: no GPU here"),
        (ENGINE + "raise RuntimeError('boom')", "Hook 'register_engines' of dist-bad 1.2.3 failed: RuntimeError: boom"),
        (ENGINE + "register('bad', None)", "'contract'"),
        (ENGINE + "register('bad', None, contract=99)", "Engine 'bad' of dist-bad 1.2.3 was written for contract 99"),
        (ENGINE + "register('bad', None, contract=0)", "this server speaks 1 to 1"),
        (ENGINE + "register('bad', None, contract='1')", "contract 1"),
        (ENGINE + "register('bad', None, contract=1, options=dict)", "not a msgspec.Struct class"),
        (
            HOOK + "register_engines(registrar): pass",
            "hook 'register_engines'",
        ),
        (
            HOOK + "register_engine(register): pass",
            "unknown hook 'register_engine'. Did you mean 'register_engines'?",
        ),
        (
            HOOK + "register_models(register): register('good/x', None)",
            "Model 'good/x' of dist-bad 1.2.3 must be called 'bad' or begin with 'bad/'",
        ),
        (
            HOOK + "register_policies(register): register('lottery', None)",
            "Policy 'lottery' of dist-bad 1.2.3 must be called 'bad' or begin with 'bad/'",
        ),
        (
            HOOK + "register_tool_parsers(register): register('hermes', None)",
            "Tool parser 'hermes' of dist-bad 1.2.3 exists already",
        ),
    ],
    ids=[
        "missing-library",
        "raises",
        "syntax",
        "exits",
        "hook-raises",
        "contract-missing",
        "contract-too-new",
        "contract-too-old",
        "contract-is-text",
        "options-no-struct",
        "hook-signature",
        "hook-unknown",
        "model-name",
        "policy-name",
        "parser-name",
    ],
)
def test_a_broken_plugin_is_refused_with_its_distribution_version_and_cause(
    install: Install, source: str, cause: str
) -> None:
    install("bad", source)

    problem = problem_of("bad")

    assert "dist-bad 1.2.3" in problem
    assert cause in problem


def test_an_entry_point_to_something_that_is_not_there_names_its_distribution(install: Install) -> None:
    install("bad", target="dist_bad_plugin:no_such_object")

    assert "dist-bad 1.2.3" in problem_of("bad")
    assert "no_such_object" in problem_of("bad")


def test_a_broken_plugin_does_not_count_as_loaded_the_second_time(install: Install) -> None:
    install("bad", ENGINE + "raise RuntimeError('boom')")
    plugins = Plugins()
    for _ in range(2):
        with pytest.raises(PluginError, match="boom"):
            plugins.backend("bad")


def test_two_distributions_of_one_name_are_refused_if_the_name_is_used(install: Install) -> None:
    install("twin", distribution="dist-one")
    install("twin", distribution="dist-two")
    install("good")

    assert Plugins().backend("good"), "who does not mean them is not troubled"
    problem = problem_of("twin")
    assert "Two plugins are called 'twin': dist-one 1.2.3 and dist-two 1.2.3" in problem
    assert not any(module in sys.modules for module in ("dist_one_plugin", "dist_two_plugin"))


def test_an_engine_that_another_plugin_offers_already_is_refused(install: Install) -> None:
    install("good")
    install("thief", GOOD.replace("{name}", "good"))
    plugins = Plugins()
    plugins.load(["good"])

    with pytest.raises(PluginError, match=r"'good' of dist-thief 1\.2\.3 is registered already"):
        plugins.load(["thief"])


def test_a_plugin_without_the_engine_that_is_asked_of_it_is_refused(install: Install) -> None:
    install("models", "")

    with pytest.raises(PluginError, match=r"dist-models 1\.2\.3 offers no engine called 'models'"):
        Plugins().backend("models")


def test_models_and_policies_are_found_through_the_plugin_they_are_named_after(install: Install) -> None:
    install(
        "zoo",
        """
        from pathlib import Path
        from fastchat_serve import hookimpl

        @hookimpl
        def register_models(register):
            register("zoo", Path("/models/default"))
            register("zoo/large", Path("/models/large"))

        @hookimpl
        def register_policies(register):
            register("zoo/last", lambda candidates, draw: len(candidates) - 1)

        @hookimpl
        def register_tool_parsers(register):
            register("pythonic", object)
        """,
    )
    plugins = Plugins()

    assert plugins.model("zoo/large") == Path("/models/large")
    assert plugins.model("zoo") == Path("/models/default")
    assert plugins.model("zoo/none") is None
    assert plugins.model("org/model") is None
    assert plugins.policy("zoo/last") is not None
    assert plugins.policy("lottery") is None
    assert {"hermes", "pythonic"} <= set(plugins.tool_parsers)


@pytest.mark.parametrize(("upstream_model", "given"), [(False, "/models/demo"), (True, "zoo")])
def test_a_name_at_an_upstream_is_handed_on_whatever_models_there_are_here(
    install: Install, upstream_model: bool, given: str
) -> None:
    install(
        "zoo",
        f"""
        from pathlib import Path
        from fastchat_serve import hookimpl

        @hookimpl
        def register_engines(register):
            register("zoo", lambda setup: None, contract=1, upstream_model={upstream_model})

        @hookimpl
        def register_models(register):
            register("zoo", Path("/models/demo"))
        """,
    )
    plugins = Plugins()

    assert plugins.model_for(plugins.backend("zoo"), "zoo") == given


def test_the_report_tells_of_the_broken_and_harms_nobody_else(install: Install) -> None:
    install("good")
    install("bad", "raise RuntimeError('boom')")
    install("twin", distribution="dist-one")
    install("twin", distribution="dist-two")

    reports = {(report.name, report.distribution): report for report in inspect()}

    good, bad = reports["good", "dist-good"], reports["bad", "dist-bad"]
    assert (good.state, good.version, good.contract, good.engines) == ("ok", "1.2.3", 1, ("good",))
    assert (bad.state, bad.version, bad.engines) == ("broken", "1.2.3", ())
    assert "RuntimeError: boom" in bad.problem
    for distribution in ("dist-one", "dist-two"):
        assert reports["twin", distribution].state == "broken"
        assert "Two plugins" in reports["twin", distribution].problem
    assert reports["echo", "fastchat-serve"].state == "ok"


def test_looking_at_what_is_installed_imports_nothing(install: Install) -> None:
    module = install("bad", "raise RuntimeError('imported')")

    assert [point.value for point in installed()["bad"]] == [module]
    assert module not in sys.modules

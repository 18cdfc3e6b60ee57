"""S17: every route is closed unless it is named here, and no way of writing its path opens it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from litestar.routes import HTTPRoute

from fastchat_serve.app import Application
from fastchat_serve.configfile.load import load_config
from tests.hostile.attack import PUBLIC
from tests.hostile.case import Case, get, post
from tests.hostile.judge import assert_openai_error

pytestmark = pytest.mark.anyio

OPEN_TO_ALL = {"/health", "/ready"}
"""They say nothing that is secret, and whoever asks them has no key. Nothing else may be open."""

METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND", "SEARCH"]


@pytest.fixture(scope="module")
def application(tmp_path_factory) -> Application:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text('[controller]\n[api]\nkeys = ["sk-1"]\n[[worker]]\nbackend = "echo"\n')
    return Application(load_config(path, environ={}))


def paths(application: Application) -> list[str]:
    """Of all routes."""
    found = sorted(route.path_format.replace("{model}", "echo") for route in application.asgi.routes)
    assert len(found) >= 9, "the walk sees the routes"
    return found


def test_s17_only_the_listed_routes_say_that_they_are_public(application):
    for route in application.asgi.routes:
        handlers = route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]
        for handler in handlers:
            assert not handler.opt.get("public") or route.path_format in OPEN_TO_ALL, route.path_format


def test_s17_what_changes_the_server_is_for_operators_only(application):
    """`tests/test_lifecycle.py` shows what that means: an API key is not enough."""
    changing = {route.path_format for route in application.asgi.routes if route.path_format.startswith("/cluster/")}
    changing -= {"/cluster/workers", "/cluster/decisions/{request_id}"}
    assert len(changing) >= 7
    for route in application.asgi.routes:
        handlers = route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]
        for handler in handlers:
            if "documented" in handler.opt:  # not what Litestar makes by itself, such as for OPTIONS
                assert (handler.opt.get("operators") == "only") == (route.path_format in changing), route.path_format


def test_s17_every_handler_has_the_guard(application):
    """Also those that Litestar makes by itself, such as for OPTIONS."""
    for route in application.asgi.routes:
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]:
            modules = {getattr(guard, "func", guard).__module__ for guard in handler.resolve_guards()}
            assert "fastchat_serve.routes.door" in modules, (route.path_format, modules)


async def test_s17_every_route_denies_by_default(guarded, application):
    """By all methods there are: not only what a route answers, but what it may come to answer."""
    for path in paths(application):
        for method in METHODS:
            for sends in (get(path, method=method), post(path, {}).replace(b"POST", method.encode(), 1)):
                reply = await reply_to(guarded, sends)
                if path in OPEN_TO_ALL:
                    assert reply.status == 200 or method != "GET", (method, path)
                else:
                    assert reply.status in (401, 405), (method, path)
                    assert method not in known_methods(application, path) or reply.status == 401


async def test_s17_no_other_way_to_write_a_path_opens_it(guarded, application):
    for path in paths(application):
        if path not in OPEN_TO_ALL:
            for written in disguises(path):
                reply = await reply_to(guarded, get(written))
                assert reply.status in (400, 401, 404, 405), (written, reply)
                assert_openai_error(reply)
                assert not reply.header("location")


def test_the_runner_of_the_corpus_holds_the_same_routes_for_public():
    assert {request.split()[1].decode() for request in PUBLIC} == OPEN_TO_ALL


async def reply_to(victim, sends: bytes):
    """The reply to `sends`, from somebody without a key."""
    async with victim.connected() as client:
        client.send(Case(401, sends).without_key())
        reply = await client.reply(to_head=sends.startswith(b"HEAD"))
    assert reply is not None
    return reply


def known_methods(application: Application, path: str) -> set[str]:
    """What the route answers; all, if it sees to that itself."""
    for route in application.asgi.routes:
        if route.path_format.replace("{model}", "echo") == path:
            return set(route.methods) if isinstance(route, HTTPRoute) else set(METHODS)
    return set()


def disguises(path: str) -> Iterator[str]:
    """Ways to write `path` such that one reader takes it for it, and another for something harmless."""
    yield from (f"/{path}", f"{path}/", f"{path}//", path.upper(), path.title(), path.replace("/", "//"))
    yield from (
        f"/.{path}",
        f"/health/..{path}",
        f"/health/%2e%2e{path}",
        f"/health/..%2f{path[1:]}",
        f"/health;{path}",
    )
    yield from (f"{path}?/health", f"{path}#/health", f"{path};/health", f"{path}%00", f"{path}%20", f"{path}/.")
    yield from (f"{path}/../health", f"{path}%2f..%2fhealth", f"{path}%3f", f"{path}.json", f"http://localhost{path}")
    yield from (f"/%{ord(path[1]):02x}{path[2:]}", f"%2f{path[1:]}", path.replace("/", "%2f"), path.replace("/", "\\"))
    yield "/" + "".join(f"%{ord(char):02X}" for char in path[1:])
    yield "/" + "".join(f"%25{ord(char):02x}" for char in path[1:])

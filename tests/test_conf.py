"""What `conf` has for containers starts what it says: each command line there is one of a config that can be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fastchat_serve.configfile.load import load_config

CONF = Path(__file__).parents[1] / "conf"
ENVIRON = {"FASTCHAT_TOKEN": "t", "FASTCHAT_KEY": "sk-k"}
KUBERNETES = sorted(path for path in (CONF / "kubernetes").glob("*.yaml") if path.stem != "kustomization")


def roles(command: list[str]) -> set[str]:
    """Those of the process that `command` starts."""
    assert command[0] == "--config"
    overrides = [value for option, value in zip(command[2::2], command[3::2], strict=True) if option == "--set"]
    path = CONF.parent / command[1].removeprefix("/")
    config = load_config(path, overrides=overrides, environ=ENVIRON)
    for urls in (config.api.controllers if config.api else (), *(worker.controllers for worker in config.worker)):
        assert not any("127.0.0.1" in url for url in urls), "in containers nobody is at home"
    present = {"controller": config.controller, "api": config.api, "worker": config.worker}
    return {role for role, table in present.items() if table}


def test_each_service_of_the_compose_file_is_its_role() -> None:
    services = yaml.safe_load((CONF / "compose.yaml").read_text())["services"]

    assert {name: roles(service["command"]) for name, service in services.items()} == {
        name: {name} for name in ("controller", "worker", "api")
    }
    assert services["api"]["ports"] == ["8080:8080"]


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_each_deployment_for_kubernetes_is_its_role_at_its_port(path: Path) -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text()))
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    assert roles(container["args"]) == {path.stem}
    config = load_config(CONF / "split" / f"{path.stem}.toml", environ=ENVIRON)
    assert [port["containerPort"] for port in container["ports"]] == [config.server.port]
    assert {variable["name"] for variable in container["env"]} <= ENVIRON.keys()
    patience_s = deployment["spec"]["template"]["spec"].get("terminationGracePeriodSeconds")
    assert path.stem == "controller" or patience_s > config.server.drain_s


def test_all_manifests_are_listed() -> None:
    listed = yaml.safe_load((CONF / "kubernetes" / "kustomization.yaml").read_text())["resources"]

    assert sorted(listed) == [path.name for path in KUBERNETES]

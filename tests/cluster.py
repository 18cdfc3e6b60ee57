"""Configs of the roles of a cluster, each a process's."""

from __future__ import annotations

__all__ = ["TOKEN", "api", "controller", "worker"]

TOKEN = "cluster-secret"

_CLUSTER = f"""
[cluster]
token = "{TOKEN}"
"""


def controller(*, more: str = "") -> str:
    return f"{_CLUSTER}{more}[controller]\n"


def api(*controllers: str, more: str = "") -> str:
    return f"{_CLUSTER}{more}[api]\ncontrollers = {list(controllers)}\n"


def worker(*controllers: str, more: str = "", options: str = "", workers: int = 1, token: str = TOKEN) -> str:
    """`workers` echoes in one process."""
    one = f"""
[[worker]]
backend = "echo"
names = ["echo"]
controllers = {list(controllers)}
{more}
[worker.options]
{options}
"""
    return _CLUSTER.replace(TOKEN, token) + workers * one

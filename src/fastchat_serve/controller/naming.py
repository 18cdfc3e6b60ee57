"""Policies by the names that configs have for them."""

from __future__ import annotations

from fastchat_serve.controller.policies import POLICIES
from fastchat_serve.plugins import Plugins
from fastchat_serve.policy import Policy

__all__ = ["policy_named"]


def policy_named(name: str, plugins: Plugins) -> Policy:
    """One of ours, or a plugin's. Raises `LookupError`, which says what there is."""
    policy = POLICIES.get(name) or plugins.policy(name)
    if policy is None:
        known = ", ".join(sorted({*POLICIES, *plugins.policies}))
        raise LookupError(f"there is no policy {name!r}; known are: {known}")
    return policy

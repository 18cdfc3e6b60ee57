"""What can be set for the backend: the table ``[worker.options]`` when ``backend = "hf-inference"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fastchat_serve import Capability, Secret

__all__ = ["HfInferenceOptions", "Task"]

Task = Literal["chat", "text-generation", "feature-extraction"]

_Name = Annotated[str, Meta(min_length=1)]


class HfInferenceOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Without any, a hub id is served by whichever provider Hugging Face chooses."""

    base_url: (
        Annotated[
            str,
            Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", title="a URL such as https://host/v1, without a query"),
        ]
        | None
    ) = None
    """An Inference Endpoint, or another server of its kind. None: the model is a hub id, served by a provider."""
    provider: _Name = "auto"
    """Who serves a hub id: "together", "cerebras", "hf-inference", … ``auto``: the first in the account's settings."""
    bill_to: _Name | None = None
    """The organisation that pays, instead of the token's owner."""
    token: Secret | None = None
    """Hugging Face's token, or the endpoint's. ``"${NAME}"`` takes it from the environment."""
    token_env: _Name | None = None
    """The same, from this environment variable, read when the engine is opened. Neither: HF_TOKEN, or the login of this
    machine, and only for hosts of Hugging Face."""
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1)] = ("chat",)
    """What to ask of the model: ``chat`` for conversations, ``text-generation`` for prompts of text (TGI),
    ``feature-extraction`` for embeddings. The last two need an endpoint, or the provider "hf-inference"."""
    server: Literal["openai", "tgi"] = "openai"
    """What an endpoint runs. ``tgi``: text-generation-inference, whose limits and constraints are its own."""
    model_info: Path | None = None
    """A JSON file as FastChat's ``--model-info-file`` takes it; `model` is then a name in it."""
    context_length: Annotated[int, Meta(ge=1)] | None = None
    """Tokens of prompt and answer together. None: the model info's, otherwise 32768 is assumed."""
    usage: Literal["ask", "sent", "estimate"] = "ask"
    """Where the token counts of chats come from. ``ask``: the server is asked. ``sent``: it sends them unasked.
    ``estimate``: it has none; events are counted as tokens, and prompts not at all."""
    lacks: tuple[Capability, ...] = ()
    """What this model or provider cannot do. Such requests are refused here."""
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 120.0
    """The longest silence of a server that owes an answer, and the longest wait for a connection."""

    def __post_init__(self) -> None:
        if self.token is not None and self.token_env is not None:
            raise ValueError("give one of token and token_env")

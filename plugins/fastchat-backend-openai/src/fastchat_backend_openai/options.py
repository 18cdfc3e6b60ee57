"""What can be set for the backend: the table ``[worker.options]`` when ``backend = "openai"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fastchat_serve import Capability, Secret

__all__ = ["Api", "DialectName", "OpenAIOptions"]

Api = Literal["chat", "completions", "embeddings"]
DialectName = Literal["openai", "vllm", "sglang", "llamacpp", "ollama", "lmstudio", "fastchat-serve"]

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_Name = Annotated[str, Meta(min_length=1)]
_HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", title="a header's name")]


class OpenAIOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`base_url` is needed; the rest suits a server of this machine or network."""

    base_url: Annotated[
        str,
        Meta(
            pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
            title="a URL such as http://127.0.0.1:11434/v1, without user, query or fragment",
        ),
    ]
    """Where the API is, up to and with ``/v1``."""
    api_key: Secret | None = None
    """Sent as a bearer token, to `base_url` and nowhere else. ``"${NAME}"`` takes it from the environment."""
    api_key_env: _Name | None = None
    """The same, from this environment variable, which is read when the engine is opened."""
    extra_headers: dict[_HeaderName, Secret] = {}
    """More headers for every request."""
    dialect: Literal["auto"] | DialectName = "auto"
    """Which extensions of the API the server understands. ``auto``: as its list of models tells."""
    apis: tuple[Api, ...] = ()
    """What to offer. Empty: chat, and completions where all servers of the dialect have them."""
    lacks: tuple[Capability, ...] = ()
    """What this server or its model cannot do, although others of its dialect can. Such requests are refused here."""
    context_length: Annotated[int, Meta(ge=1)] | None = None
    """Tokens of prompt and answer together. None: what the server says, otherwise 131072 is assumed."""
    usage: Literal["ask", "sent", "estimate"] = "ask"
    """Where token counts come from. ``ask``: the server is asked for them. ``sent``: it sends them unasked, and knows
    no ``stream_options``. ``estimate``: it has none; events are counted as tokens, and prompts not at all."""
    send_seed: bool = True
    """Send a seed with every request. False for a server that refuses one; nothing is reproducible then."""
    max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """How the server calls the limit in chats. ``auto``: the newer name for OpenAI's own cloud, else the older."""
    chat_template_kwargs: tuple[_Name, ...] = ()
    """Variables of the chat template that a request may set, for the dialects that pass them on."""
    lazy: bool = False
    """Open without asking the server anything, whether it is there or not. Needs a model's name."""
    wait_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """How long to wait at the start for a server that is not there yet."""
    max_connections: Annotated[int, Meta(ge=1, le=65_536)] = 256
    """Connections at most, and so requests at the same time; others wait."""
    connect_timeout_s: _Seconds = 5.0
    """For one connection, TLS included."""
    read_timeout_s: _Seconds = 300.0
    """The longest silence of a server that owes an answer."""
    max_reply_bytes: Annotated[int, Meta(ge=1024)] = 64 * 1024 * 1024
    """The largest reply that is not a stream: embeddings of many texts are large."""
    proxy: (
        Annotated[str, Meta(pattern=r"^http://[^\s/?#@]+$", title="a URL of the form http://host:port, without a path")]
        | None
    ) = None
    """An HTTP proxy to go through. Variables such as HTTPS_PROXY are not read."""
    ca_file: Path | None = None
    """Certificates to trust instead of the system's, in PEM. Certificates are always verified."""

    def __post_init__(self) -> None:
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("give one of api_key and api_key_env")
        if any("\r" in value.reveal() or "\n" in value.reveal() for value in self.extra_headers.values()):
            raise ValueError("a header's value is one line")

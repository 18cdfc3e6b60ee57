"""Where a model is, and with which token it is asked: decided once, when an engine is opened."""

from __future__ import annotations

import importlib
import os
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils._runtime import is_numpy_available
from msgspec import Struct

from fastchat_backend_hf_inference.model_info import ModelInfo, read_model_info
from fastchat_backend_hf_inference.options import HfInferenceOptions
from fastchat_serve import StartupError

__all__ = ["Place", "find_place"]

_OWN_HOSTS = ("huggingface.co", "huggingface.cloud", "hf.space", "hf.co")


class Place(Struct, frozen=True):
    """Where to ask.

    Attributes:
        model: As the server calls it.
        base_url: None: the router of Hugging Face's providers.
        token: Empty for none.
    """

    model: str
    base_url: str | None
    token: str
    context_length: int | None = None

    def __repr__(self) -> str:  # `token` is nobody's business
        return f"Place(model={self.model!r})"


def find_place(model: str, options: HfInferenceOptions) -> Place:
    """May read files, so not for the loop's thread.

    Raises:
        StartupError: The options do not say where, or contradict each other.
    """
    if "feature-extraction" in options.tasks:
        if not is_numpy_available():
            raise StartupError("Embeddings need numpy: pip install 'fastchat-backend-hf-inference[embeddings]'")
        importlib.import_module("numpy")  # or the first request would, on the loop
    info = ModelInfo() if options.model_info is None else read_model_info(options.model_info, model)
    if options.base_url is not None and info.base_url is not None:
        raise StartupError("The entry of model_info has an api_base; base_url must not be given as well.")
    name = (info.model_path or model) if options.model_info is not None else model
    base_url = options.base_url or info.base_url
    if base_url is None and not name:
        raise StartupError("Give a model: a hub id, or with base_url the name that the endpoint gives it.")
    if base_url is None and (options.provider == "hf-inference" or options.tasks != ("chat",)):
        if options.provider not in ("auto", "hf-inference"):
            raise StartupError("Providers other than hf-inference are asked for chats only.")
        base_url = f"{constants.INFERENCE_PROXY_TEMPLATE.format(provider='hf-inference')}/models/{name}"
    elif base_url is None and options.provider != "auto":
        name = f"{name}:{options.provider}"
    return Place(name or "tgi", base_url, _token(options, info, base_url), info.context_length)


def _token(options: HfInferenceOptions, info: ModelInfo, base_url: str | None) -> str:
    if options.token_env is not None:
        token = os.environ.get(options.token_env, "")
        if not token:
            raise StartupError(f"The environment variable {options.token_env}, named by token_env, is not set.")
    elif options.token is not None:
        token = options.token.reveal()
    elif info.token:
        token = info.token
    else:
        token = (huggingface_hub.get_token() or "") if _is_own(base_url) else ""
    token = token.strip()
    if not token and base_url is None:
        raise StartupError("Providers need a token: give token or token_env, set HF_TOKEN, or run `hf auth login`.")
    return token


def _is_own(base_url: str | None) -> bool:
    """Whether a host is Hugging Face's, so that its token may go there."""
    if base_url is None:
        return True
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    return parts.scheme == "https" and any(host == own or host.endswith(f".{own}") for own in _OWN_HOSTS)

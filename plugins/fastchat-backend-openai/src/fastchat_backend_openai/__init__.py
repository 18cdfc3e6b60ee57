"""The backend ``openai``: a worker whose engine is somebody else's server, behind OpenAI's HTTP API.

Light on purpose: the engine is imported when it is opened.
"""

from fastchat_backend_openai.dialects import DIALECTS, capabilities_of
from fastchat_backend_openai.options import OpenAIOptions
from fastchat_serve import Capability, Engine, EngineSetup, RegisterEngine, hookimpl

__all__ = ["CAPABILITIES", "OpenAIOptions", "open_openai", "register_engines"]

CAPABILITIES = frozenset[Capability]().union(
    *(capabilities_of(dialect, ("chat", "completions", "embeddings"), ()) for dialect in DIALECTS.values())
)


def open_openai(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not connected yet."""
    from fastchat_backend_openai.engine import OpenAIEngine

    return OpenAIEngine(setup)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("openai", open_openai, contract=1, options=OpenAIOptions, capabilities=CAPABILITIES, upstream_model=True)

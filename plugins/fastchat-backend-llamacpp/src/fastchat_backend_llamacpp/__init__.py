"""The backend ``llamacpp``: GGUF files through llama.cpp, batched continuously.

Light on purpose: llama-cpp-python is imported when an engine is opened.
"""

from fastchat_backend_llamacpp.options import LlamaCppOptions
from fastchat_serve import Capability, Engine, EngineSetup, RegisterEngine, hookimpl

__all__ = ["CAPABILITIES", "LlamaCppOptions", "open_llamacpp", "register_engines"]

CAPABILITIES = frozenset(Capability) - {Capability.TOOL_CALLS}
"""Those of a model whose chat template has tools, with adapters, and with `embeddings` switched on."""


def open_llamacpp(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not loaded yet."""
    from fastchat_backend_llamacpp.loading import load
    from fastchat_serve.stepping import SteppingEngine

    return SteppingEngine(setup, load, name="llamacpp")


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("llamacpp", open_llamacpp, contract=1, options=LlamaCppOptions, capabilities=CAPABILITIES)

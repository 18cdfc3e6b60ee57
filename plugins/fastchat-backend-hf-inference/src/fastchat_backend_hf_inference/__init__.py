"""The backend ``hf-inference``: models behind Hugging Face's Inference Providers, or in an endpoint of one's own.

Light on purpose: huggingface_hub is imported when an engine is opened.
"""

from fastchat_backend_hf_inference.options import HfInferenceOptions
from fastchat_serve import Capability, Engine, EngineSetup, RegisterEngine, hookimpl

__all__ = ["CAPABILITIES", "HfInferenceOptions", "open_hf_inference", "register_engines"]

CAPABILITIES = frozenset(
    {
        Capability.GENERATE,
        Capability.TEXT_PROMPT,
        Capability.CHAT,
        Capability.TOOLS,
        Capability.TOOL_CALLS,
        Capability.TOOL_CHOICE,
        Capability.EMBED,
        Capability.LOGPROBS,
        Capability.TOP_K,
        Capability.PENALTIES,
        Capability.REPETITION_PENALTY,
        Capability.SEED,
        Capability.JSON_OBJECT,
        Capability.JSON_SCHEMA,
    }
)


def open_hf_inference(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not opened yet."""
    from fastchat_backend_hf_inference.engine import HfInferenceEngine

    return HfInferenceEngine(setup)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register(
        "hf-inference",
        open_hf_inference,
        contract=1,
        options=HfInferenceOptions,
        capabilities=CAPABILITIES,
        upstream_model=True,
    )

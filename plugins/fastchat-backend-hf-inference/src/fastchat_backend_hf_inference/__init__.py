"""The backend ``hf-inference``: models behind Hugging Face's Inference Providers, or in an endpoint of one's own.

Light on purpose: huggingface_hub is imported when an engine is opened.
"""

from fastchat_backend_hf_inference.options import HfInferenceOptions
from fastchat_serve import Engine, EngineSetup, RegisterEngine, hookimpl

__all__ = ["HfInferenceOptions", "open_hf_inference", "register_engines"]


def open_hf_inference(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not opened yet."""
    from fastchat_backend_hf_inference.engine import HfInferenceEngine

    return HfInferenceEngine(setup)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("hf-inference", open_hf_inference, contract=1, options=HfInferenceOptions)

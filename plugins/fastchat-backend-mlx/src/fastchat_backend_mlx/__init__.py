"""The backend ``mlx``: models of mlx-lm, batched continuously.

Light on purpose: mlx is imported when an engine is opened.
"""

from fastchat_backend_mlx.options import MlxOptions
from fastchat_serve import Capability, Engine, EngineSetup, RegisterEngine, StartupError, hookimpl

__all__ = ["CAPABILITIES", "MlxOptions", "open_mlx", "register_engines"]

CAPABILITIES = frozenset(Capability) - {Capability.TOOL_CALLS, Capability.EMBED, Capability.ADAPTERS}
"""Those of a model whose chat template has tools, and calls in the form of Hermes."""


def open_mlx(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not loaded yet. Raises `StartupError` where mlx is missing."""
    try:
        from fastchat_backend_mlx.loading import leave_thread, load
    except ImportError as error:
        raise StartupError(
            f"the backend mlx needs mlx and mlx-lm, and {error.name or 'one of them'} cannot be imported: "
            "pip install mlx-lm (on Linux also: pip install 'mlx[cpu]')"
        ) from error

    from fastchat_serve.stepping import SteppingEngine

    return SteppingEngine(setup, load, name="mlx", leave=leave_thread)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("mlx", open_mlx, contract=1, options=MlxOptions, capabilities=CAPABILITIES)

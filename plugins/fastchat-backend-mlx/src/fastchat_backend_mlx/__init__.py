"""The backend ``mlx``: models of mlx-lm, batched continuously.

Light on purpose: mlx is imported when an engine is opened.
"""

from fastchat_backend_mlx.capabilities import CAPABILITIES
from fastchat_backend_mlx.options import MlxOptions
from fastchat_serve import Engine, EngineSetup, RegisterEngine, StartupError, hookimpl

__all__ = ["CAPABILITIES", "MlxOptions", "open_mlx", "register_engines"]


def open_mlx(setup: EngineSetup) -> Engine:
    """An engine for `setup`, not loaded yet. Raises `StartupError` where mlx is missing."""
    try:
        from fastchat_backend_mlx.engine import MlxEngine
    except ImportError as error:
        raise StartupError(
            f"the backend mlx needs mlx and mlx-lm, and {error.name or 'one of them'} cannot be imported: "
            "pip install mlx-lm (on Linux also: pip install 'mlx[cpu]')"
        ) from error

    return MlxEngine(setup)


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    register("mlx", open_mlx, contract=1, options=MlxOptions, capabilities=CAPABILITIES)

"""The demonstration model, offered to fastchat-serve by the name ``demo``.

The weights lie beside this file and are loaded by whatever backend the config names; here is only the path to them.
How they were made is in the repository, under ``plugins/fastchat-model-demo/train``.
"""

from pathlib import Path
from typing import Final

from fastchat_serve import RegisterModel, hookimpl

__all__ = ["WEIGHTS", "register_models"]

WEIGHTS: Final = Path(__file__).parent / "weights"


@hookimpl
def register_models(register: RegisterModel) -> None:
    register("demo", WEIGHTS)

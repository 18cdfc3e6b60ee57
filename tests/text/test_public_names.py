from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import fastchat_serve.text


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    names = fastchat_serve.text.__all__

    assert all(hasattr(fastchat_serve.text, name) for name in names)
    assert set(names) == {name for name, value in vars(fastchat_serve.text).items() if not is_hidden(name, value)}


def is_hidden(name: str, value: object) -> bool:
    return name.startswith("_") or isinstance(value, ModuleType)


def test_importing_brings_neither_jinja_nor_tokenizers() -> None:
    """A server without models does not pay for what only models need."""
    check = "import sys, fastchat_serve.text; sys.exit('jinja2' in sys.modules or 'tokenizers' in sys.modules)"

    subprocess.run([sys.executable, "-c", check], check=True, timeout=30)

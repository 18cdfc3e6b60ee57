"""llama-cpp-python, imported when it is needed, and llama.cpp's own messages, sent to Python's logging.

llama.cpp writes to stderr unless it is told otherwise, and gives reasons for a failure nowhere but there.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from fastchat_serve import StartupError

__all__ = ["complaints", "llama"]

logger = logging.getLogger(__name__)

_WARNING, _ERROR = 3, 4
"""Of ``enum ggml_log_level``. What continues a message has a number of its own, above them."""

_collecting: Final = threading.local()
"""`lines`: where the errors of this thread's calls go meanwhile."""

_kept: list[Any] = []
"""The callback, which must live as long as the library, and the library."""

_loading: Final = threading.Lock()


def llama() -> Any:
    """The module with llama.cpp's functions. Raises `StartupError` where it is missing or does not load."""
    with _loading:
        if not _kept:
            _kept.extend(_load())
        return _kept[0]


@contextmanager
def complaints() -> Iterator[list[str]]:
    """The errors that llama.cpp reports from calls of this thread; they are not logged."""
    lines: list[str] = []
    _collecting.lines = lines
    try:
        yield lines
    finally:
        del _collecting.lines


def _load() -> tuple[Any, Any]:
    try:
        library = importlib.import_module("llama_cpp").llama_cpp
    except ModuleNotFoundError as error:
        raise StartupError(
            "llama.cpp is not installed: pip install llama-cpp-python (it compiles for minutes, and takes "
            "CMAKE_ARGS such as -DGGML_CUDA=on for GPUs)"
        ) from error
    except (OSError, RuntimeError) as error:  # the shared library cannot be loaded, or is of another machine
        raise StartupError(f"llama-cpp-python does not load: {error}") from error
    callback = library.llama_log_callback(_log)  # in place of the package's own, which prints
    library.llama_log_set(callback, ctypes.c_void_p(0))
    library.llama_backend_init()
    return library, callback


def _log(level: int, text: bytes, _user_data: object) -> None:
    """Called by llama.cpp on whatever thread."""
    message = text.decode(errors="replace").strip()
    if not message:
        return
    if level == _ERROR and (lines := getattr(_collecting, "lines", None)) is not None:
        lines.append(message)
    elif level == _ERROR:
        logger.error("llama.cpp: %s", message)
    else:
        logger.log(logging.INFO if level == _WARNING else logging.DEBUG, "llama.cpp: %s", message)

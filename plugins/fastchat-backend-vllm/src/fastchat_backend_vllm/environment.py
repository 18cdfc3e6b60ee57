"""The environment variables that vLLM is opened under.

vLLM reads much from the environment and writes to it while it starts. All of that is for the processes that it
starts, so this process's environment is put back once they run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastchat_backend_vllm.options import VllmOptions
from fastchat_backend_vllm.orphans import OPENED_BY

__all__ = ["vllm_environment"]

_ONE_AT_A_TIME = threading.Lock()

_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",  # nobody is called home
    "VLLM_CONFIGURE_LOGGING": "0",  # its records go where the server's go
}


@contextmanager
def vllm_environment(options: VllmOptions) -> Iterator[None]:
    """Import and open vLLM inside. One engine opens at a time; others wait here, so not on an event loop's thread."""
    with _ONE_AT_A_TIME:
        before = dict(os.environ)
        try:
            for name, value in _DEFAULTS.items():
                os.environ.setdefault(name, value)
            # A fork of a process with threads, as any server is, can hang on a lock that one of them held.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
            os.environ[OPENED_BY] = str(os.getpid())
            if options.cpu_threads_bind is not None:
                os.environ["VLLM_CPU_OMP_THREADS_BIND"] = options.cpu_threads_bind
            if options.kv_cache_memory is not None:
                os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would have the last word
            yield
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)

"""llama.cpp's objects with owners: a model, its adapters, a context, and a batch to decode.

The library checks little: a wrong index or a batch over its limits ends the process. So the callers of `Context` keep
to the sizes that they gave it, and ask only for outputs that they had marked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastchat_backend_llamacpp.library import complaints, llama
from fastchat_serve import StartupError

__all__ = ["Batch", "Context", "DecodeFailed", "Model"]

_NO_SLOT, _INVALID, _NO_MEMORY = 1, -1, -2
"""What ``llama_decode`` returns when the cache is full, for a batch against its rules, and when a device is full."""


class DecodeFailed(Exception):
    """llama.cpp did not compute a batch.

    Attributes:
        is_out_of_memory: A smaller batch, or fewer tokens in the cache, may do.
        is_fatal: The next batch would fail as well.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.is_out_of_memory = code in (_NO_SLOT, _NO_MEMORY)
        self.is_fatal = not self.is_out_of_memory and code != _INVALID


class Model:
    """Weights and vocabulary of a GGUF file, until `close`."""

    def __init__(self, file: Path, settings: Mapping[str, Any], progress: Callable[[float], bool]) -> None:
        """`settings` are fields of ``llama_model_params``. `progress` is told the fraction loaded; False gives up.

        Raises `StartupError`.
        """
        self._library = library = llama()
        params = _with(library.llama_model_default_params(), settings)
        params.progress_callback = callback = library.llama_progress_callback(lambda done, _: progress(done))
        with complaints() as errors:
            self.handle = library.llama_model_load_from_file(str(file).encode(), params)
        del callback  # the library had to be able to call it until here
        if not self.handle:
            raise StartupError(f"{file.name} cannot be loaded: {_reason(errors)}")
        self.vocabulary: Final = library.llama_model_get_vocab(self.handle)
        self.vocabulary_size: Final = int(library.llama_vocab_n_tokens(self.vocabulary))

    def close(self) -> None:
        """Free weights and adapters. Contexts must be closed before."""
        if self.handle:
            self._library.llama_model_free(self.handle)
            self.handle = None

    @property
    def trained_length(self) -> int:
        return int(self._library.llama_model_n_ctx_train(self.handle))

    @property
    def has_decoder(self) -> bool:
        return bool(self._library.llama_model_has_decoder(self.handle))

    @property
    def has_encoder(self) -> bool:
        return bool(self._library.llama_model_has_encoder(self.handle))

    @property
    def forgets(self) -> bool:
        """What was read cannot be taken back to an earlier token: recurrent states, or a sliding window."""
        library = self._library
        recurrent = library.llama_model_is_recurrent(self.handle) or library.llama_model_is_hybrid(self.handle)
        return bool(recurrent) or library.llama_model_n_swa(self.handle) > 0

    @property
    def file_type(self) -> str:
        """How most weights are kept, for instance ``Q4_K - Medium``."""
        name = self._library.llama_ftype_name(self._library.llama_model_ftype(self.handle))
        return (name or b"unknown").decode()

    def metadata(self, key: str) -> str | None:
        """A value of the file's header; lists are not to be had."""
        size = self._library.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._library.llama_model_meta_val_str(self.handle, key.encode(), buffer, size + 1)
        return buffer.value.decode(errors="replace")

    def load_adapter(self, file: Path) -> Any:
        """A LoRA adapter, freed with the model. Raises `StartupError`."""
        with complaints() as errors:
            adapter = self._library.llama_adapter_lora_init(self.handle, str(file).encode())
        if not adapter:
            raise StartupError(f"the adapter {file.name} cannot be loaded: {_reason(errors)}")
        return adapter


class Batch:
    """Tokens for one call of ``llama_decode``, in memory of ours. Each belongs to one sequence."""

    def __init__(self, capacity: int) -> None:
        library = llama()
        self.size = 0
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._counts = np.ones(capacity, np.int32)
        step = self._sequences.itemsize
        self._lists = self._sequences.ctypes.data + step * np.arange(capacity, dtype=np.uintp)
        fields = {name: kind for name, kind, *_ in library.llama_batch._fields_}
        self.struct = library.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._lists),
            ("logits", self._outputs),
        ):
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, fields[name]))

    def clear(self) -> None:
        self.size = 0

    def add(self, tokens: Sequence[int], *, sequence: int, position: int, outputs: bool | None) -> int:
        """Append the tokens of `sequence` from `position` on; returns the index of the first.

        `outputs`: of all of them, of none, or (None) of the last.
        """
        start, end = self.size, self.size + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._sequences[start:end] = sequence
        self._outputs[start:end] = bool(outputs)
        if outputs is None:
            self._outputs[end - 1] = True
        self.size = self.struct.n_tokens = end
        return start


class Context:
    """A cache and the buffers to compute with, until `close`."""

    def __init__(self, model: Model, settings: Mapping[str, Any]) -> None:
        """`settings` are fields of ``llama_context_params``. Raises `StartupError`."""
        self._library = library = llama()
        self._vocabulary_size = model.vocabulary_size
        self._width = int(library.llama_model_n_embd_out(model.handle))
        params = _with(library.llama_context_default_params(), settings)
        with complaints() as errors:
            self._handle = library.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise StartupError(f"there is no room for the context: {_reason(errors)}")
        self._memory = library.llama_get_memory(self._handle)
        """None for an encoder, which keeps nothing."""

    def close(self) -> None:
        if self._handle:
            self._library.llama_free(self._handle)
            self._handle = None

    @property
    def cells(self) -> int:
        """Tokens that the cache holds."""
        return int(self._library.llama_n_ctx(self._handle))

    @property
    def is_causal(self) -> bool:
        return bool(self._library.llama_get_causal_attn(self._handle))

    def decode(self, batch: Batch) -> None:
        """Compute `batch`, and wait for it. Raises `DecodeFailed`."""
        code = self._library.llama_decode(self._handle, batch.struct)
        if code != 0:
            raise DecodeFailed(code)
        self._library.llama_synchronize(self._handle)

    def use_adapter(self, adapter: Any | None) -> None:
        """For what is decoded from now on."""
        if adapter is None:
            self._library.llama_set_adapters_lora(self._handle, None, 0, None)
        else:
            adapters = (self._library.llama_adapter_lora_p_ctypes * 1)(adapter)
            self._library.llama_set_adapters_lora(self._handle, adapters, 1, (ctypes.c_float * 1)(1.0))

    def logits(self, index: int) -> NDArray[np.float32]:
        """Of the token at `index` in the last batch, which had an output; valid until the next."""
        pointer = self._library.llama_get_logits_ith(self._handle, index)
        return np.ctypeslib.as_array(pointer, (self._vocabulary_size,))

    def embedding(self, index: int) -> NDArray[np.float32]:
        """Likewise, the token's vector."""
        pointer = self._library.llama_get_embeddings_ith(self._handle, index)
        return np.ctypeslib.as_array(pointer, (self._width,))

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop the tokens of `sequence` from `start` on; False if that cannot be done. From 0 on it always can."""
        if self._memory is None:
            return True
        return bool(self._library.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def share(self, source: int, target: int, end: int) -> None:
        """Let `target`, which has none, have the first `end` tokens of `source` as well."""
        if self._memory is not None:
            self._library.llama_memory_seq_cp(self._memory, source, target, 0, end)


def _with(params: Any, settings: Mapping[str, Any]) -> Any:
    for name, value in settings.items():
        setattr(params, name, value)
    return params


def _reason(errors: list[str]) -> str:
    """What llama.cpp complained about first, without the name of its function."""
    return errors[0].rpartition(": ")[2] if errors else "llama.cpp does not say why"

"""Text out of tokens as they are drawn, never decoding anything twice.

For a ``tokenizers.Tokenizer`` the work is done by ``tokenizers.decoders.DecodeStream``, which decodes a few tokens at a
time and waits while the text ends in an incomplete character. What it leaves open is settled here: it waits without
limit where bytes never become a character or tokens have no text, and it fails for good where a decoder takes back text
it gave before. ``tokenizers`` comes with the engine, so it is imported when the first answer needs it. Where a library
says what bytes a token writes, no decoder is needed but UTF-8's.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, Protocol

__all__ = ["ByteDetokenizer", "Detokenizer", "TextOfTokens", "TokenBytes", "Tokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_MAX_HELD_TOKENS = 16
"""A character has at most four bytes, hence four tokens; more only wait if they are no character."""


class TextOfTokens(Protocol):
    """The text of one answer: complete characters only."""

    def feed(self, token_id: int) -> str:
        """The text that is complete now that `token_id` was drawn."""
        ...

    def flush(self) -> str:
        """What was held back: the answer has ended, so an incomplete character becomes U+FFFD."""
        ...


class Tokenizer(Protocol):
    """The part of ``tokenizers.Tokenizer`` that is called here; ``DecodeStream`` needs the real one."""

    @property
    def decoder(self) -> Any: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def id_to_token(self, id: int) -> str | None: ...
    def get_vocab_size(self, with_added_tokens: bool = True) -> int: ...


class Detokenizer:
    """The text of one answer.

    All that `feed` and `flush` return, joined, is what ``tokenizer.decode`` adds for the answer after the
    prompt. One exception: byte-fallback decoders spoil a whole run of bytes for one that is invalid,
    characters before it included; these have gone out already, and stay right.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        """`prompt_ids` decide, for instance, whether a space that starts the answer is text.

        A character that the prompt began and the answer completes belongs to the answer.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stream: Any
        self._before: list[int]
        """Tokens whose text is delivered, as context for those that follow."""
        self._held: list[int]
        """Tokens drawn since."""
        self._sent: str | None
        """The text of `_before` that is delivered; None: all of it."""
        self._repeated: str
        """What the stream will give once more: it takes text that ends in U+FFFD for not yet given."""
        context = self._context(prompt_ids)
        whole = self._whole_characters(context)
        self._restart(context[:whole])
        self._begin_within_character(context[whole:])

    def feed(self, token_id: int) -> str:
        """The text that is complete now that `token_id` was drawn."""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # the library raises no narrower type: text that it gave has changed
            return self._let_go()
        if text is None:
            return self._let_go() if len(self._held) > _MAX_HELD_TOKENS else ""
        if self._repeated:
            text = text.removeprefix(self._repeated)
            self._repeated = ""
        self._before, self._held = self._held, []
        self._sent = None
        return str(text)

    def flush(self) -> str:
        """What was held back: the answer has ended, so an incomplete character becomes U+FFFD."""
        text = self._undelivered()
        self._before, self._held, self._sent = self._before + self._held, [], None
        return text

    def _let_go(self) -> str:
        """The text held back, but for one U+FFFD at its end: that may be the beginning of a character."""
        text = self._undelivered().removesuffix(_REPLACEMENT)
        self._restart([*self._before, *filter(self._has_text, self._held)][-_MAX_HELD_TOKENS:])
        return text

    def _undelivered(self) -> str:
        sent = self._decode(self._before) if self._sent is None else self._sent
        text = self._decode(self._before + self._held)
        return text[len(sent) :] if text.startswith(sent) else self._decode(self._held)

    def _restart(self, before: list[int]) -> None:
        """Begin a stream after tokens whose text is delivered, but for a U+FFFD at its end."""
        from tokenizers.decoders import DecodeStream

        text = self._decode(before)
        self._stream = DecodeStream(ids=before, skip_special_tokens=self._skip_special_tokens)
        self._before, self._held = before, []
        self._sent = text.removesuffix(_REPLACEMENT)
        self._repeated = self._sent if text.endswith(_REPLACEMENT) else ""

    def _context(self, prompt_ids: Sequence[int]) -> list[int]:
        """The end of the prompt: enough to have text, and to begin with a whole character."""
        size = _MAX_HELD_TOKENS
        while True:
            tail = list(prompt_ids[-size:])
            text = self._decode(tail).rstrip(_REPLACEMENT)
            if size >= len(prompt_ids) or (text and not text.startswith(_REPLACEMENT)):
                return tail
            size *= 2

    def _begin_within_character(self, unfinished: list[int]) -> None:
        """Hold the prompt's last character, which is incomplete. What else these tokens say is the prompt's."""
        for token_id in unfinished:
            self.feed(token_id)
        delivered = self._undelivered().removesuffix(_REPLACEMENT)
        self._repeated += delivered
        self._sent = (self._sent or "") + delivered

    def _whole_characters(self, token_ids: list[int]) -> int:
        """How many of the tokens come before a character that is incomplete at their end."""
        for count in range(len(token_ids), max(len(token_ids) - 4, -1), -1):
            if not self._decode(token_ids[:count]).endswith(_REPLACEMENT):
                return count
        return len(token_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens) if ids else ""

    def _has_text(self, token_id: int) -> bool:
        return bool(self._decode([token_id]))


class ByteDetokenizer:
    """The text of one answer, by the bytes of its tokens."""

    def __init__(self, shown: Callable[[int], bytes], *, prompt_ids: Sequence[int] = ()) -> None:
        """`shown` gives what a token adds to an answer's text.

        A character that the prompt began and the answer completes belongs to the answer.
        """
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(b"".join(map(shown, prompt_ids[-_MAX_HELD_TOKENS:])))

    def feed(self, token_id: int) -> str:
        return self._decoder.decode(self._shown(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class TokenBytes:
    """The exact bytes of every token of a tokenizer: what log-probabilities show.

    One per loaded model; a token's bytes are worked out when they are first asked for.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer.decoder)
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for an id that is no token."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._bytes(token_id)
        return known

    def _bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            return _byte_level_bytes(token)
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return self._text_in_context(token_id).encode()

    def _text_in_context(self, token_id: int) -> str:
        """What the token adds to a text: on its own, a decoder may strip the space it begins with."""
        before = self._decode([self._anchor])
        return self._decode([self._anchor, token_id]).removeprefix(before)

    @cached_property
    def _anchor(self) -> int:
        """A token with visible text; 0 if there is none."""
        return next((id for id in range(self._tokenizer.get_vocab_size()) if self._decode([id]).strip().isalnum()), 0)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _decoder_kinds(decoder: Any) -> frozenset[str]:
    """The type names of a decoder and, if it is a sequence, of its parts."""
    if decoder is None:
        return frozenset()
    state = json.loads(decoder.__getstate__())
    return frozenset(part["type"] for part in (state, *state.get("decoders", ())))


def _byte_level_bytes(token: str) -> bytes:
    alphabet = _byte_level_alphabet()
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()


@cache
def _byte_level_alphabet() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: Latin-1's visible characters for themselves, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    spelling = {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    return MappingProxyType(spelling)

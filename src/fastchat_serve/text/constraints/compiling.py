"""Constraints compiled, and kept for the next answers that have the same."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Collection

from fastchat_serve.engine import ChatPrompt, Constraint, constraint_param
from fastchat_serve.errors import EngineError, InvalidRequest, StartupError
from fastchat_serve.text.constraints.calls import call_grammar
from fastchat_serve.text.constraints.grammars import grammar_of
from fastchat_serve.text.constraints.limits import ConstraintLimits
from fastchat_serve.text.constraints.matcher import Mask, Matcher
from fastchat_serve.text.constraints.tokens import library, token_trie
from fastchat_serve.text.constraints.trial import Trial
from fastchat_serve.text.vocabulary import Vocabulary

__all__ = ["Constraints"]

_Key = tuple[str, str]
_DEFAULT_LIMITS = ConstraintLimits()

_REFUSED = "The constraint cannot be served:"
_QUOTED = re.compile(r"\s{0,20}+(\d{1,9} \||\^)")
_PLACE = re.compile(r"^(at )?\d+\(\d+\): ")


class Constraints:
    """What answers of one model may be constrained to.

    `compile` may be called on any thread, and blocks: on first sight of a constraint for up to
    `ConstraintLimits.seconds`.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, end_ids: Collection[int], limits: ConstraintLimits = _DEFAULT_LIMITS
    ) -> None:
        """Reads the whole vocabulary, and blocks for that: half a second for 128 000 tokens.

        Args:
            vocabulary: As large as the model's output. What writes nothing may never be drawn.
            end_ids: The tokens that end an answer. They may be drawn exactly where the constraint is satisfied.

        Raises `StartupError` if llguidance is missing or cannot take the vocabulary.
        """
        ll = library()
        self._limits = limits
        self._end_ids = frozenset(id for id in end_ids if id < vocabulary.size)
        try:
            self._trie = token_trie(vocabulary, self._end_ids)
        except ValueError as error:
            raise StartupError(f"llguidance cannot take the model's tokenizer: {error}") from error
        self._words = -(-self._trie.vocab_size // 32)
        parser_limits = {
            "initial_lexer_fuel": limits.lexer_fuel,
            "step_lexer_fuel": limits.step_fuel,
            "step_max_items": limits.step_items,
            "max_lexer_states": limits.lexer_states,
            "max_grammar_size": limits.grammar_size,
            "verbose_errors": False,
        }
        self._parser_limits = ll.LLParserLimits(**parser_limits)
        self._trial = Trial(seconds=limits.seconds, memory_bytes=limits.memory_bytes, limits=parser_limits)
        self._kept: OrderedDict[_Key, Matcher | str] = OrderedDict()
        """By tenant and grammar, the latest used last; a text is what was wrong with it."""
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def masks(self, rows: int) -> Mask:
        """Room for the masks of `rows` answers: a bit per token, the lowest first, nothing allowed."""
        import numpy as np

        return np.zeros((rows, self._words), dtype=np.uint32)

    def compile(self, constraint: Constraint, *, tenant: str = "") -> Matcher:
        """The way of a new answer through `constraint`.

        What one `tenant` had compiled is not kept for another, who could tell by the time it takes. Raises
        `InvalidRequest`, which says what is wrong, for what is no schema, pattern or grammar, uses what is not
        supported, or passes the limits.
        """
        return self._matcher(grammar_of(constraint, self._limits), constraint_param(type(constraint)), tenant)

    def compile_call(self, prompt: ChatPrompt, *, tenant: str = "") -> Matcher:
        """The way of an answer that is to be the tool call which `ChatPrompt.tool_choice` demands, in Hermes' form.

        Raises `InvalidRequest` as `compile` does, and for a tool that is not there.
        """
        return self._matcher(call_grammar(prompt, self._limits), "tools", tenant)

    def _matcher(self, grammar: str, param: str, tenant: str) -> Matcher:
        key = (tenant, grammar)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is None:
            kept = self._made(grammar)
            self._keep(key, kept)
        if isinstance(kept, str):
            raise InvalidRequest(kept, param=param)
        return kept.copy()

    def _made(self, grammar: str) -> Matcher | str:
        """A matcher at its beginning, or what is wrong."""
        problem = self._trial.problem(grammar)
        if problem is None:
            return f"{_REFUSED} compiling it takes more than {self._limits.seconds:g} s, or too much memory."
        if problem:
            return f"{_REFUSED} {_explained(problem)}"
        inner = library().LLMatcher(self._trie, grammar, log_level=0, limits=self._parser_limits)
        matcher = Matcher(inner, self._end_ids, self._words)
        try:
            matcher.write_mask(self.masks(1)[0])
        except EngineError as error:
            if error.code == "constraint_too_complex":
                return f"{_REFUSED} it is too complex."
            return f"{_REFUSED} nothing that this model can write satisfies it."
        return matcher

    def _keep(self, key: _Key, made: Matcher | str) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept_bytes += len(key[1])
            self._kept[key] = made
            while len(self._kept) > self._limits.cached or self._kept_bytes > self._limits.cached_bytes:
                (_, grammar), _ = self._kept.popitem(last=False)
                self._kept_bytes -= len(grammar)


def _explained(error: str) -> str:
    """The library's message without the grammar that it quotes, which the client did not write."""
    lines = [line for line in error.splitlines() if not _QUOTED.match(line)]
    text = " ".join(" ".join(lines).split())
    if "NoExtension" in text:
        return "nothing satisfies it."
    text = _PLACE.sub("", text).removeprefix("failed to compile JSON schema: ")
    text = text.partition(" Enable 'coerce_one_of'")[0]
    return text if len(text) <= 300 else text[:300] + "…"

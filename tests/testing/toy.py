"""An engine with a model of its own, small enough to read: it has every capability, and keeps the whole contract.

Its tokens are bytes, so that every long character is cut, and it draws them from a handful of candidates that depend on
what was said last. `planted/` takes it apart.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import math
from collections.abc import AsyncGenerator
from typing import ClassVar, Self

from fastchat_serve import (
    Capability,
    ChatPrompt,
    Chunk,
    ContextOverflow,
    Embeddings,
    EmbedRequest,
    EngineError,
    EngineInfo,
    EngineLoad,
    GenerateRequest,
    Handle,
    InvalidRequest,
    PromptEcho,
    ServeError,
    Sink,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    ToolCall,
    Usage,
    pull,
)
from fastchat_serve.engines.echo_tokens import unit_vector
from fastchat_serve.text import StopStrings
from tests.testing.toy_constraints import text_within

__all__ = ["CONTEXT", "EOS", "ToyEngine", "ToyStream"]

CONTEXT = 4096
EOS = 256
"""The one token that is no byte."""

_ALPHABET = [character.encode() for character in "etaoin shrdlu,.éü東京🍮👩"]
_CHOICES = 5
_ENDS = 0.02
"""How often the end is the most likely token."""
_FAR_OFF = -60.0
"""The logit of whatever is no candidate."""

Logits = dict[int, float]


class ToyEngine:
    """See the module; a `PushEngine`."""

    Stream: ClassVar[type[ToyStream]]
    info = EngineInfo(
        context_length=CONTEXT,
        capabilities=frozenset(Capability),
        fingerprint="toy",
        adapters=("polite",),
    )

    def __init__(self) -> None:
        self.fatal_error: BaseException | None = None
        self.streams: set[ToyStream] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.end_all("The engine was closed.")

    def end_all(self, why: str) -> None:
        for stream in tuple(self.streams):
            stream.finish(EngineError(why))

    def die(self) -> None:
        self.fatal_error = RuntimeError("told to die")
        self.end_all("The engine died.")

    def start(self, request: GenerateRequest, sink: Sink) -> Handle:
        stream = self.Stream(self, request, sink)
        self.streams.add(stream)
        asyncio.get_running_loop().call_soon(stream.begin)
        return stream

    def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        return pull(self.start, request)

    def current_load(self) -> EngineLoad:
        return EngineLoad(running=len(self.streams))

    # ------------------------------------------------------------------------------------ the tokenizer

    def ids(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> tuple[int, ...]:
        """Raises `InvalidRequest`."""
        if isinstance(prompt, TokenPrompt):
            check_ids(prompt.token_ids)
            return prompt.token_ids
        text = prompt.text if isinstance(prompt, TextPrompt) else self.rendered(prompt)
        try:
            return tuple(text.encode())
        except UnicodeEncodeError:
            raise InvalidRequest("The text holds half of a character.") from None

    def rendered(self, prompt: ChatPrompt) -> str:
        if not prompt.messages:
            raise InvalidRequest("There is no message.", param="messages")
        if prompt.template_options:
            raise InvalidRequest("The template has no options.", param="chat_template_kwargs")
        tools = [f"<tool {tool.name}: {tool.description}>" for tool in prompt.tools]
        turns = [
            f"{message.role}: {message.text}"
            + "".join(f"<{call.name} {call.arguments}>" for call in message.tool_calls)
            for message in prompt.messages
        ]
        return "\n".join([*tools, *turns, *([] if prompt.continue_final else ["assistant: "])])

    async def tokenize(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        return self.ids(prompt)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        check_ids(token_ids)
        return bytes(token_id for token_id in token_ids if token_id != EOS).decode(errors="replace")

    async def render(self, prompt: ChatPrompt) -> str:
        return self.rendered(prompt)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        inputs = [self.ids(prompt) for prompt in request.inputs]
        for ids in inputs:
            if len(ids) > CONTEXT and not request.truncate:
                raise ContextOverflow(limit=CONTEXT, prompt_tokens=len(ids), param="input")
        rows = [unit_vector(bytes(ids[:CONTEXT]), 32) for ids in inputs]
        return Embeddings(b"".join(rows), 32, sum(min(len(ids), CONTEXT) for ids in inputs))


class ToyStream:
    """One answer; steps once per turn of the loop, a token each time."""

    def __init__(self, engine: ToyEngine, request: GenerateRequest, sink: Sink) -> None:
        self.engine, self.request, self.sink = engine, request, sink
        self.aborted = self.ended = False

    # ------------------------------------------------------------------------------------- its life

    def begin(self) -> None:
        if self.aborted or self.ended:
            self.finish(None)
            return
        try:
            self.prepare()
        except ServeError as error:
            self.finish(error)
        else:
            self.again()

    def again(self) -> None:
        asyncio.get_running_loop().call_soon(self.step)

    def prepare(self) -> None:
        """Raises `InvalidRequest`."""
        request, sampling = self.request, self.request.sampling
        self.prompt_ids = self.engine.ids(request.prompt)
        room = CONTEXT - len(self.prompt_ids)
        self.limit = room if sampling.max_tokens is None else sampling.max_tokens
        if room < max(self.limit, 1):
            raise ContextOverflow(limit=CONTEXT, prompt_tokens=len(self.prompt_ids), max_tokens=self.limit)
        check_ids(sampling.logit_bias or ())
        check_ids(request.resume_token_ids)
        if request.adapter is not None and request.adapter not in self.engine.info.adapters:
            raise InvalidRequest("There is no such adapter.", param="model")
        seed = sampling.seed if sampling.temperature else 0
        self.forced = None if request.constraint is None else text_within(request.constraint, seed).encode()
        self.calls = self.called()
        self.stops = StopStrings(sampling.stop)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.drawn: list[int] = []
        self.echo = self.prompt_echo() if request.echo or request.prompt_logprobs is not None else None
        for token_id in request.resume_token_ids:
            self.drawn.append(token_id)
            self.text_of(token_id)
        if len(self.drawn) >= self.limit:  # the earlier run came to the end, so it delivered what was held back, too
            self.decoder.reset()
            self.stops.flush()

    def step(self) -> None:
        if self.aborted or self.ended:
            return
        if self.calls:
            self.close("stop", None, (EOS,))
            return
        if len(self.drawn) >= self.limit:
            self.close("length", None, ())
            return
        token_id, logprob = self.draw()
        self.drawn.append(token_id)
        logprobs = None if logprob is None else (logprob,)
        if token_id == EOS or token_id in self.request.sampling.stop_token_ids:
            self.close("stop", token_id if token_id != EOS else None, (token_id,), logprobs)
            return
        text = self.text_of(token_id)
        if self.stops.matched is not None:
            self.send(self.last_chunk(text, "stop", self.stops.matched, (token_id,), logprobs))
            self.finish(None)
        elif len(self.drawn) >= self.limit:
            self.close("length", None, (token_id,), logprobs, text)
        else:
            self.send(Chunk(text=text, token_ids=(token_id,), logprobs=logprobs))
            self.again()

    def close(
        self,
        reason: str,
        match: str | int | None,
        ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] | None = None,
        text: str = "",
    ) -> None:
        """Send what was held back, and end."""
        text += self.stops.feed(self.decoder.decode(b"", final=True)) + self.stops.flush()
        if self.stops.matched is not None:
            reason, match = "stop", self.stops.matched
        self.send(self.last_chunk(text, reason, match, ids, logprobs))
        self.finish(None)

    def last_chunk(
        self,
        text: str,
        reason: str,
        match: str | int | None,
        ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] | None,
    ) -> Chunk:
        completion = len(self.drawn) + len(self.calls)
        usage = Usage(len(self.prompt_ids), completion)
        return Chunk(
            text=text,
            token_ids=ids,
            logprobs=logprobs,
            tool_calls=self.calls,
            finish_reason="stop" if reason == "stop" else "length",
            stop_match=match,
            usage=usage,
        )

    def send(self, chunk: Chunk) -> None:
        if self.echo is not None:
            fields = {name: getattr(chunk, name) for name in chunk.__struct_fields__}
            chunk, self.echo = Chunk(**fields | {"prompt": self.echo}), None
        self.sink.push(chunk)

    def abort(self) -> None:
        if not (self.aborted or self.ended):
            self.aborted = True
            asyncio.get_running_loop().call_soon(self.finish, None)

    def finish(self, error: Exception | None) -> None:
        if not self.ended:
            self.ended = True
            self.engine.streams.discard(self)
            self.sink.end(None if self.aborted else error)

    # ------------------------------------------------------------------------------------ its tokens

    def text_of(self, token_id: int) -> str:
        """What may be sent of the text now that `token_id` was drawn."""
        return self.stops.feed(self.decoder.decode(bytes([token_id] if token_id != EOS else [])))

    def called(self) -> tuple[ToolCall, ...]:
        """The call that the model makes: if it has to, or if somebody talks of the weather."""
        prompt = self.request.prompt
        if not isinstance(prompt, ChatPrompt) or not prompt.tools:
            return ()
        if prompt.tool_choice is None and "weather" not in prompt.messages[-1].text:
            return ()
        return (ToolCall("call_0", prompt.tool_choice or prompt.tools[0].name, "{}"),)

    def logits(self, before: tuple[int, ...]) -> Logits:
        """The candidates after the tokens `before`."""
        if self.forced is not None:
            position = len(before) - len(self.prompt_ids)
            return {self.forced[position] if position < len(self.forced) else EOS: 0.0}
        return candidates(before, f"{self.request.adapter} {len(self.prompt_ids)}")

    def draw(self) -> tuple[int, TokenLogprob | None]:
        """The next token; a function of the tokens before, the seed and the position alone."""
        sampling, position = self.request.sampling, len(self.drawn)
        raw = self.logits((*self.prompt_ids, *self.drawn))
        logits = self.penalised(raw)
        token_id = greedy(logits)
        if sampling.temperature:
            token_id = self.pick(self.filtered(logits), self.uniform(position))
        alternatives = self.request.logprobs
        return token_id, None if alternatives is None else logprob_of(raw, token_id, alternatives)

    def uniform(self, position: int) -> float:
        return fraction(f"{self.request.sampling.seed} {position}")

    def penalised(self, raw: Logits) -> Logits:
        sampling, logits = self.request.sampling, dict(raw)
        for token_id, bias in (sampling.logit_bias or {}).items():
            logits[token_id] = logits.get(token_id, _FAR_OFF) + bias
        for token_id, logit in logits.items():
            count = self.drawn.count(token_id)
            logits[token_id] = logit - sampling.presence_penalty * (count > 0) - sampling.frequency_penalty * count
            if sampling.repetition_penalty != 1 and (count or token_id in self.prompt_ids):
                factor = sampling.repetition_penalty
                logits[token_id] = logits[token_id] / factor if logits[token_id] > 0 else logits[token_id] * factor
        banned = {EOS} if sampling.ignore_eos and self.forced is None else set()
        if len(self.drawn) < sampling.min_tokens:
            banned |= {EOS, *sampling.stop_token_ids}
        allowed = {token_id: logit for token_id, logit in logits.items() if token_id not in banned}
        return allowed or {ord("."): 0.0}

    def filtered(self, logits: Logits) -> list[tuple[int, float]]:
        """Tokens and their probabilities: temperature, top_k, top_p, min_p."""
        sampling = self.request.sampling
        warm = {token_id: logit / sampling.temperature for token_id, logit in logits.items()}
        total = log_sum(warm)
        ranked = sorted(((math.exp(logit - total), token_id) for token_id, logit in warm.items()), key=lambda p: -p[0])
        if sampling.top_k:
            ranked = ranked[: sampling.top_k]
        kept, mass = [], 0.0
        for probability, token_id in ranked:
            if mass >= sampling.top_p or probability < sampling.min_p * ranked[0][0]:
                break
            kept.append((token_id, probability))
            mass += probability
        return sorted(kept)

    def pick(self, tokens: list[tuple[int, float]], uniform: float) -> int:
        mark = uniform * sum(probability for _, probability in tokens)
        for token_id, probability in tokens:
            mark -= probability
            if mark <= 0:
                return token_id
        return tokens[-1][0]

    def prompt_echo(self) -> PromptEcho:
        ids, alternatives = self.prompt_ids, self.request.prompt_logprobs
        logprobs = None
        if alternatives is not None:
            first = TokenLogprob(ids[0], shown(ids[0]), data(ids[0]), None)
            others = (logprob_of(candidates(ids[:i], ""), ids[i], alternatives) for i in range(1, len(ids)))
            logprobs = (first, *others)
        return PromptEcho(bytes(ids).decode(errors="replace"), ids, logprobs)


ToyEngine.Stream = ToyStream


def check_ids(ids: object) -> None:
    assert isinstance(ids, tuple | dict)
    for token_id in ids:
        if not 0 <= token_id <= EOS:
            raise InvalidRequest(f"There is no token {token_id}.")


def candidates(before: tuple[int, ...], voice: str) -> Logits:
    """What may come after `before`: the rest of a character that was begun, otherwise one of a few."""
    tail = bytes(token_id for token_id in before[-8:] if token_id < EOS)
    for size in (3, 2, 1):
        begun = tail[-size:]
        if rest := {character[size] for character in _ALPHABET if len(character) > size and character[:size] == begun}:
            return {byte: -0.3 * rank for rank, byte in enumerate(sorted(rest))}
    logits: Logits = {EOS: 4.0 if fraction(f"{voice} {tail[-3:].hex()}") < _ENDS else -4.0}
    for rank in range(_CHOICES):
        character = _ALPHABET[int(len(_ALPHABET) * fraction(f"{voice} {tail[-5:].hex()} {rank}"))]
        logits.setdefault(character[0], 2.0 - 0.7 * rank)
    return logits


def fraction(text: str) -> float:
    """From 0 to 1, as if drawn by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def greedy(logits: Logits) -> int:
    best = max(logits.values())
    return min(token_id for token_id, logit in logits.items() if logit == best)


def log_sum(logits: Logits) -> float:
    best = max(logits.values())
    return best + math.log(sum(math.exp(logit - best) for logit in logits.values()))


def logprob_of(logits: Logits, token_id: int, alternatives: int) -> TokenLogprob:
    total = log_sum(logits)
    ranked = sorted(logits, key=lambda other: (-logits[other], other))[:alternatives]
    top = tuple(TokenLogprob(other, shown(other), data(other), min(logits[other] - total, 0.0)) for other in ranked)
    own = min(logits.get(token_id, _FAR_OFF) - total, 0.0)
    return TokenLogprob(token_id, shown(token_id), data(token_id), own, top)


def data(token_id: int) -> bytes:
    return b"" if token_id == EOS else bytes([token_id])


def shown(token_id: int) -> str:
    return data(token_id).decode(errors="replace")

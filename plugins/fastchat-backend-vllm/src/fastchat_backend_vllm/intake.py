"""From a request to one that vLLM's processes take, checked by vLLM's own validators. Runs on threads of its own.

vLLM would make these checks on the event loop, where compiling a client's schema would hold up everyone.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from fastchat_backend_vllm.answer import Answer
from fastchat_backend_vllm.constraints import structured_outputs
from fastchat_backend_vllm.sampling import cache_salt, is_replayed, sampling_arguments
from fastchat_serve import (
    Choice,
    Constraint,
    GenerateRequest,
    Grammar,
    InvalidRequest,
    Regex,
    Unsupported,
    constraint_param,
)
from fastchat_serve.text import AnswerText, Prompts, Vocabulary, check_text

__all__ = ["Intake", "Job"]

_PLACE_IN_SOURCE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
"""What xgrammar puts before its messages."""


class Job(NamedTuple):
    """What is to be done for a request."""

    answer: Answer
    core: Any
    """vLLM's ``EngineCoreRequest``; None if nothing has to be computed."""
    only_scores: bool
    """The prompt's log-probabilities are wanted and no answer, of which vLLM draws at least one token."""


class Intake:
    """Prepares requests for one engine."""

    def __init__(
        self,
        processor: Any,
        tasks: tuple[str, ...],
        prompts: Prompts,
        vocabulary: Vocabulary,
        *,
        end_ids: frozenset[int],
        adapters: dict[str, LoRARequest],
    ) -> None:
        """`processor` is vLLM's ``InputProcessor``, `tasks` what its engine supports; `end_ids` end every answer."""
        self._processor, self._tasks = processor, tasks
        self._prompts, self._vocabulary = prompts, vocabulary
        self._end_ids, self._adapters = end_ids, adapters

    def job(self, request: GenerateRequest) -> Job:
        """Raises `InvalidRequest`."""
        if request.adapter is not None and request.adapter not in self._adapters:
            raise Unsupported("This engine has no such adapter.", param="model")
        params, prepared = request.sampling, self._prompts.prepare(request)
        prompt, limit = prepared.token_ids, prepared.limit
        answer = Answer(
            request,
            self._vocabulary,
            prompt=prompt,
            text=AnswerText(self._vocabulary.detokenizer(prompt), stops=params.stop),
            limit=limit,
            end_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._end_ids),
            echo=prepared.echo,
            replayed=is_replayed(request),
        )
        scores = request.prompt_logprobs is not None and not request.resume_token_ids
        only_scores = scores and answer.finish_reason is not None
        arguments = sampling_arguments(request, limit=limit)
        if answer.finish_reason is not None and not only_scores:
            return Job(answer, None, only_scores)
        return Job(answer, self._core(request, prompt, arguments), only_scores)

    def _core(self, request: GenerateRequest, prompt: tuple[int, ...], arguments: dict[str, Any]) -> Any:
        try:
            params = SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA, skip_clone=True)
            if request.constraint is not None:
                params.structured_outputs = _structured_outputs(request.constraint)
            delivered = () if is_replayed(request) else request.resume_token_ids
            return self._processor.process_inputs(
                request.id,
                tokens_input([*prompt, *delivered], cache_salt=cache_salt(request.tenant, request.adapter)),
                params,
                self._tasks,
                lora_request=None if request.adapter is None else self._adapters[request.adapter],
                priority=request.priority,
            )
        except VLLMClientError as error:
            raise _invalid(error, request) from error
        except ValueError as error:  # some of its checks raise no narrower type
            raise InvalidRequest("vLLM does not take these parameters together.") from error


def _structured_outputs(constraint: Constraint) -> StructuredOutputsParams:
    texts = {Regex: "pattern", Grammar: "ebnf"}
    if (field := texts.get(type(constraint))) is not None:
        check_text(getattr(constraint, field), constraint_param(type(constraint)))
    if isinstance(constraint, Choice):
        for option in constraint.options:
            check_text(option, constraint_param(Choice))
    return StructuredOutputsParams(**structured_outputs(constraint))


def _invalid(error: VLLMClientError, request: GenerateRequest) -> InvalidRequest:
    """vLLM's reason, which repeats what the client sent and nothing of ours."""
    reason = _PLACE_IN_SOURCE.sub("", str(error).split("\n", 1)[0])[:300]
    if request.constraint is not None and getattr(error, "parameter", None) is None:
        param = constraint_param(type(request.constraint))
        return InvalidRequest(f"The constraint is not one that this engine can keep to. {reason}", param=param)
    return InvalidRequest(reason, param=getattr(error, "parameter", None))

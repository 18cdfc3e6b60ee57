"""Where SGLang's scheduler falls short of the contract, and what mends it. Runs in SGLang's scheduler processes.

- Log-probabilities are those of the model: SGLang reports them after penalties, bias and constraint.
- `repetition_penalty` counts the prompt, too.
- An answer that is resumed, or that SGLang put back for want of memory, goes on with its penalties, minimum length and
  constraint where it was: SGLang begins them anew.

`run_scheduler` is what SGLang starts instead of its own function; its `Engine` has an attribute for that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch

from fastchat_backend_sglang.failure import keep_failures
from fastchat_backend_sglang.sampling import RESUMED

__all__ = ["run_scheduler"]


def run_scheduler(server_args: Any, port_args: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler, mended."""
    from sglang.srt.managers.load_snapshot import shm_path_for
    from sglang.srt.managers.scheduler import run_scheduler_process

    keep_failures()
    _report_raw_logprobs()
    _remember_tokens()
    _resume_constraints()
    try:
        run_scheduler_process(server_args, port_args, *args, **kwargs)
    finally:
        with contextlib.suppress(OSError):  # one that has served has lost this name already
            os.unlink(shm_path_for(port_args.instance_id))


def _report_raw_logprobs() -> None:
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    apply, draw = SamplingBatchInfo.apply_logits_bias, Sampler.forward

    def keep_and_apply(self: Any, logits: torch.Tensor) -> None:
        self.fastchat_raw = logits.clone()
        apply(self, logits)

    def draw_and_report(
        self: Any, logits_output: Any, sampling_info: Any, return_logprob: bool, *args: Any, **kwargs: Any
    ) -> Any:
        raw = sampling_info.fastchat_raw
        del sampling_info.fastchat_raw  # it is as large as a step's logits, and the batch lives on
        if return_logprob:
            kwargs["logprob_logits"] = raw
        return draw(self, logits_output, sampling_info, return_logprob, *args, **kwargs)

    SamplingBatchInfo.apply_logits_bias = keep_and_apply
    Sampler.forward = draw_and_report


def _remember_tokens() -> None:
    """Let penalties begin with the tokens that a request already has."""
    from sglang.srt.sampling.penaltylib.frequency_penalty import BatchedFrequencyPenalizer
    from sglang.srt.sampling.penaltylib.min_new_tokens import BatchedMinNewTokensPenalizer
    from sglang.srt.sampling.penaltylib.presence_penalty import BatchedPresencePenalizer
    from sglang.srt.sampling.penaltylib.repetition_penalty import BatchedRepetitionPenalizer

    def frequency(penalizer: Any, row: int, request: Any) -> None:
        if penalty := request.sampling_params.frequency_penalty:
            total = penalizer.cumulated_frequency_penalties[row]
            total += penalty * torch.bincount(_ids(_answer(request), total), minlength=total.numel())

    def presence(penalizer: Any, row: int, request: Any) -> None:
        if penalty := request.sampling_params.presence_penalty:
            total = penalizer.cumulated_presence_penalties[row]
            total[_ids(_answer(request), total)] = penalty

    def repetition(penalizer: Any, row: int, request: Any) -> None:
        if (penalty := request.sampling_params.repetition_penalty) != 1:
            total = penalizer.cumulated_repetition_penalties[row]
            total[_ids([*request.origin_input_ids, *request.output_ids], total)] = penalty

    def length(penalizer: Any, row: int, request: Any) -> None:
        penalizer.len_output_tokens[row] = len(request.output_ids)

    _extend(BatchedFrequencyPenalizer, frequency)
    _extend(BatchedPresencePenalizer, presence)
    _extend(BatchedRepetitionPenalizer, repetition)
    _extend(BatchedMinNewTokensPenalizer, length)


def _extend(penalizer_class: Any, remember: Callable[[Any, int, Any], None]) -> None:
    """Call `remember` for each row that a penalizer begins with."""
    prepare = penalizer_class._prepare

    def prepare_and_remember(self: Any) -> None:
        prepare(self)
        for row, request in enumerate(self.orchestrator.reqs()):
            remember(self, row, request)

    penalizer_class._prepare = prepare_and_remember


def _answer(request: Any) -> list[int]:
    return [*_resumed(request), *request.output_ids]


def _resumed(request: Any) -> list[int]:
    count = (request.sampling_params.custom_params or {}).get(RESUMED, 0)
    return list(request.origin_input_ids[-count:]) if count else []


def _ids(tokens: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int64, device=like.device)


def _resume_constraints() -> None:
    from sglang.srt.constrained.base_grammar_backend import InvalidGrammarObject
    from sglang.srt.constrained.grammar_manager import GrammarManager

    configure = GrammarManager._apply_request_reasoning_config  # called once a request's grammar is there

    def configure_and_advance(self: Any, request: Any) -> None:
        configure(self, request)
        if isinstance(request.grammar, InvalidGrammarObject):
            return
        try:
            for token in _resumed(request):
                request.grammar.accept_token(token)
        except ValueError:
            request.set_finish_with_abort("What is to be resumed does not obey the constraint.")

    GrammarManager._apply_request_reasoning_config = configure_and_advance

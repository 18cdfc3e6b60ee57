"""Log-probabilities of a prompt's own tokens, computed block by block while it is read."""

from __future__ import annotations

import torch

from fastchat_backend_hf.runners import Runner
from fastchat_backend_hf.sampling import raw_logprobs
from fastchat_backend_hf.sequences import TokenSequence
from fastchat_serve.text import Vocabulary

__all__ = ["end_scoring", "score_block"]


def score_block(runner: Runner, vocabulary: Vocabulary, sequence: TokenSequence, most: int) -> None:
    """Read at most so many tokens more, and note the log-probabilities of those that follow each of them."""
    assert sequence.reading is not None
    before = sequence.reading.done
    try:
        logits = runner.score(sequence.reading, most)
        predicted = sequence.prompt[before + 1 : before + 1 + len(logits)]
        tokens = torch.tensor(predicted, device=logits.device)
        counts = [sequence.request.prompt_logprobs or 0] * len(predicted)
        found = raw_logprobs(logits.float().log_softmax(-1), tokens, counts)
        sequence.prompt_logprobs += [entry.of(token, vocabulary) for token, entry in zip(predicted, found, strict=True)]
    except Exception:
        sequence.reading.done = before  # to be read again: nothing of it is noted
        raise


def end_scoring(vocabulary: Vocabulary, sequence: TokenSequence) -> None:
    """The prompt is read: what was noted goes out with the first chunk."""
    sequence.end_scoring([vocabulary.logprob(sequence.prompt[0], None), *sequence.prompt_logprobs])

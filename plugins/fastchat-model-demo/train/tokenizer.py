"""The tokenizer: byte-level BPE of its own, cut so that a name is the same tokens wherever it stands.

Only lower-case words keep the space before them. Capitalised words, digits, Chinese characters and emoji never
join what precedes them, so copying "Zorvan" from a sentence into JSON is copying the very same tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .corpus import document
from .draw import Draw

WEIGHTS: Final = Path(__file__).parents[1] / "src" / "fastchat_model_demo" / "weights"
VOCABULARY: Final = 2048
CONTEXT: Final = 2048
SAMPLE_DOCUMENTS: Final = 30_000
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
MARKERS: Final = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
CUT: Final = r" ?\p{Ll}+|\p{Lu}\p{Ll}+|\p{Lu}+|\p{N}|[!-/:-@\[-`{-~]+|\s|."


def texts(seed: int) -> Iterator[str]:
    draw = Draw(Random(seed))
    for _ in range(SAMPLE_DOCUMENTS):
        yield "".join(piece.text for piece in document(draw))


def build(seed: int) -> PreTrainedTokenizerFast:
    """Train it on the corpus itself and give it the chat template."""
    bpe = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(CUT), "isolated")
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pieces, alphabet])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        show_progress=False,
    )
    bpe.train_from_iterator(texts(seed), trainer)
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])  # text, not control
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[3],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=(WEIGHTS / "chat_template.jinja").read_text(encoding="utf-8"),
    )

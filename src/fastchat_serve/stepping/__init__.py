"""What engines share whose model steps in a thread of its own: all but the model.

A backend's loader returns a `SteppedModel`, and `SteppingEngine` makes a push engine of it. `engine.py` is what the
event loop sees, `stepper.py` the thread; `preparation.py` makes an `Answer` of a request, on other threads.
"""

from fastchat_serve.stepping.answer import Answer
from fastchat_serve.stepping.capabilities import decoder_capabilities
from fastchat_serve.stepping.embedding import EmbedJob
from fastchat_serve.stepping.engine import SteppingEngine
from fastchat_serve.stepping.failures import as_serve_error
from fastchat_serve.stepping.model import Batch, Embedder, News, SteppedModel, Stream
from fastchat_serve.stepping.preparation import Preparation

__all__ = [
    "Answer",
    "Batch",
    "EmbedJob",
    "Embedder",
    "News",
    "Preparation",
    "SteppedModel",
    "SteppingEngine",
    "Stream",
    "as_serve_error",
    "decoder_capabilities",
]

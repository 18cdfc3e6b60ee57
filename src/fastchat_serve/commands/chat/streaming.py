"""An answer, read by the thread that owns the terminal while an event loop in another thread makes it.

The loop has a thread of its own (anyio's blocking portal) because a prompt blocks: in the main thread, where
readline works and where Python handles signals. So engines go on while somebody types, and Ctrl-C means what
it should at either place: at the prompt it is readline's, during an answer it cancels the answer's task.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from queue import SimpleQueue

from anyio.from_thread import BlockingPortal
from msgspec import Struct

from fastchat_serve.commands.chat.interrupts import on_interrupt
from fastchat_serve.engine import Chunk, FinishReason

__all__ = ["Reply", "read_answer"]


class Reply(Struct, frozen=True):
    """What came of an answer. `finish_reason` None: Ctrl-C stopped it."""

    text: str
    finish_reason: FinishReason | None


class _Interrupt:
    """Put among the chunks by Ctrl-C."""


def read_answer(portal: BlockingPortal, chunks: AsyncGenerator[Chunk, None], show: Callable[[str], object]) -> Reply:
    """Read `chunks` to their end, or until Ctrl-C, and `show` each text as it comes.

    Runs in the main thread. When it returns, the generator is closed and whatever it held is free.

    Raises:
        FastchatServeError: The partner failed.
        KeyboardInterrupt: Ctrl-C came again while the answer was being stopped.
    """
    arrived: SimpleQueue[Chunk | _Interrupt | None] = SimpleQueue()

    async def deliver() -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    arrived.put(chunk)
        finally:
            arrived.put(None)

    texts: list[str] = []
    finish_reason: FinishReason | None = None
    stopping = False
    with on_interrupt(lambda *_: arrived.put(_Interrupt())):
        task = portal.start_task_soon(deliver)
        while (item := arrived.get()) is not None:
            if isinstance(item, _Interrupt):
                if stopping:
                    raise KeyboardInterrupt
                stopping = True
                task.cancel()
            elif not stopping:
                finish_reason = item.finish_reason
                texts.append(item.text)
                show(item.text)
    if not stopping:
        task.result()
    return Reply("".join(texts), finish_reason)

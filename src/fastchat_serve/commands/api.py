"""``fastchat-serve api``: what FastChat's flags of that name mean, printed and run."""

from __future__ import annotations

import argparse
import os

from fastchat_serve.commands.fastchat_flags import tables
from fastchat_serve.commands.fastchat_flags.start import start

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    return start(tables.api(args, os.environ), args.overrides)

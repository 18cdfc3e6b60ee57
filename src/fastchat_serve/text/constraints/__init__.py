"""Constraints as token masks, for engines whose sampler we write.

`grammars.py` turns any `Constraint` of the contract into one form, `ebnf.py` reads grammars, `trial.py` finds out what
compiling would cost, `compiling.py` compiles and keeps, and `matcher.py` follows one answer. The work is done by
`llguidance <https://github.com/guidance-ai/llguidance>`_, which comes with the engine and is imported when its first
model is loaded.
"""

from fastchat_serve.text.constraints.compiling import Constraints
from fastchat_serve.text.constraints.limits import ConstraintLimits
from fastchat_serve.text.constraints.matcher import Matcher

__all__ = ["ConstraintLimits", "Constraints", "Matcher"]

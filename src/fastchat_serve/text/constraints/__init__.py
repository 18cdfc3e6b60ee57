"""Constraints as token masks, for engines whose sampler we write.

`grammars.py` and `calls.py` turn any `Constraint` of the contract, and a tool call that must come, into one form;
`schemas.py` and `ebnf.py` read what clients write. `compiling.py` compiles and keeps, after a `trial.py` of what that
costs, and `matcher.py` follows one answer. The work is done by
`llguidance <https://github.com/guidance-ai/llguidance>`_, which comes with the engine and is imported when its first
model is loaded.
"""

from fastchat_serve.text.constraints.compiling import Constraints
from fastchat_serve.text.constraints.limits import ConstraintLimits
from fastchat_serve.text.constraints.matcher import Matcher

__all__ = ["ConstraintLimits", "Constraints", "Matcher"]

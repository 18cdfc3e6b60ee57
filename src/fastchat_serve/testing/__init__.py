"""The conformance kit: proves that an engine keeps the contract of `fastchat_serve.engine`.

``pytest --pyargs fastchat_serve.testing --backend NAME`` opens the engine as a server does and runs one module of
checks per topic. Each check's docstring states one guarantee, and together they are the contract as a specification.
What an engine declares decides which of them run; for what it does not declare, `test_refusals.py` proves that no
such request reaches it.

The checks are `test_*.py`. The rest serves them: `subject.py` has the engine under test, `answers.py` what it
said, `plugin.py` ties both to pytest, `report.py` tells how it went. The manual is ``docs/conformance.md``.
`asking.py` is for a backend's own tests.
"""

"""S6, S7: templates, options of templates and names of code that a request brings along."""

from __future__ import annotations

from tests.hostile.case import Case, chat, complete

__all__ = ["CASES"]

LOOP = "{% for i in range(10000000) %}x{% endfor %}"
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
OPTIONS = "chat_template_kwargs"


def options(**given: object) -> bytes:
    return chat(chat_template_kwargs=given)


CASES = {
    "a template that loops": Case(400, chat(chat_template=LOOP), "chat_template"),
    "a template that breaks out": Case(400, chat(chat_template=ESCAPE), "chat_template"),
    "an empty template": Case(400, chat(chat_template=""), "chat_template"),
    "a template of 1 MB": Case(400, chat(chat_template="{{ x }}" * 150_000), "chat_template"),
    "a template in a message": Case(200, chat(messages=[{"role": "user", "content": LOOP + ESCAPE}])),
    "a template in a name": Case(200, chat(messages=[{"role": "user", "content": "x", "name": ESCAPE}])),
    "a template among the options": Case(400, options(chat_template=LOOP), OPTIONS),
    "another conversation among the options": Case(400, options(messages=[]), OPTIONS),
    "tokenize among the options": Case(400, options(tokenize=True), OPTIONS),
    "tools among the options": Case(400, options(tools=[{}]), OPTIONS),
    "the generation prompt among the options": Case(400, options(add_generation_prompt=False), OPTIONS),
    "the beginning mark among the options": Case(400, options(bos_token=ESCAPE), OPTIONS),
    "an option that nobody knows": Case(400, options(anything=1), OPTIONS),
    "an option of 100 000 characters": Case(400, options(**{"x" * 100_000: 1}), OPTIONS),
    "an option with a private name": Case(400, options(__class__=1, self=2), OPTIONS),
    "10 000 options": Case(400, options(**{f"k{i}": i for i in range(10_000)}), OPTIONS),
    "an option nested 60 deep": Case(400, options(x=[[[[[[[[[[{}]]]]]]]]]]), OPTIONS),
    "a processor of logits": Case(400, chat(logits_processors=["os.system"]), "logits_processors"),
    "a processor of logits, pickled": Case(400, chat(custom_logit_processor="gASVBQ=="), "custom_logit_processor"),
    "a processor of logits for a completion": Case(400, complete(logits_processors=["a.b"]), "logits_processors"),
    "a pickled processor for a completion": Case(400, complete(custom_logit_processor="x"), "custom_logit_processor"),
    "other names of code, ignored": Case(
        200,
        chat(auto_map={"AutoModel": "x--y.Z"}, trust_remote_code=True, tool_parser_plugin="/tmp/x.py", plugins=["x"]),
    ),
    "a model that is a module": Case(404, chat(model="os.system"), "model"),
}

"""S6: templates are somebody's code; and: what they render is what transformers renders."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest

from fastchat_serve import ChatPrompt, ConfigError, InvalidRequest, Message, TextPart, ToolCall, ToolSpec
from fastchat_serve.text import ChatTemplate, TemplateLimits

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML_WITH_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- 'Tools you may call:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{ tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\nAnswer <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call> to call one.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' ~ messages[0].content ~ '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' }}
        {%- generation %}{{ message['content'] }}{{ '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

HEADERS_AND_TRIM = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n" + system_message + "<|eot_id|>" }}
{%- macro header(role) -%}
    <|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}
{%- endmacro %}
{%- for message in messages %}
    {%- if tools is not none and loop.first %}
        {{- header('user') }}{{ tools | map(attribute='function') | list | tojson(indent=4) }}
    {%- endif %}
    {{- header(message.role) + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""

STRICT_TURNS = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}{% set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate: user, assistant, user, assistant") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- set system_first = loop.last and system is defined %}
        {{- "[INST] " + (system + "\\n\\n" if system_first else "") + message["content"] + "[/INST]" }}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

CONTENT_PARTS = """\
{% for message in messages %}
<{{ message.role }}>
{% set content = message['content'] %}
{% if content is string %}{{ content }}{% else %}{% for part in content %}
{% if part.type == 'text' %}({{ part.text }}){% endif %}
{% endfor %}{% endif %}

{% endfor %}
"""

TEMPLATES = {
    "chatml": CHATML_WITH_TOOLS,
    "headers": HEADERS_AND_TRIM,
    "strict": STRICT_TURNS,
    "parts": CONTENT_PARTS,
}

WEATHER = ToolSpec(
    "weather", "Says <how> it is & will be", {"type": "object", "properties": {"city": {"type": "string"}}}
)
TURNS = (Message(role="user", content=" Hi <you> & é 😀 "), Message(role="assistant", content="Hello. "))
CONVERSATIONS = {
    "a question": ChatPrompt((TURNS[0],)),
    "with a system message": ChatPrompt((Message(role="system", content="Be short. "), *TURNS, TURNS[0])),
    "with tools": ChatPrompt(TURNS[:1], tools=(WEATHER, ToolSpec("now"))),
    "to be continued": ChatPrompt(TURNS, continue_final=True),
}


def template(source: str, **settings: Any) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=SPECIAL_TOKENS, **settings)


def rendered(source: str, *messages: Message, **settings: Any) -> str:
    return template(source, **settings).render(ChatPrompt(messages or TURNS[:1]))


# ------------------------------------------------------------------------ equal to transformers


def as_transformers_takes_it(prompt: ChatPrompt) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                **({"parameters": tool.parameters} if tool.parameters else {}),
            },
        }
        for tool in prompt.tools
    ]
    return {
        "conversation": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "tools": tools or None,
        "continue_final_message": prompt.continue_final,
        "add_generation_prompt": not prompt.continue_final,
    }


@pytest.fixture(scope="module")
def reference(byte_level: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level, **SPECIAL_TOKENS)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, conversation: str, reference: Any) -> None:
    prompt = CONVERSATIONS[conversation]

    expected = reference.apply_chat_template(
        **as_transformers_takes_it(prompt), chat_template=TEMPLATES[name], tokenize=False
    )

    assert template(TEMPLATES[name]).render(prompt) == expected


def test_tool_calls_and_results_render_as_in_transformers(reference: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Århus"}}}
    conversation = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12°", "tool_call_id": "call_1"},
    ]
    messages = (
        Message(role="user", content="Weather?"),
        Message(role="assistant", tool_calls=(ToolCall("call_1", "weather", '{"city": "Århus"}'),)),
        Message(role="tool", content="12°", tool_call_id="call_1"),
    )

    expected = reference.apply_chat_template(
        conversation, chat_template=CHATML_WITH_TOOLS, tokenize=False, add_generation_prompt=True
    )

    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Århus"}}\n</tool_call>' in expected
    assert rendered(CHATML_WITH_TOOLS, *messages) == expected


def test_an_option_renders_as_in_transformers(reference: Any) -> None:
    prompt = ChatPrompt(TURNS[:1], template_options={"enable_thinking": False})

    expected = reference.apply_chat_template(
        **as_transformers_takes_it(prompt), chat_template=CHATML_WITH_TOOLS, tokenize=False, enable_thinking=False
    )

    assert expected.endswith("</think>\n\n")
    assert template(CHATML_WITH_TOOLS, options={"enable_thinking": bool}).render(prompt) == expected


# -------------------------------------------------------------------------------- conversations


def test_text_parts_are_joined_for_a_template_that_reads_strings() -> None:
    message = Message(role="user", content=(TextPart("one"), TextPart("two")))

    assert rendered("{{ messages[0].content }}", message) == "one\ntwo"


def test_a_template_that_reads_parts_gets_them() -> None:
    message = Message(role="user", content=(TextPart("one"), TextPart("two")))

    assert rendered("{% for part in messages[0].content %}{{ part.text }};{% endfor %}", message) == "one;two;"
    assert rendered(CONTENT_PARTS, message) == "<user>\n(one)(two)\n"


def test_a_template_that_only_reads_parts_gets_a_string_as_a_part() -> None:
    source = "{% for part in messages[0]['content'] %}{{ part['text'] }};{% endfor %}"

    assert rendered(source, Message(role="user", content="one")) == "one;"


def test_arguments_that_are_no_json_object_stay_text() -> None:
    message = Message(role="assistant", tool_calls=(ToolCall("c", "f", "oops {"),))

    assert rendered("{{ messages[0].tool_calls[0].function.arguments }}", message) == "oops {"


def test_a_call_has_the_id_and_the_result_names_it() -> None:
    messages = (
        Message(role="assistant", tool_calls=(ToolCall("c7", "f", "{}"),)),
        Message(role="tool", content="ok", tool_call_id="c7", name="f"),
    )
    source = "{{ messages[0].tool_calls[0].id }} {{ messages[1].tool_call_id }} {{ messages[1].name }}"

    assert rendered(source, *messages) == "c7 c7 f"


@pytest.mark.parametrize("beginning", ["", "assistant", "Sure, ", "\n"])
def test_a_continued_answer_ends_where_its_beginning_ends(beginning: str) -> None:
    prompt = ChatPrompt((TURNS[0], Message(role="assistant", content=beginning)), continue_final=True)

    assert template(CHATML_WITH_TOOLS).render(prompt).endswith(f"<|im_start|>assistant\n{beginning}")


@pytest.mark.parametrize("messages", [(), TURNS[:1]])
def test_only_an_answer_can_be_continued(messages: tuple[Message, ...]) -> None:
    with pytest.raises(InvalidRequest, match="assistant"):
        template("{{ messages }}").render(ChatPrompt(messages, continue_final=True))


def test_a_template_that_leaves_the_last_message_out_cannot_continue_it() -> None:
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        template("{{ messages[0].content }}").render(ChatPrompt(TURNS, continue_final=True))


def test_the_date_comes_from_the_clock() -> None:
    assert rendered("{{ strftime_now('%Y') }}", clock=lambda: datetime(1999, 1, 1)) == "1999"


def test_what_a_template_can_do_is_known() -> None:
    chatml = template(CHATML_WITH_TOOLS)

    assert (chatml.supports_tools, chatml.tool_parser) == (True, "hermes")
    assert not template(STRICT_TURNS).supports_tools
    assert template("<tool_call><function={{ tools }}>").tool_parser == ""


# -------------------------------------------------------------------------------------- refusals


def test_a_template_says_itself_what_it_does_not_take() -> None:
    with pytest.raises(InvalidRequest, match="Roles must alternate") as raised:
        rendered(STRICT_TURNS, TURNS[0], TURNS[0])
    assert raised.value.status == 400


@pytest.mark.parametrize("source", ["{% if %}", "{% for x in y %}", "{{ 'open }}", "{{ x|no_such_filter }}"])
def test_a_broken_template_is_found_when_the_model_is_opened(source: str) -> None:
    with pytest.raises(ConfigError, match="line 1 of the chat template"):
        template(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ nothing.at_all }}", "'nothing' is undefined"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include 'secret' %}", "TypeError"),
    ],
)
def test_a_template_that_fails_is_the_requests_end_and_no_more(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot render") as raised:
        rendered(source)
    assert reason in str(raised.value)


def test_messages_cannot_inject_template_code() -> None:
    assert rendered("{{ messages[0].content }}", Message(role="user", content="{{ 1 + 1 }}")) == "{{ 1 + 1 }}"


@pytest.mark.parametrize(
    "name", ["messages", "tools", "tokenize", "chat_template", "add_generation_prompt", "bos_token"]
)
def test_no_option_replaces_what_the_server_sets(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not allowed"):
        template("{{ messages }}").render(ChatPrompt(TURNS, template_options={name: "x"}))
    with pytest.raises(ConfigError, match=name):
        template("", options={name: str})


@pytest.mark.parametrize("options", [{"effort": 1}, {"effort": ["low"]}, {"thinking": 1}, {"other": True}])
def test_options_are_checked_by_name_and_type(options: dict[str, Any]) -> None:
    chat = template("{{ effort }}", options={"effort": str, "thinking": bool})

    with pytest.raises(InvalidRequest) as raised:
        chat.render(ChatPrompt(TURNS, template_options=options))
    assert raised.value.param == "chat_template_kwargs"
    assert chat.render(ChatPrompt(TURNS, template_options={"effort": "low"})) == "low"


# ---------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{% for i in range(10000000) %}{% endfor %}", id="a long range"),
        pytest.param("{% for i in range(10000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}", id="loops"),
        pytest.param(
            "{% for i in range(10000) %}{% for j in range(1000) if false %}{% endfor %}{% endfor %}",
            id="passes that are left out",
        ),
        pytest.param(
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(23) }}", id="macros"
        ),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", id="endless recursion"),
        pytest.param(
            "{% macro m() %}{% for i in range(4000) %}{{ caller() }}{% endfor %}{% endmacro %}"
            "{% call m() %}{% for i in range(4000) %}{% endfor %}{% endcall %}",
            id="call blocks",
        ),
        pytest.param(
            "{% for i in [[1] * 100000] * 100 recursive %}{{ loop(i) if i is iterable }}{% endfor %}",
            id="recursive loops",
        ),
        pytest.param("{{ 'x' * 10**9 }}", id="a repeated string"),
        pytest.param("{% set x = 10**9 * [1] %}", id="a repeated list"),
        pytest.param("{{ 9 ** (9 ** 9) }}", id="a power"),
        pytest.param(
            "{% set ns = namespace(s='x') %}{% for i in range(50) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            id="doubling with ~",
        ),
        pytest.param(
            "{% set ns = namespace(s=['x']) %}{% for i in range(50) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            id="doubling with +",
        ),
        pytest.param(
            "{% set ns = namespace(s='x') %}{% for i in range(50) %}"
            "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
            id="doubling in blocks",
        ),
        pytest.param("{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}", id="much text"),
    ],
)
def test_a_template_that_goes_on_and_on_is_stopped_within_a_second(source: str) -> None:
    chat = template(source)

    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        chat.render(ChatPrompt(TURNS))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (TemplateLimits(characters=10), "more than 10 characters"),
        (TemplateLimits(iterations=10), "more than 10 loop iterations"),
        (TemplateLimits(seconds=0), "more than 0 s"),
    ],
)
def test_the_limit_that_was_reached_is_named(limits: TemplateLimits, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as raised:
        rendered("{% for i in range(11) %}x{% endfor %}", limits=limits)
    assert raised.value.code == "chat_template_limit"


def test_what_stays_just_within_the_limits_is_rendered() -> None:
    assert rendered("{% for i in range(11) %}x{% endfor %}", limits=TemplateLimits(characters=11, iterations=11))


def test_a_template_cannot_touch_the_meter() -> None:
    source = "{% set meter = 0 %}{% set step = 0 %}{% for i in range(11) %}{{ self }}{% endfor %}"

    with pytest.raises(InvalidRequest, match="iterations"):
        rendered(source, limits=TemplateLimits(iterations=10))


def test_a_long_conversation_is_rendered_well_within_the_limits() -> None:
    messages = tuple(Message(role=role, content="word " * 100) for role in ("user", "assistant") * 2000)

    assert rendered(CHATML_WITH_TOOLS, *messages).count("<|im_start|>") == 4001

"""Calling a tool, and answering once its result is there.

Some tools have a fixed meaning (`get_weather`), others are invented for each conversation, so that the model must
read names and arguments from the prompt. The form is Hermes', written by `chat`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from .chat import Conversation, Message, ToolCall, answered, assistant, calling, user
from .draw import Draw

Tool = Mapping[str, Any]


class Case(NamedTuple):
    """A tool, a question for it, the call, what the tool gives back, and the answer."""

    tool: Tool
    question: str
    arguments: Mapping[str, Any]
    result: str
    answer: str


NO_TOOL: Final = "I have no tool for that."
KINDS: Final = (
    "temperature", "population", "price", "length", "weight", "status", "owner", "title", "address", "score", "colour",
    "height", "age", "email", "balance", "distance", "rating", "stock", "version", "date", "size", "rank", "salary",
    "route", "menu",
)  # fmt: skip
VERBS: Final = ("get", "find", "fetch", "look_up", "query", "read", "show", "load", "check")
SUBJECTS: Final = (
    "name", "city", "product", "user", "id", "country", "item", "person", "place", "key", "symbol", "book", "host",
    "project",
)  # fmt: skip


def declare(draw: Draw, name: str, description: str, /, **parameters: str) -> Tool:
    """An OpenAI tool; clients differ in what they add to it."""
    properties: dict[str, Any] = {}
    for parameter, kind in parameters.items():
        properties[parameter] = {"type": kind}
        if draw.chance(0.3):
            properties[parameter]["description"] = f"The {parameter.replace('_', ' ')}"
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if draw.chance(0.8):
        schema["required"] = list(parameters)
    if draw.chance(0.15):
        schema["additionalProperties"] = False
    function: dict[str, Any] = {"name": name, "description": description, "parameters": schema}
    if draw.chance(0.1):
        del function["description"]
    elif draw.chance(0.1):
        function = {"name": name, "parameters": schema, "description": description}
    if draw.chance(0.1):
        function["strict"] = True
    return {"type": "function", "function": function}


def maybe_json(draw: Draw, plain: str, /, **values: Any) -> str:
    if draw.chance(0.6):
        return json.dumps(values, ensure_ascii=False)
    return plain


def weather(draw: Draw) -> Case:
    city = draw.city()
    degrees = draw.rng.randint(-15, 40)
    sky = draw.rng.choice(("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy"))
    name = draw.rng.choice(
        (
            "get_weather",
            "get_weather",
            "get_current_weather",
            "weather",
            "weather_lookup",
            "fetch_weather",
            "check_weather",
        )
    )
    parameter = draw.rng.choice(("city", "city", "location", "place"))
    description = draw.rng.choice(
        (
            "Get the weather in a city",
            "Get the current weather",
            "The weather of a place",
            "Returns the weather for a location.",
        )
    )
    asked = (
        "What is the weather in {0}?", "What's the weather in {0}?", "How is the weather in {0}?", "Weather in {0}",
        "weather in {0}?", "Tell me the weather in {0}.", "What is the weather like in {0}?", "Is it raining in {0}?",
        "How warm is it in {0}?", "Is it sunny in {0} today?", "What's the weather like in {0} today?",
        "Wie ist das Wetter in {0}?", "Quel temps fait-il à {0} ?", "¿Qué tiempo hace en {0}?", "{0}的天气怎么样？",
        "Please get the weather for {0}.", "What is the weather in {0} right now?",
    )  # fmt: skip
    plain = draw.rng.choice((f"{degrees} degrees, {sky}", f"{degrees}°C and {sky}", f"{sky}, {degrees} °C"))
    values: dict[str, Any] = {
        draw.rng.choice(("temperature", "temp", "degrees")): degrees,
        draw.rng.choice(("sky", "condition", "weather")): sky,
    }
    if draw.chance(0.3):
        values = {parameter: city, **values}
    if draw.chance(0.15):
        values["unit"] = "C"
    result = maybe_json(draw, plain, **values)
    answer = f"In {city} it is {degrees} degrees and {sky}."
    return Case(
        declare(draw, name, description, **{parameter: "string"}),
        draw.phrase(asked).format(city),
        {parameter: city},
        result,
        answer,
    )


def clock(draw: Draw) -> Case:
    city = draw.city()
    zone = draw.rng.choice(("Europe", "America", "Asia", "Africa")) + "/" + city.replace(" ", "_")
    place = zone if draw.chance(0.5) else city
    time = f"{draw.rng.randint(0, 23):02}:{draw.rng.randint(0, 59):02}"
    name = draw.rng.choice(("get_time", "get_time", "get_current_time", "current_time", "clock", "time_in"))
    parameter = draw.rng.choice(("timezone", "timezone", "city", "location", "place"))
    asked = (
        "What time is it in {0}?", "What's the time in {0}?", "Tell me the time in {0}.", "time in {0}?",
        "Wie spät ist es in {0}?", "What is the time in {0}?", "What is the current time in {0}?",
    )  # fmt: skip
    tool = declare(
        draw,
        name,
        draw.rng.choice(("Get the current time", "The time in a timezone", "Get the time in a place")),
        **{parameter: "string"},
    )
    result = maybe_json(draw, time, time=time)
    return Case(tool, draw.phrase(asked).format(place), {parameter: place}, result, f"In {place} it is {time}.")


def adding(draw: Draw) -> Case:
    a, b = draw.number(4), draw.number(4)
    verb, sign, name, result = draw.rng.choice(
        (("plus", "+", "add", a + b), ("times", "*", "multiply", a * b), ("minus", "-", "subtract", a - b))
    )
    name = draw.rng.choice((name, name, f"{name}_numbers"))
    x, y = draw.rng.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")))
    asked = (
        "What is {a} {verb} {b}?", "{a} {sign} {b}", "What is {a} {sign} {b}?", "Compute {a} {sign} {b}.",
        "How much is {a} {verb} {b}?", "what's {a} {sign} {b}?", "Please compute {a} {verb} {b}.",
    )  # fmt: skip
    kind = draw.rng.choice(("integer", "number"))
    tool = declare(draw, name, f"{name.split('_')[0].capitalize()} two numbers", **{x: kind, y: kind})
    question = draw.phrase(asked).format(a=a, b=b, verb=verb, sign=sign)
    return Case(tool, question, {x: a, y: b}, maybe_json(draw, str(result), result=result), f"The result is {result}.")


def search(draw: Draw) -> Case:
    query = draw.words(1, 4)
    found = draw.rng.choice((draw.words(1, 4), draw.name()))
    name = draw.rng.choice(("search", "search", "web_search", "search_web", "find", "lookup", "search_docs", "google"))
    parameter = draw.rng.choice(("query", "query", "q", "text", "keywords"))
    asked = (
        "Search for {0}.", "search for {0}", "Search the web for {0}", "Find {0}.", "Look up {0}.",
        "Please search for {0}", "Google {0}", "Can you search for {0}?", "Search {0}", "Please look up {0}.",
    )  # fmt: skip
    tool = declare(
        draw,
        name,
        draw.rng.choice(("Search the web", "Search for something", "Find documents")),
        **{parameter: "string"},
    )
    return Case(
        tool,
        draw.phrase(asked).format(query),
        {parameter: query},
        maybe_json(draw, found, result=found),
        f"I found: {found}",
    )


def mail(draw: Draw) -> Case:
    to, text = draw.name(), draw.words(1, 4)
    name = draw.rng.choice(("send_message", "send_email", "send_mail", "notify", "message"))
    person, body = draw.rng.choice((("to", "text"), ("recipient", "message"), ("to", "body"), ("user", "message")))
    asked = (
        "Tell {0}: {1}",
        "Send {0} the message {1}",
        "Send a message to {0}: {1}",
        "Write to {0}: {1}",
        "Message {0}: {1}",
    )
    tool = declare(
        draw,
        name,
        draw.rng.choice(("Send a message", "Send a message to a person")),
        **{person: "string", body: "string"},
    )
    return Case(
        tool,
        draw.phrase(asked).format(to, text),
        {person: to, body: text},
        draw.rng.choice(("ok", "sent", '{"ok": true}', '{"status": "sent"}')),
        f"I sent the message to {to}.",
    )


def lamp(draw: Draw) -> Case:
    room, on = draw.word(), draw.chance(0.5)
    name = draw.rng.choice(("set_light", "switch_light", "turn_light", "set_lamp", "light"))
    place, state = draw.rng.choice((("room", "on"), ("lamp", "on"), ("name", "enabled")))
    asked = (
        "Turn {1} the light in the {0}.",
        "Switch {1} the {0} light.",
        "Turn {1} the {0} lamp",
        "Turn the {0} light {1}.",
        "Please turn {1} the {0} light.",
    )
    tool = declare(draw, name, "Switch a light", **{place: "string", state: "boolean"})
    word = "on" if on else "off"
    return Case(
        tool,
        draw.phrase(asked).format(room, word),
        {place: room, state: on},
        draw.rng.choice(("ok", "done", '{"ok": true}')),
        f"The light is {word}.",
    )


def invented(draw: Draw) -> Case:
    """A tool made up on the spot."""
    kind = draw.word() if draw.chance(0.35) else draw.split(KINDS)
    subject = draw.invented(2) if draw.chance(0.2) else draw.rng.choice(SUBJECTS)
    verb = draw.rng.choice(VERBS)
    name = draw.rng.choice(
        (
            f"{verb}_{kind}",
            f"{verb}_{kind}",
            f"{kind}_of_{subject}",
            f"{subject}_{kind}",
            f"{verb}{kind.capitalize()}",
            kind,
        )
    )
    whole = draw.chance(0.2)
    value: Any = (
        draw.number(5) if whole else draw.rng.choice((draw.name(), draw.city(), draw.word(), draw.word().upper()))
    )
    found = draw.rng.choice((str(draw.number(4)), draw.word(), draw.name()))
    asked = (
        "What is the {kind} of {value}?", "Tell me the {kind} of {value}.", "Give me the {kind} of {value}",
        "What's the {kind} for {value}?", "{kind} of {value}?", "Find the {kind} of {value}.",
        "Show the {kind} of {value}.", "I need the {kind} of {value}.",
    )  # fmt: skip
    by_name = (
        "Call {name} with {value}.",
        "Use {name} for {value}.",
        "Please call {name} with {subject} {value}",
        "Use the tool {name} with {subject} = {value}.",
    )
    question = draw.phrase(by_name if draw.chance(0.3) else asked).format(
        kind=kind, value=value, name=name, subject=subject
    )
    description = draw.rng.choice(
        (f"Get the {kind} of a {subject}", f"Find the {kind} for a {subject}", f"The {kind} of a {subject}")
    )
    tool = declare(draw, name, description, **{subject: "integer" if whole else "string"})
    result = maybe_json(draw, found, **{draw.rng.choice((kind, "result", "value")): found})
    return Case(tool, question, {subject: value}, result, f"The {kind} of {value} is {found}.")


MAKERS: Final = (weather, weather, clock, adding, search, mail, lamp, invented, invented, invented)
SYSTEMS: Final = ("You are a helpful assistant.", "You are a helpful assistant with tools.",
                  "Use the tools when you can.", "You are an assistant that calls tools.")  # fmt: skip


def shelf(draw: Draw, case: Case) -> list[Tool]:
    """The tool among up to three others."""
    name = case.tool["function"]["name"]
    others = [draw.rng.choice(MAKERS)(draw).tool for _ in range(draw.rng.choice((0, 0, 0, 1, 1, 2, 3)))]
    family = {"subtract": "adding", "multiply": "adding", "add": "adding"}
    taken = {name}
    kept: list[Tool] = [case.tool]
    for other in others:
        label = other["function"]["name"]
        first = label.split("_")[0]
        clashes = label in taken or any(word in name for word in label.split("_") if len(word) > 3) or first in family
        if not clashes:
            kept.append(other)
            taken.add(label)
    draw.rng.shuffle(kept)
    return kept


def start(draw: Draw) -> list[Message]:
    return [{"role": "system", "content": draw.rng.choice(SYSTEMS)}] if draw.chance(0.35) else []


def call(case: Case) -> ToolCall:
    return {"name": case.tool["function"]["name"], "arguments": case.arguments}


def tool_call(draw: Draw) -> Conversation:
    """A question and the call it needs."""
    case = draw.rng.choice(MAKERS)(draw)
    return Conversation([*start(draw), user(case.question), calling(call(case))], shelf(draw, case))


def tool_answer(draw: Draw) -> Conversation:
    """A call, the tool's result and the answer; sometimes a second round."""
    maker = draw.rng.choice(MAKERS)
    case = maker(draw)
    messages = [*start(draw), user(case.question), calling(call(case)), answered(case.result), assistant(case.answer)]
    tools = shelf(draw, case)
    if draw.chance(0.3):
        if draw.chance(0.5):
            messages += [user(draw.rng.choice(("Thanks!", "Thank you.", "Thanks"))), assistant("You are welcome!")]
        if maker is weather:
            parameter, city = next(iter(case.arguments)), draw.city()
            asked = ("And in {0}?", "What about {0}?", "And {0}?", "How about {0}?")
            follow: ToolCall = {"name": case.tool["function"]["name"], "arguments": {parameter: city}}
            messages += [user(draw.phrase(asked).format(city)), calling(follow)]
    return Conversation(messages, tools)


def two_calls(draw: Draw) -> Conversation:
    """Two cities in one question: two calls side by side."""
    case, other = weather(draw), draw.city()
    parameter, city = next(iter(case.arguments.items()))
    asked = (
        "What is the weather in {0} and {1}?",
        "What's the weather in {0} and in {1}?",
        "Weather in {0} and {1}",
        "How is the weather in {0} and {1}?",
    )
    second: ToolCall = {"name": case.tool["function"]["name"], "arguments": {parameter: other}}
    return Conversation(
        [*start(draw), user(draw.phrase(asked).format(city, other)), calling(call(case), second)], [case.tool]
    )


def no_fitting_tool(draw: Draw) -> Conversation:
    """A question for a tool that is not on the shelf, or for none at all."""
    case = draw.rng.choice((weather, clock, search, mail, lamp))(draw)
    if draw.chance(0.5):
        return Conversation([*start(draw)[:1], user(case.question), assistant(NO_TOOL)])
    offered = (adding if case.tool["function"]["name"] != "add" else clock)(draw)
    return Conversation([*start(draw), user(case.question), assistant(NO_TOOL)], [offered.tool])


def beside_tools(draw: Draw, messages: Sequence[Message]) -> Conversation:
    """Tools are offered, but the talk needs none."""
    return Conversation([*start(draw), *messages], [draw.rng.choice(MAKERS)(draw).tool])

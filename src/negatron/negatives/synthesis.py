"""Candidates that a language model writes.

1. `plan` turns queries with their positives into requests: one positive and one set of attributes are drawn for each request from the
   query's own random stream; a positive that is too long is cut to a number of words. Pure: dry runs and batch files use it as it is.
2. `SyntheticSource.propose` asks the model, reads the replies and makes candidates, each with what the writer was told in its Origin.
3. What is unusable is counted, with its reason, in `source.report`; raw replies stay in the ledger.

What stays true: the same queries, prompt, settings and seed give the same requests, whatever the order of queries or replies.
What it does not know: whether a written text is a false negative. Most that small models write are; the filters judge that.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from pydantic import Field

from negatron.errors import NegatronError, SettingError
from negatron.identity import fingerprint, same_words, stream
from negatron.negatives.prompts.files import Prompt, load, parse
from negatron.negatives.prompts.parsers import ParseFailure, Written
from negatron.seams import LanguageModel
from negatron.settings import Settings
from negatron.types import Candidate, Document, Message, NegativeRequest, Origin, Reply, Request

SOURCE = "synthetic"
FEWEST_WORDS = 8  # CausalNeg's code flags shorter negatives (mzhangzhicheng/CausalNeg)
WORDS_THAT_MAKE_A_QUERY_A_QUOTATION = 4  # our choice: a text about ships that holds the one-word query "ships" quotes nothing


class SynthesisSettings(Settings):
    """What the language model is asked, and how."""

    prompt: str = "syneg.v1"
    """Name of a prompt, or path of a TOML file of your own."""
    per_query: int = Field(default=2, ge=1)  # SyNeg, Figure 1: two for each pair
    """Negatives asked for, per query."""
    per_request: int = Field(default=0, ge=0)
    """Negatives asked for in one request; 0: all of a query's in one. Each request draws its own attributes and positive."""
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)  # ours; the papers' are not known
    """Of the sampling of words; 0 always takes the likeliest."""
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)  # ours
    """Share of the probability from which words are sampled, 0..1."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens a reply may have; a reply that is cut off there does not parse."""
    positive_words: int = Field(default=200, ge=1)
    """Words of the positive shown to the model; the rest is cut, and the report counts how often."""
    attributes: str = "general"
    """Preset of attribute values in the prompt file: domains, levels of difficulty, lengths."""
    domains: tuple[str, ...] = ()
    """Domains in place of the preset's, such as ("maritime law", "shipping")."""
    without: tuple[str, ...] = ()
    """Parts of the prompt left out, by name or constraint: ("attributes",) and ("attributes", "reflection") are SyNeg's Table 4."""


@dataclass(frozen=True, slots=True)
class Task:
    """One request with what it was made from."""

    request: Request
    query_row: int
    count: int
    attributes: Mapping[str, str]
    positive_id: str
    shortened: bool


@dataclass(frozen=True)
class Plan(Sequence[Request]):
    """The requests for some queries. Each is made when it is asked for, so that a plan of millions fits in memory."""

    queries: Sequence[NegativeRequest]
    prompt: Prompt
    settings: SynthesisSettings
    seed: int
    values: Mapping[str, Sequence[str]]

    @property
    def requests_per_query(self) -> int:
        """How many requests share a query's negatives."""
        return math.ceil(self.settings.per_query / (self.settings.per_request or self.settings.per_query))

    def __len__(self) -> int:
        return len(self.queries) * self.requests_per_query

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> list[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | list[Request]:
        if isinstance(index, slice):
            return [self.task(row).request for row in range(*index.indices(len(self)))]
        return self.task(index).request

    def request_id(self, index: int) -> str:
        """`QUERY#0`, `QUERY#1`, ...: unique, since ids of queries are."""
        row, part = divmod(index, self.requests_per_query)
        return f"{self.queries[row].query.id}#{part}"

    def task(self, index: int) -> Task:
        """Request number `index` and what was drawn for it. Raises IndexError outside of the plan."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, part = divmod(index, self.requests_per_query)
        wanted, settings = self.queries[row], self.settings
        draws = stream(self.seed, "synthesis", wanted.query.id, part)
        positive = draws.choice(sorted(wanted.positives, key=lambda document: document.id))
        attributes = self.prompt.draw(self.values, draws)
        share = settings.per_request or settings.per_query
        count = min(share, settings.per_query - part * share)
        shown, shortened = first_words(positive.content, settings.positive_words)
        text = self.prompt.fill(query=wanted.query.text, positive=shown, count=count, attributes=attributes)
        request = Request(
            self.request_id(index),
            (Message("user", text),),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=draws.randrange(2**31),
            schema=json.dumps(self.prompt.schema(count), sort_keys=False),
        )
        return Task(request, row, count, attributes, positive.id, shortened)


def plan(requests: Sequence[NegativeRequest], settings: SynthesisSettings, seed: int) -> Plan:
    """The requests to a language model for these queries.

    Raises SettingError for an unknown prompt, preset or part, and for a setting without effect; NegatronError for a query without positive.
    """
    prompt = load(settings.prompt).without(settings.without)
    values = dict(prompt.values(settings.attributes)) if prompt.attributes else {}
    if settings.domains:
        if "domain" not in prompt.placeholders:
            raise SettingError(f"domains = {settings.domains}: the prompt {prompt.title}, as it is used here, does not name a domain")
        values["domain"] = settings.domains
    if not prompt.attributes and settings.attributes != SynthesisSettings().attributes:
        raise SettingError(f"attributes = {settings.attributes!r}: the prompt {prompt.title} has no attributes")
    if settings.per_request > settings.per_query:
        raise SettingError(f"per_request = {settings.per_request} is more than per_query = {settings.per_query}")
    if empty := next((wanted.query.id for wanted in requests if not wanted.positives), None):
        raise NegatronError(f"query {empty} has no positive; written negatives need one")
    return Plan(requests, prompt, settings, seed, values)


def first_words(text: str, count: int) -> tuple[str, bool]:
    """At most `count` words, and whether any were cut. What is not cut keeps its white space; scripts without spaces count as few words.

    >>> first_words("a  b c", 3), first_words("a  b c", 2)
    (('a  b c', False), ('a b', True))
    """
    words = text.split(maxsplit=count)
    return (" ".join(words[:count]), True) if len(words) > count else (text, False)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan will ask for. Tokens are estimated from characters; `completion_tokens` is the most there can be."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", at most {self.cost:,.2f} in the currency of the prices"
        return f"{self.requests:,} requests, about {self.prompt_tokens:,} tokens sent, at most {self.completion_tokens:,} written{cost}"


def estimate(requests: Plan, prices: tuple[float, float] | None = None) -> Estimate:
    """Number of requests, tokens, and cost. prices: for a million tokens sent and a million written."""
    sent = written = 0
    for request in requests:
        sent += sum(estimated_tokens(message.content) for message in request.messages)
        written += request.max_tokens
    cost = None if prices is None else (sent * prices[0] + written * prices[1]) / 1e6
    return Estimate(len(requests), sent, written, cost)


def estimated_tokens(text: str) -> int:
    """Four characters of a Latin script to a token, one of any other: a rule of thumb, no tokenizer is asked.

    >>> estimated_tokens("how do ships float"), estimated_tokens("船为什么能浮")
    (5, 6)
    """
    latin = sum(character < "\u0250" for character in text)
    return math.ceil(latin / 4) + len(text) - latin


@dataclass
class SynthesisReport:
    """What became of the requests, over all calls of a source."""

    requests: int = 0
    parsed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Reason -> requests that gave nothing."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    asked: int = 0
    """Negatives asked for."""
    written: int = 0
    """Candidates made."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> texts that are no candidates."""
    flagged: Counter[str] = field(default_factory=Counter)
    """Remark -> candidates that carry it in their Origin's note."""
    shortened: int = 0
    """Requests that show a cut positive."""
    queries: int = 0
    queries_without: int = 0
    """Queries for which nothing was made."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a manifest or `--json`."""
        return {name: dict(sorted(value.items())) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        lines = [
            f"{self.written:,} of {self.asked:,} negatives written for {self.queries:,} queries, none for {self.queries_without:,} of them",
            f"{self.parsed:,} of {self.requests:,} replies could be read",
            f"{self.prompt_tokens:,} tokens sent, {self.completion_tokens:,} written",
        ]
        for label, counts in (("could not be read", self.failed), ("dropped", self.dropped), ("flagged", self.flagged)):
            if counts:
                lines.append(f"{label}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()))
        if self.shortened:
            lines.append(f"{self.shortened:,} requests show a positive that was cut")
        return "\n".join(lines)


class SyntheticSource:
    """A NegativeSource that asks a language model. `name` must be "synthetic" or begin with "synthetic:", so that mixing knows its kind.

    `report` counts what could not be used. Raises SettingError as `plan` does.
    """

    def __init__(
        self, model: LanguageModel, settings: SynthesisSettings | None = None, *, seed: int = 0, name: str = SOURCE, round: int = 0
    ) -> None:
        if name != SOURCE and not name.startswith(SOURCE + ":"):
            raise SettingError(f"a source of written negatives is called {SOURCE!r} or {SOURCE + ':NAME'!r}, not {name!r}")
        self.model, self.settings, self.seed, self.name, self.round = model, settings or SynthesisSettings(), seed, name, round
        self.report = SynthesisReport()

    def propose(self, requests: Sequence[NegativeRequest], per_query: int) -> Iterator[list[Candidate]]:
        """One list a query, in order, in the order of writing. Replies that come early wait for their turn."""
        planned = plan(requests, self.settings.model_copy(update={"per_query": per_query}), self.seed)
        maker = fingerprint(
            planned.prompt.title, planned.prompt.fingerprint, self.model.name, planned.settings.as_json(), {"seed": self.seed}
        )
        rows = {planned.request_id(index): index for index in range(len(planned))}
        if len(rows) != len(planned):
            raise NegatronError("two of the queries have the same id")
        waiting: dict[int, dict[int, list[tuple[Written, Task]]]] = {}
        upcoming = 0
        for reply in self.model.complete(planned):
            index = rows.pop(reply.request_id, None)
            if index is None:
                raise NegatronError(f"{self.model.name} answered {reply.request_id!r}, which was not asked, or was answered already")
            task = planned.task(index)
            waiting.setdefault(task.query_row, {})[index] = self._read(planned.prompt, task, reply)
            while len(waiting.get(upcoming, ())) == planned.requests_per_query:
                yield self._candidates(requests[upcoming], waiting.pop(upcoming), planned.prompt, maker)
                upcoming += 1
        if rows:
            raise NegatronError(f"{self.model.name} gave no reply to {len(rows):,} requests, {next(iter(rows))!r} among them")

    def _read(self, prompt: Prompt, task: Task, reply: Reply) -> list[tuple[Written, Task]]:
        """What a reply holds, counted."""
        report = self.report
        report.requests += 1
        report.asked += task.count
        report.shortened += task.shortened
        report.prompt_tokens += reply.prompt_tokens
        report.completion_tokens += reply.completion_tokens
        outcome = ParseFailure(f"request failed: {reply.error.split(':')[0]}") if reply.error else parse(prompt, reply.text, task.count)
        if isinstance(outcome, ParseFailure):
            report.failed[outcome.reason] += 1
            return []
        report.parsed += 1
        if fewer := task.count - len(outcome):
            report.dropped["fewer written than asked for"] += fewer
        return [(written, task) for written in outcome]

    def _candidates(
        self, wanted: NegativeRequest, replies: Mapping[int, list[tuple[Written, Task]]], prompt: Prompt, maker: str
    ) -> list[Candidate]:
        """The candidates of one query, from all its replies, in the order of the requests."""
        found: dict[str, Candidate] = {}
        for written, task in (pair for _, pairs in sorted(replies.items()) for pair in pairs):
            same = same_words(written.text)
            reason = "written twice" if same in found else why_dropped(written.text, wanted)
            if reason:
                self.report.dropped[reason] += 1
                continue
            flags = flags_of(written.text)
            self.report.flagged.update(flags)
            note = note_of(prompt, self.model.name, task, written, flags)
            origin = Origin(self.name, maker, self.round, rank=len(found) + 1, note=note)
            found[same] = Candidate(wanted.query.id, Document(f"written:{fingerprint(written.text)}", written.text), (origin,))
        self.report.queries += 1
        self.report.queries_without += not found
        self.report.written += len(found)
        return list(found.values())


def note_of(prompt: Prompt, model: str, task: Task, written: Written, flags: Sequence[str]) -> str:
    """What the writer was told and what it thought, as JSON."""
    note = {"prompt": prompt.title, "model": model, "positive": task.positive_id, "attributes": dict(task.attributes)}
    optional = {"reasoning": written.reasoning, "flags": list(flags)}
    return json.dumps({**note, **{key: value for key, value in optional.items() if value}}, ensure_ascii=False, sort_keys=True)


def why_dropped(text: str, wanted: NegativeRequest) -> str:
    """Why a written text is no candidate, "" when it is one. Rules after CausalNeg's flags (mzhangzhicheng/CausalNeg).

    >>> from negatron.types import Query
    >>> wanted = NegativeRequest(Query("q", "why do ships float"), (Document("d", "The hull displaces water."),))
    >>> why_dropped("the hull  displaces water.", wanted), why_dropped("Boats are made of wood.", wanted)
    ('same as a positive', '')
    """
    same, query = same_words(text), same_words(wanted.query.text)
    if not any(character.isalnum() for character in same):
        return "no words"  # small models copy the dots of the form they are shown
    if any(same in {same_words(document.text), same_words(document.content)} for document in wanted.positives):
        return "same as a positive"
    quotable = len(query.split()) >= WORDS_THAT_MAKE_A_QUERY_A_QUOTATION
    return "contains the whole query" if same == query or (quotable and query in same) else ""


def flags_of(text: str) -> list[str]:
    """Remarks about a text that stays a candidate. Scripts without spaces are measured in characters: two count as a word."""
    words = max(len(text.split()), sum(character >= "\u2e80" for character in text) // 2)
    return [f"under {FEWEST_WORDS} words"] if words < FEWEST_WORDS else []

"""The nouns, frozen. Foreign shapes become these at the reader; inside, everybody receives the same value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """What is retrieved."""

    id: str
    text: str
    title: str = ""

    @property
    def content(self) -> str:
        """What every model and index reads of a document: title, one space, text (BEIR's way).

        >>> Document("d1", "Cells divide.", "Biology").content
        'Biology Cells divide.'
        """
        return f"{self.title} {self.text}".strip() if self.title else self.text


@dataclass(frozen=True, slots=True)
class Judgement:
    """One line of a qrels file. grade > 0: relevant; 0: judged and found not relevant."""

    query_id: str
    document_id: str
    grade: int


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """One line of a run. Higher scores are more relevant."""

    query_id: str
    document_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Origin:
    """Who proposed a candidate. `maker` is the fingerprint of the index, the weights, or the prompt and model; `rank` 1 is best.

    `score` is the source's own score, None where it has none; `note` carries what a writer was told (attributes, reflection).
    """

    source: str
    maker: str
    round: int = 0
    rank: int | None = None
    score: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document proposed as a negative of a query, not yet judged; one Origin for each source that found it.

    `teacher_score` is the score of (query, document) by the teacher that the positives were scored by too; None without a teacher.
    """

    query_id: str
    document: Document
    origins: tuple[Origin, ...]
    teacher_score: float | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that found it, in the order of `origins`."""
        return tuple(origin.source for origin in self.origins)


@dataclass(frozen=True, slots=True)
class Positive:
    """A known positive with its teacher score, without which no margin could be decided again."""

    document: Document
    teacher_score: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule decided, on which number, against which limit. A number is None where the rule compares texts or ids."""

    kept: bool
    rule: str
    measured: float | None = None
    limit: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate with the verdict of every rule that looked at it; kept and rejected alike stay on file."""

    candidate: Candidate
    verdicts: tuple[Verdict, ...] = ()

    @property
    def kept(self) -> bool:
        """True when every verdict keeps it: only then is it a negative."""
        return all(verdict.kept for verdict in self.verdicts)

    @property
    def spare(self) -> bool:
        """True when no filter rejects it and only a choice ("selection", "mix") left it out."""
        return all(verdict.kept for verdict in self.verdicts if verdict.rule not in CHOICES)


CHOICES = frozenset({"selection", "mix"})
"""Rules that choose among candidates no filter rejected; a later choice may decide otherwise."""


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """One query of a negatives folder: its known positives and everything that was proposed for it, in a fixed order."""

    query: Query
    positives: tuple[Positive, ...]
    judged: tuple[Judged, ...]


@dataclass(frozen=True, slots=True)
class Negative:
    """A candidate that survived every filter; `teacher_score` as in Candidate, None without a teacher."""

    document: Document
    origins: tuple[Origin, ...]
    teacher_score: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One (query, positive) pair with its own negatives; `known_positives` are the contents of all known positives of the query.

    `positive_score` is the teacher's score of (query, positive), None without a teacher. `weight` >= 0 multiplies the example's loss.
    """

    query: Query
    positive: Document
    negatives: tuple[Negative, ...] = ()
    known_positives: frozenset[str] = frozenset()
    stage: int = 0
    positive_score: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Score:
    """The value of a measure, such as `ndcg@10`, on one query."""

    measure: str
    query_id: str
    value: float


@dataclass(frozen=True, slots=True)
class NegativeRequest:
    """What a negative source is asked for: a query *with* its positives, since written negatives need them."""

    query: Query
    positives: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation with a language model."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a language model. `schema` is a JSON schema the reply shall follow, as JSON text; "" for none.

    The request's fingerprint (everything but `id`) with the model's name is its key in the ledger.
    """

    id: str
    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0
    schema: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one Request, matched by `request_id`, never by order. `error` is empty unless the request failed for good."""

    request_id: str
    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""

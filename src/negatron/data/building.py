"""From bare texts to a collection: ids from contents, equal texts merged, negatives kept as judged candidates.

Forms that hold texts without ids (pairs, triplets, FlagEmbedding's lines) all end here. A document's id is a hash of its title and
text, a query's a hash of its words, so that two files that hold the same text give it the same id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from negatron.data.collection import Collection
from negatron.errors import DataError
from negatron.identity import same_words
from negatron.types import Candidate, Document, Judged, JudgedQuery, Judgement, Origin, Positive, Query, Verdict

KNOWN_POSITIVE = "known positive"
"""The rule by which an imported negative is turned away that the same data calls a positive of the same query."""


def digest(*parts: str) -> str:
    """16 hex digits of the texts, told apart by their lengths."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:16]


def document_id(text: str, title: str = "") -> str:
    """The id of a document that came without one.

    >>> document_id("Yeast lifts the dough.")
    'd-ae40161a1c24b40d'
    """
    return f"d-{digest(title, text)}"


def query_id(text: str) -> str:
    """The id of a query that came without one: the same for all spellings that count as the same text."""
    return f"q-{digest(same_words(text))}"


@dataclass(frozen=True, slots=True)
class Imported:
    """What a reader gives: the collection, and the negatives that came with it, one JudgedQuery a query that has any."""

    collection: Collection
    judged: tuple[JudgedQuery, ...] = ()


@dataclass(slots=True)
class Builder:
    """Gathers queries, documents, positives and negatives in the order in which they come."""

    queries: dict[str, Query] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    grades: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    positive_scores: dict[tuple[str, str], float] = field(default_factory=dict)
    negatives: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def query(self, text: str, id_: str | None = None) -> str:
        """The id of a query, kept if it is new. Raises DataError for an id that has another text already."""
        id_ = query_id(text) if id_ is None else id_
        known = self.queries.setdefault(id_, Query(id_, text))
        if same_words(known.text) != same_words(text):
            raise DataError(f"query id {id_!r} stands for two texts: {known.text[:60]!r} and {text[:60]!r}")
        return id_

    def document(self, text: str, title: str = "", id_: str | None = None) -> str:
        """The id of a document, kept if it is new. Raises DataError for an id that has another text already."""
        id_ = document_id(text, title) if id_ is None else id_
        made = Document(id_, text, title)
        if self.documents.setdefault(id_, made) != made:
            raise DataError(f"document id {id_!r} stands for two texts: {self.documents[id_].content[:60]!r} and {made.content[:60]!r}")
        return id_

    def judge(self, query: str, document: str, grade: int = 1, *, split: str = "train", score: float | None = None) -> None:
        """Keeps a judgement, once. Raises DataError for a second grade of the same pair."""
        grades = self.grades.setdefault(split, {}).setdefault(query, {})
        if grades.setdefault(document, grade) != grade:
            raise DataError(f"query {query!r} and document {document!r} have the grades {grades[document]} and {grade}; keep one")
        if score is not None:
            self.positive_scores.setdefault((query, document), score)

    def negative(self, query: str, document: str, *, score: float | None = None) -> None:
        """Keeps a negative of a query, once."""
        self.negatives.setdefault(query, {}).setdefault(document, score)

    def finish(self, name: str, source: str) -> Imported:
        """The collection and the judged queries. A negative that is a known positive of its query stays on file, turned away."""
        rows = {
            split: tuple(Judgement(query, document, grade) for query, of in grades.items() for document, grade in of.items())
            for split, grades in self.grades.items()
        }
        collection = Collection(name, self.documents, self.queries, rows)
        positives: dict[str, dict[str, None]] = {}
        for judgements in rows.values():
            for row in judgements:
                if row.grade > 0:
                    positives.setdefault(row.query_id, {})[row.document_id] = None
        judged = tuple(self.judged_query(query, found, positives.get(query, {}), source) for query, found in self.negatives.items())
        return Imported(collection, judged)

    def judged_query(self, query: str, found: Mapping[str, float | None], positives: Mapping[str, None], source: str) -> JudgedQuery:
        """One query with its negatives, in the order of the file, each with rank and the source "imported"."""
        known = tuple(Positive(self.documents[document], self.positive_scores.get((query, document))) for document in positives)
        contents = {same_words(positive.document.content) for positive in known}
        judged = []
        for rank, (document, score) in enumerate(found.items(), 1):
            candidate = Candidate(query, self.documents[document], (Origin("imported", source, rank=rank),), score)
            wrong = document in positives or same_words(candidate.document.content) in contents
            judged.append(Judged(candidate, (Verdict(False, KNOWN_POSITIVE),) if wrong else ()))
        return JudgedQuery(self.queries[query], known, tuple(judged))

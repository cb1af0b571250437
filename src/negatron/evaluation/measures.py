"""Measures: pure functions of a run and of judgements.

In: a run (query id -> scored documents) and grades (query id -> document id -> grade). Out: the value of each measure on each *judged*
query, that is on each query with at least one grade > 0.

1. `judged_queries` says which queries count.
2. `ranked` puts the documents of a query in the one order in which they are measured.
3. pytrec_eval computes; `measure` gives every judged query without results the value 0.

What stays true: inputs come back unchanged; a measure asked for alone has the value it has in company; moving all scores by a constant
moves nothing (as long as float32 can still tell them apart); a document whose id equals the query's id is a document like any other.

**Order and ties.** trec_eval holds scores as float32 and ranks by score descending, then by document id *descending*. So does everything
here, which makes our cuts and our run files agree with trec_eval. (A `Searcher` breaks ties by id ascending: another convention, for
another purpose; measured is always in the order above.)

What it does not know: where a run came from, files, means over seeds, significance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from negatron.errors import DataError, SettingError, nearest
from negatron.types import ScoredDocument

Run = Mapping[str, Sequence[ScoredDocument]]
"""query id -> its scored documents, in any order."""

Grades = Mapping[str, Mapping[str, int]]
"""query id -> document id -> grade; > 0 is relevant, 0 and less is judged and not relevant."""

TREC_NAMES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "success": "success"}
"""Our name -> trec_eval's name of the measure with a cut. `mrr` is missing: trec_eval's recip_rank has no cut."""

TREC_NAMES_WITHOUT_CUT = {"ndcg": "ndcg", "map": "map", "mrr": "recip_rank"}
"""Our name -> trec_eval's name of the measure over the whole ranking."""

OTHER_NAMES = {"hit": "success", "p": "precision", "r": "recall", "rr": "mrr"}
"""Names from elsewhere that `Measure.parse` understands."""


@dataclass(frozen=True, slots=True, order=True)
class Measure:
    """A measure, with the number of documents it looks at: `Measure("ndcg", 10)` prints as `ndcg@10`, which parses back.

    `ndcg` (gain = grade, discount log2(rank + 1); Järvelin and Kekäläinen 2002, as trec_eval has it), `map`, `mrr`, `recall`,
    `precision`, `success` (1 when any relevant document is within the cut, else 0). `cut` None means the whole ranking.
    Raises SettingError for an unknown name, a cut below 1, or no cut where the measure needs one.

    >>> str(Measure("ndcg", 10)), Measure.parse("ndcg@10") == Measure("ndcg", 10)
    ('ndcg@10', True)
    """

    name: str
    cut: int | None = None

    def __post_init__(self) -> None:
        known = {*TREC_NAMES, *TREC_NAMES_WITHOUT_CUT}
        if self.name not in known:
            raise SettingError(f"there is no measure {self.name!r}{nearest(self.name, known)}")
        if self.cut is None and self.name not in TREC_NAMES_WITHOUT_CUT:
            raise SettingError(f"the measure {self.name} needs a number of documents: {self.name}@10")
        if self.cut is not None and self.cut < 1:
            raise SettingError(f"{self.name}@{self.cut}: expected at least one document")

    def __str__(self) -> str:
        return self.name if self.cut is None else f"{self.name}@{self.cut}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The measure that `text` names, in any case; also `hit@10`, `P@10`, `R@100`, `RR@10`. Raises SettingError."""
        match = re.fullmatch(r"([a-z]+)(?:@([0-9]+))?", text.strip().lower())
        if match is None:
            raise SettingError(f"{text!r} is not a measure; expected a name and a number of documents, such as ndcg@10")
        name, cut = match.groups()
        return cls(OTHER_NAMES.get(name, name), int(cut) if cut else None)


DEFAULT_MEASURES = (Measure("ndcg", 10), Measure("mrr", 10), Measure("recall", 10), Measure("recall", 100), Measure("map", 100))
"""The first is the one that comparisons and reports put forward: BEIR's main measure."""


def judged_queries(grades: Grades) -> tuple[tuple[str, ...], int]:
    """The queries that count, those with at least one grade > 0, in the order given; and how many others there are.

    >>> judged_queries({"q1": {"d1": 1}, "q2": {"d1": 0}})
    (('q1',), 1)
    """
    judged = tuple(query_id for query_id, of_query in grades.items() if any(grade > 0 for grade in of_query.values()))
    return judged, len(grades) - len(judged)


def ranked(documents: Iterable[ScoredDocument]) -> list[ScoredDocument]:
    """The documents in the order in which they are measured: float32 score descending, then document id descending.

    >>> [d.document_id for d in ranked([ScoredDocument("q", "a", 1.0), ScoredDocument("q", "b", 1.0), ScoredDocument("q", "c", 2.0)])]
    ['c', 'b', 'a']
    """
    found = list(documents)
    scores = np.asarray([document.score for document in found], dtype=np.float32).tolist()
    # Code points compare as their UTF-8 bytes do, so this is the order of trec_eval's strcmp.
    order = sorted(range(len(found)), key=lambda i: (scores[i], found[i].document_id), reverse=True)
    return [found[i] for i in order]


def measure(run: Run, grades: Grades, measures: Sequence[Measure] = DEFAULT_MEASURES) -> dict[Measure, dict[str, float]]:
    """For each measure, query id -> value: every judged query, in the order of `grades`; 0 where the run has nothing.

    Queries of the run that are not judged are ignored. Raises DataError for a document twice in one query's results, a score that is
    not a number, results filed under another query, or a grade that is no whole number.
    """
    judged, _ = judged_queries(grades)
    answered = [query_id for query_id in judged if run.get(query_id)]
    judgements = {query_id: whole_grades(query_id, grades[query_id]) for query_id in answered}
    scores = {query_id: checked_scores(query_id, run[query_id]) for query_id in answered}
    # Each request has its own key in the answer, so none can meet another's: `tests/invariants` measures together and alone.
    found = compute(judgements, scores, [one for one in measures if not needs_cut_run(one)])
    for cut in sorted({one.cut for one in measures if needs_cut_run(one) and one.cut is not None}):
        top = {query_id: top_scores(run[query_id], cut) for query_id in answered}
        found |= compute(judgements, top, [one for one in measures if needs_cut_run(one) and one.cut == cut])
    return {one: {query_id: found[one].get(query_id, 0.0) for query_id in judged} for one in measures}


def needs_cut_run(one: Measure) -> bool:
    """True for mrr@k, which is recip_rank on a run cut to k documents: `recip_rank.10` would silently be the uncut one."""
    return one.name == "mrr" and one.cut is not None


def compute(
    judgements: dict[str, dict[str, int]], scores: dict[str, dict[str, float]], measures: Sequence[Measure]
) -> dict[Measure, dict[str, float]]:
    """For each measure, query id -> value by pytrec_eval: the queries in `scores` and no other."""
    import pytrec_eval

    if not scores or not measures:
        return {one: {} for one in measures}
    found = pytrec_eval.RelevanceEvaluator(judgements, {trec_name(one) for one in measures}).evaluate(scores)
    return {one: {q: float(values[trec_name(one).replace(".", "_")]) for q, values in found.items()} for one in measures}


def trec_name(one: Measure) -> str:
    """trec_eval's name of a measure: `ndcg_cut.10`."""
    if one.name == "mrr" or one.cut is None:
        return TREC_NAMES_WITHOUT_CUT[one.name]
    return f"{TREC_NAMES[one.name]}.{one.cut}"


def top_scores(documents: Sequence[ScoredDocument], cut: int) -> dict[str, float]:
    """Id -> score of the first `cut` documents in the order of measuring."""
    return {document.document_id: float(document.score) for document in ranked(documents)[:cut]}


def checked_scores(query_id: str, documents: Sequence[ScoredDocument]) -> dict[str, float]:
    """Id -> score, once it is known that nothing is lost or made up on the way. Raises DataError."""
    scores = {document.document_id: float(document.score) for document in documents}
    if len(scores) < len(documents):
        ids = [document.document_id for document in documents]
        twice = next(document_id for document_id in ids if ids.count(document_id) > 1)
        raise DataError(f"query {query_id!r}: the run holds document {twice!r} more than once; keep one line of each document")
    for document in documents:
        if document.query_id != query_id:
            raise DataError(f"query {query_id!r}: holds a result of query {document.query_id!r}")
        if math.isnan(document.score):
            raise DataError(f"query {query_id!r}: the score of document {document.document_id!r} is not a number")
    return scores


def whole_grades(query_id: str, of_query: Mapping[str, int]) -> dict[str, int]:
    """Id -> grade as a plain int, as pytrec_eval wants it. Raises DataError where that would change the grade."""
    grades = {document_id: int(grade) for document_id, grade in of_query.items()}
    for document_id, grade in of_query.items():
        if grades[document_id] != grade:
            raise DataError(f"query {query_id!r}: the grade of document {document_id!r} is {grade!r}, expected a whole number")
    return grades


def mean_over_judged(values: Mapping[str, float], judged: Collection[str]) -> float:
    """Mean over every judged query; one that has no value counts 0. Raises DataError when no query is judged.

    >>> mean_over_judged({"q1": 1.0}, ["q1", "q2"])
    0.5
    """
    if not judged:
        raise DataError("no query has a document with a grade above 0, so there is nothing to measure; check the split's judgements")
    return math.fsum(values.get(query_id, 0.0) for query_id in judged) / len(judged)

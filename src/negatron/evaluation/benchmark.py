"""One evaluation: a run, its value on every judged query, and what it took, kept together in a folder.

In: a `Searcher` with queries, or a run; and the judgements. Out: an `Evaluation`, and a folder of three files:

- `run.trec`: `query_id Q0 document_id rank score tag`, rank from 1, in the order in which trec_eval ranks, scores exact in float32;
- `per_query.parquet`: `query_id, measure, value` (and `text` where the queries' texts were given);
- `scores.json`: the means and what they are means of. It is written last.

1. `search_run` asks the searcher for the judged queries and only for those.
2. `score_run` is the pure core: run + judgements -> values.
3. `write_evaluation` and `read_evaluation` are the edge.

What stays true: the means in `scores.json` are means of what stands in `per_query.parquet` (checked on reading); what is written and
read again is equal. What it does not know: models, other file formats of runs, significance.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from negatron.errors import DataError, SettingError, nearest
from negatron.evaluation.measures import DEFAULT_MEASURES, Grades, Measure, Run, judged_queries, mean_over_judged, measure, ranked
from negatron.identity import fingerprint
from negatron.seams import Searcher
from negatron.store import write_json, writing
from negatron.types import Query, ScoredDocument

SCORES = "scores.json"
RUN = "run.trec"
PER_QUERY = "per_query.parquet"
DEPTH = 100
"""Documents searched for each query; enough for recall@100 and map@100."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The values of measures on every judged query of one split.

    `fingerprint` is that of the judgements: only evaluations against the same judgements can be compared query by query.
    `seconds` holds what was timed, under its name; `versions` the packages whose version could move a number.
    """

    model: str
    data: str
    split: str
    per_query: Mapping[Measure, Mapping[str, float]]
    queries_without_positive: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def query_ids(self) -> tuple[str, ...]:
        """The judged queries, the same for every measure."""
        return tuple(next(iter(self.per_query.values()), {}))

    @property
    def queries(self) -> int:
        """How many queries the means are over."""
        return len(self.query_ids)

    @property
    def means(self) -> dict[Measure, float]:
        """Each measure's mean over the judged queries."""
        return {one: mean_over_judged(values, self.query_ids) for one, values in self.per_query.items()}

    def of(self, one: Measure | str) -> Mapping[str, float]:
        """Query id -> value of one measure. Raises SettingError that names the measures there are."""
        wanted = Measure.parse(one) if isinstance(one, str) else one
        if wanted not in self.per_query:
            raise SettingError(f"{self.model} was not measured by {wanted}{nearest(str(wanted), map(str, self.per_query))}")
        return self.per_query[wanted]

    def as_json(self) -> dict[str, Any]:
        """What stands in `scores.json`."""
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "queries": self.queries,
            "queries_without_positive": self.queries_without_positive,
            "measures": {str(one): value for one, value in self.means.items()},
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "fingerprint": self.fingerprint,
        }

    def __str__(self) -> str:
        left_out = f", {self.queries_without_positive:,} without a positive left out" if self.queries_without_positive else ""
        head = f"{self.model} on {self.data}, {self.split}: {self.queries:,} queries{left_out}"
        return "\n".join([head, *(f"  {one!s:<14}{value:.4f}" for one, value in self.means.items())])


def score_run(
    run: Run,
    grades: Grades,
    measures: Sequence[Measure] = DEFAULT_MEASURES,
    *,
    model: str = "run",
    data: str = "data",
    split: str = "test",
    seconds: Mapping[str, float] | None = None,
) -> Evaluation:
    """Measures a run against judgements. Raises DataError when no query is judged, or the run is damaged (`measures.measure`)."""
    judged, without_positive = judged_queries(grades)
    mean_over_judged({}, judged)  # raises when there is nothing to measure
    began = time.perf_counter()
    per_query = measure(run, grades, measures)
    timed = {**(seconds or {}), "measure": round(time.perf_counter() - began, 3)}
    judgements = {query_id: grades[query_id] for query_id in judged}
    same_judgements = fingerprint({q: {d: int(g) for d, g in of_query.items()} for q, of_query in judgements.items()})
    return Evaluation(model, data, split, per_query, without_positive, timed, versions(), same_judgements)


def versions() -> dict[str, str]:
    """Versions of what could move a measured number."""
    packages = ("negatron", "pytrec_eval-terrier", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def search_run(
    searcher: Searcher, queries: Mapping[str, Query], grades: Grades, *, depth: int = DEPTH
) -> dict[str, tuple[ScoredDocument, ...]]:
    """The searcher's `depth` best documents for every judged query. Raises DataError for a judged query that is not in `queries`."""
    judged, _ = judged_queries(grades)
    for query_id in judged:
        if query_id not in queries:
            raise DataError(f"the judgements name query {query_id!r}, which is not among the {len(queries):,} queries")
    asked = [queries[query_id] for query_id in judged]
    return {query.id: tuple(found) for query, found in zip(asked, searcher.search(asked, depth), strict=True)}


def evaluate(
    searcher: Searcher,
    queries: Mapping[str, Query],
    grades: Grades,
    measures: Sequence[Measure] = DEFAULT_MEASURES,
    *,
    depth: int = DEPTH,
    model: str = "model",
    data: str = "data",
    split: str = "test",
) -> tuple[dict[str, tuple[ScoredDocument, ...]], Evaluation]:
    """Searches for the judged queries and measures what comes back: the run, and its Evaluation.

    Raises SettingError when a measure looks at more documents than are searched for, which would only look like a lower value.
    """
    for one in measures:
        if one.cut is not None and one.cut > depth:
            raise SettingError(f"{one} looks at {one.cut} documents of a query, but only {depth} are searched; set depth = {one.cut}")
    began = time.perf_counter()
    run = search_run(searcher, queries, grades, depth=depth)
    seconds = {"search": round(time.perf_counter() - began, 3)}
    return run, score_run(run, grades, measures, model=model, data=data, split=split, seconds=seconds)


def fuse(
    runs: Sequence[Run], *, k: float = 60, weights: Sequence[float] | None = None, depth: int = DEPTH
) -> dict[str, tuple[ScoredDocument, ...]]:
    """Reciprocal rank fusion: a document's score is the sum over runs of weight / (k + rank), 0 from a run that lacks it.

    Ranks, from 1, are in the order of measuring; at most `depth` documents of each query remain. Source: Cormack, Clarke and Büttcher,
    SIGIR 2009, with k = 60 as there. Raises SettingError when the number of weights is not the number of runs, or k is negative.

    >>> bm25 = {"q": [ScoredDocument("q", "a", 9.0), ScoredDocument("q", "b", 8.0)]}
    >>> dense = {"q": [ScoredDocument("q", "b", 0.9), ScoredDocument("q", "c", 0.8)]}
    >>> [(d.document_id, round(d.score, 4)) for d in fuse([bm25, dense])["q"]]
    [('b', 0.0325), ('a', 0.0164), ('c', 0.0161)]
    """
    shares = [1.0] * len(runs) if weights is None else list(weights)
    if len(shares) != len(runs) or not runs:
        raise SettingError(f"{len(runs)} runs and {len(shares)} weights: expected at least one run, and one weight a run")
    if k < 0:
        raise SettingError(f"k = {k}: expected 0 or more")
    fused: dict[str, tuple[ScoredDocument, ...]] = {}
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        parts: dict[str, list[float]] = {}
        for run, share in zip(runs, shares, strict=True):
            for rank, document in enumerate(ranked(run.get(query_id, ())), start=1):
                parts.setdefault(document.document_id, []).append(share / (k + rank))
        # fsum: the order of the runs must not decide a tie by its rounding.
        found = ranked(ScoredDocument(query_id, document_id, math.fsum(part)) for document_id, part in parts.items())
        fused[query_id] = tuple(found[:depth])
    return fused


def write_run(run: Run, path: Path, *, tag: str = "negatron") -> None:
    """Writes a TREC run, whole or not at all. Raises DataError for an id that such a file cannot hold (a tab or line break in it).

    Columns are separated by spaces; by tabs in the lines whose ids contain white space, which `read_run` reads again.
    """
    tag = "-".join(tag.split()) or "negatron"
    with writing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        for query_id, documents in run.items():
            for rank, document in enumerate(ranked(documents), start=1):
                ids = (query_id, document.document_id)
                if any(mark in one for one in ids for mark in "\t\n\r"):
                    place = f"query {query_id!r}, document {document.document_id!r}"
                    raise DataError(f"{place}: a run file cannot hold tabs or line breaks in ids")
                separator = " " if all(one.split() == [one] for one in ids) else "\t"
                score = f"{np.float32(document.score):.9g}"  # nine digits name every float32
                file.write(separator.join((query_id, "Q0", document.document_id, str(rank), score, tag)) + "\n")


def read_run(path: Path) -> dict[str, tuple[ScoredDocument, ...]]:
    """Reads a TREC run: query id -> its documents in the order of measuring, whatever the file's order and ranks.

    Raises DataError, with the line, for another number of columns, a score that is not a number, or a document twice in a query.
    """
    found: dict[str, dict[str, ScoredDocument]] = {}
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = parse_run_line(line.rstrip("\r\n"), path, number)
                    if row.document_id in found.setdefault(row.query_id, {}):
                        raise DataError(f"document {row.document_id!r} stands twice in query {row.query_id!r}; keep one line", path, number)
                    found[row.query_id][row.document_id] = row
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text ({error.reason} at byte {error.start})", path) from error
    return {query_id: tuple(ranked(documents.values())) for query_id, documents in found.items()}


def parse_run_line(line: str, path: Path, number: int) -> ScoredDocument:
    """One line of a TREC run. Raises DataError with file and line."""
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) != 6:
        raise DataError(f"{len(columns)} columns, expected 6 (query-id Q0 document-id rank score tag)", path, number)
    try:
        score = float(columns[4])
    except ValueError:
        score = math.nan
    if math.isnan(score):
        raise DataError(f"the score is {columns[4]!r}, expected a number", path, number)
    return ScoredDocument(columns[0], columns[2], score)


def write_evaluation(folder: Path, run: Run, evaluation: Evaluation, *, texts: Mapping[str, str] | None = None) -> None:
    """Writes run.trec, per_query.parquet and, last, scores.json into `folder`. `texts`: query id -> its text, for people who look."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    write_run(run, folder / RUN, tag=evaluation.model)
    rows = [(query_id, str(one), value) for one, values in evaluation.per_query.items() for query_id, value in values.items()]
    columns: dict[str, Any] = {
        "query_id": pa.array([row[0] for row in rows], pa.string()),
        "measure": pa.array([row[1] for row in rows], pa.string()),
        "value": pa.array([row[2] for row in rows], pa.float64()),
    }
    if texts is not None:
        columns["text"] = pa.array([texts.get(row[0]) for row in rows], pa.string())
    with writing(folder / PER_QUERY) as beside:
        pq.write_table(pa.table(columns), beside)
    write_json(folder / SCORES, evaluation.as_json())


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in a folder that `write_evaluation` wrote.

    Raises DataError when a file is missing or damaged, or when the means are not those of the values of the queries.
    """
    path = folder / SCORES
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        stated = {Measure.parse(name): float(value) for name, value in raw["measures"].items()}
        evaluation = Evaluation(
            raw["model"],
            raw["data"],
            raw["split"],
            read_per_query(folder / PER_QUERY, list(stated)),
            raw.get("queries_without_positive", 0),
            raw["seconds"],
            raw["versions"],
            raw.get("fingerprint", ""),
        )
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); give a folder that `negatron evaluate` wrote", path) from error
    except (ValueError, KeyError, TypeError, AttributeError, SettingError) as error:
        raise DataError(f"not the scores of an evaluation ({type(error).__name__}: {error}); evaluate again", path) from error
    if evaluation.queries != raw["queries"]:
        raise DataError(f"is over {raw['queries']} queries, but {PER_QUERY} holds {evaluation.queries}; evaluate again", path)
    for one, mean in evaluation.means.items():
        if abs(mean - stated[one]) > 1e-9:
            raise DataError(f"{one} = {stated[one]!r} is not the mean {mean!r} of {PER_QUERY}; evaluate again", path)
    return evaluation


def read_per_query(path: Path, measures: Sequence[Measure]) -> dict[Measure, dict[str, float]]:
    """For each measure, query id -> value, in the order of the file.

    Raises DataError when the file is missing or damaged, holds other measures, or not every query under each of them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["query_id", "measure", "value"]).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read ({error}); evaluate again", path) from error
    values: dict[Measure, dict[str, float]] = {}
    for query_id, name, value in zip(table["query_id"], table["measure"], table["value"], strict=True):
        values.setdefault(Measure.parse(name), {})[query_id] = value
    if len({frozenset(of_measure) for of_measure in values.values()}) > 1 or set(values) != set(measures):
        raise DataError(f"does not hold every query under every measure of {SCORES}; evaluate again", path)
    return values

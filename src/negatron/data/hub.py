"""Hugging Face data sets in the form of MTEB: `corpus` (_id, title, text), `queries` (_id, text), judgements (query-id, corpus-id, score).

`read_hub` asks the hub; `write_saved` writes Parquet files in that form; `read_saved` reads a folder with a part of each name: saved by
`save_to_disk`, or Parquet files whose names begin with their split, as the hub itself stores them. Ids that a table holds as numbers become
their decimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from negatron import store
from negatron.data.beir import SPLIT_ORDER, Keeper
from negatron.data.collection import Collection
from negatron.data.lines import Findings, describe
from negatron.errors import DataError, MissingExtra, NegatronError
from negatron.types import Document, Judgement, Query

Row = Mapping[str, Any]
Splits = Mapping[str, Iterable[Row]]
JUDGEMENT_PARTS = ("default", "qrels")
"""Names of the part that holds the judgements."""
SPLIT_OF_FILE = re.compile(r"([A-Za-z_]+?)(-\d+-of-\d+)?\.parquet")


def read_hub(hub_name: str, *, name: str | None = None) -> Collection:
    """The data set `owner/name` of the hub: its parts corpus, queries and default (or `owner/name-qrels`, as BEIR's own are stored).

    Raises MissingExtra without the package datasets, NegatronError when the hub cannot be reached or has no such set.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "train") from error
    try:
        corpus, queries = datasets.load_dataset(hub_name, "corpus"), datasets.load_dataset(hub_name, "queries")
        if "default" in datasets.get_dataset_config_names(hub_name):
            judgements = datasets.load_dataset(hub_name, "default")
        else:
            judgements = datasets.load_dataset(f"{hub_name}-qrels")
    except (OSError, ValueError) as error:  # no network, unknown name, unknown part: the package says which
        raise NegatronError(f"the Hugging Face data set {hub_name} cannot be had: {error}") from error
    return collected(name or hub_name, corpus, queries, judgements, Path(hub_name))


def read_saved(folder: Path) -> Collection:
    """The data set in a folder with the parts corpus, queries and default (or qrels). Raises DataError for what is missing or damaged."""
    judgements = next((folder / part for part in JUDGEMENT_PARTS if (folder / part).exists()), None)
    if judgements is None or not (folder / "queries").exists():
        missing = "queries" if judgements is not None else " or ".join(JUDGEMENT_PARTS)
        raise DataError(f"has a part corpus but no part {missing}; expected corpus, queries and default", folder)
    return collected(folder.resolve().name, part(folder / "corpus"), part(folder / "queries"), part(judgements), folder)


def write_saved(collection: Collection, out: Path) -> Path:
    """Writes a collection as Parquet in the parts corpus, queries and default, whole or not at all: `read_saved` gives it back.

    The folder opens with `datasets.load_dataset(str(out), data_dir=...)` and can be pushed to the hub as it is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, dict[str, list[Any]]] = {
        "corpus/corpus": {
            "_id": [d.id for d in collection.documents.values()],
            "title": [d.title for d in collection.documents.values()],
            "text": [d.text for d in collection.documents.values()],
        },
        "queries/queries": {
            "_id": [q.id for q in collection.queries.values()],
            "text": [q.text for q in collection.queries.values()],
        },
        **{
            f"default/{split}": {
                "query-id": [row.query_id for row in rows],
                "corpus-id": [row.document_id for row in rows],
                "score": [row.grade for row in rows],
            }
            for split, rows in collection.judgements.items()
        },
    }
    with store.begin(out, kind="data", inputs={"data": collection.fingerprint, "form": "hub"}) as work:
        if work.finished is None:
            for name, values in columns.items():
                path = work.path / f"{name}.parquet"
                path.parent.mkdir(exist_ok=True)
                types = [pa.int64() if column == "score" else pa.string() for column in values]
                pq.write_table(pa.table([pa.array(v, t) for v, t in zip(values.values(), types, strict=True)], names=list(values)), path)
            work.finish()
    return work.out


def part(folder: Path) -> Splits:
    """The splits of one part. A data set saved without splits is called by the part's own name."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            import datasets
        except ImportError as error:
            raise MissingExtra("datasets", "train") from error
        loaded = datasets.load_from_disk(str(folder))
        return loaded if isinstance(loaded, datasets.DatasetDict) else {folder.name: loaded}
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        match = SPLIT_OF_FILE.fullmatch(path.name)
        files.setdefault(match.group(1) if match else path.stem, []).append(path)
    if not files:
        raise DataError("holds neither a saved data set nor .parquet files", folder)
    return {split: rows_of(paths) for split, paths in files.items()}


def rows_of(paths: Iterable[Path]) -> Iterable[Row]:
    """The rows of Parquet files, one after another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"not Parquet: {error}", path) from error


def collected(name: str, corpus: Splits, queries: Splits, judgements: Splits, place: Path) -> Collection:
    """A collection from rows. Raises DataError with the first five damages, each with its part and row (from 1)."""
    keeper, findings = Keeper(), Findings()
    for number, row in numbered(corpus):
        if texts := checked(row, ("_id", "text"), findings, place / "corpus", number, keeper.documents):
            keeper.document(Document(texts["_id"], texts["text"], row.get("title") or ""))
    for number, row in numbered(queries):
        if texts := checked(row, ("_id", "text"), findings, place / "queries", number, keeper.queries):
            keeper.query(Query(texts["_id"], texts["text"]))
    for split in sorted(judgements, key=lambda split: (SPLIT_ORDER.get(split, len(SPLIT_ORDER)), split)):
        seen: dict[tuple[str, str], int] = {}
        for number, row in enumerate(judgements[split], 1):
            found = judgement(row, keeper, findings, place / split, number)
            if found is None:
                continue
            grade = seen.get((found.query_id, found.document_id))
            if grade is None:
                seen[found.query_id, found.document_id] = found.grade
                keeper.judgement(split, found)
            elif grade != found.grade:
                findings.damage(place / split, number, f"{found.query_id!r} and {found.document_id!r} have two grades; keep one")
    if not keeper.rows and not findings.damages:
        findings.damage(place, None, "holds no judgements")
    findings.refuse()
    return keeper.collection(name)


def numbered(splits: Splits) -> Iterable[tuple[int, Row]]:
    """The rows of all splits with their number, from 1."""
    return enumerate((row for rows in splits.values() for row in rows), 1)


def checked(
    row: Row, columns: tuple[str, str], findings: Findings, place: Path, number: int, seen: Mapping[str, object]
) -> dict[str, str] | None:
    """Id and text of a row; None, and the damage reported, where one is missing or the id is doubled."""
    texts = {column: as_id(row.get(column)) if column == columns[0] else row.get(column) for column in columns}
    for column, value in texts.items():
        if not isinstance(value, str) or (column == columns[0] and not value):
            findings.damage(place, number, f"{column!r} is {describe(value)}, expected a text; found the columns {', '.join(row)}")
            return None
    if texts[columns[0]] in seen:
        findings.damage(place, number, f"the id {texts[columns[0]]!r} is doubled; ids must be unique")
        return None
    return {column: str(value) for column, value in texts.items()}


def as_id(value: object) -> object:
    """An id as text: whole numbers as their digits, all else as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def judgement(row: Row, keeper: Keeper, findings: Findings, place: Path, number: int) -> Judgement | None:
    """One judgement; None, and the damage reported, where something is wrong with it."""
    query, document, score = as_id(row.get("query-id")), as_id(row.get("corpus-id")), row.get("score")
    if not isinstance(query, str) or query not in keeper.queries:
        findings.damage(place, number, f"query {query!r} is not among the queries")
    elif not isinstance(document, str) or document not in keeper.documents:
        findings.damage(place, number, f"document {document!r} is not in the corpus")
    elif not isinstance(score, int | float) or not float(score).is_integer():
        findings.damage(place, number, f"grade {score!r} is no whole number")
    else:
        return Judgement(query, document, int(score))
    return None

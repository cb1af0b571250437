"""A result has the same type whatever the data (row 14 of the silent errors); a value built with defaults survives its file (row 15)."""

from __future__ import annotations

from pathlib import Path

import pytest

from negatron.identity import stream
from negatron.negatives.filters import FilterSettings, chain, judge
from negatron.negatives.mining import select
from negatron.negatives.records import Negatives, write_negatives
from negatron.store import begin
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query

QUERY = Query("q", "how do cells divide")
POSITIVES = (Positive(Document("p", "Mitosis splits the nucleus first.")),)


def candidate(id_: str, text: str) -> Candidate:
    return Candidate("q", Document(id_, text), (Origin("bm25", "m"),))


@pytest.mark.parametrize(
    "candidates",
    [[], [candidate("p", "Mitosis splits the nucleus first.")], [candidate("a", "Stars shine.")]],
    ids=["nothing proposed", "nothing left", "one left"],
)
def test_the_types_of_a_result_do_not_depend_on_the_data(candidates: list[Candidate]) -> None:
    made = judge(chain(FilterSettings(relative_margin=None)), QUERY, POSITIVES, candidates)
    assert type(made) is tuple and all(type(judged) is Judged for judged in made)
    item = select(JudgedQuery(QUERY, POSITIVES, made), 3, "top", stream(0))
    assert type(item) is JudgedQuery and type(item.judged) is tuple and all(type(judged) is Judged for judged in item.judged)


def test_a_value_built_with_defaults_round_trips_through_its_file(tmp_path: Path) -> None:
    plain = JudgedQuery(QUERY, POSITIVES, (Judged(candidate("a", "Stars shine.")),))
    with begin(tmp_path / "neg", kind="negatives", inputs={}) as work:
        work.finish(summary=write_negatives(work.path, [plain]).as_json())
    assert list(Negatives.open(tmp_path / "neg")) == [plain]

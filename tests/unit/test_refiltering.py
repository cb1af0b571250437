from __future__ import annotations

from pathlib import Path

from negatron.negatives.filters import FilterSettings, chain, judge
from negatron.negatives.records import Negatives, write_negatives
from negatron.store import begin
from negatron.types import Candidate, Document, JudgedQuery, Origin, Positive, Query
from negatron.verbs.negatives import filter_negatives


def mined(folder: Path, settings: FilterSettings, negatives: int = 1) -> Negatives:
    """A folder as `mine` leaves it: one query, positive at 0.8, candidates at 0.7, 0.5 and 0.3."""
    query, positives = Query("q", "north"), (Positive(Document("p", "the answer"), 0.8),)
    texts = {"a": ("stars and their light", 0.7), "b": ("bread and its yeast", 0.5), "c": ("ships and the water", 0.3)}
    candidates = [
        Candidate("q", Document(id_, text), (Origin("dense", "m", rank=n),), score)
        for n, (id_, (text, score)) in enumerate(texts.items(), 1)
    ]
    inputs = {"settings": {**settings.as_json(), "negatives": negatives}}
    with begin(folder, kind="negatives", inputs=inputs) as work:
        summary = write_negatives(work.path, [JudgedQuery(query, positives, judge(chain(settings), query, positives, candidates))])
        work.finish(summary=summary.as_json())
    return Negatives.open(folder)


def kept(negatives: Negatives) -> list[str]:
    return [judged.candidate.document.id for judged in negatives.find("q").judged if judged.kept]


def test_what_is_not_given_stays_as_the_folder_was_made(tmp_path: Path) -> None:
    strict = mined(tmp_path / "strict", FilterSettings(relative_margin=0.2))  # limit 0.64
    assert kept(filter_negatives(strict, out=tmp_path / "more", negatives=5)) == ["b", "c"]
    assert kept(filter_negatives(strict, out=tmp_path / "looser", relative_margin=0.05)) == ["a"]  # still one negative


def test_margins_that_were_off_stay_off_and_can_be_put_on(tmp_path: Path) -> None:
    free = mined(tmp_path / "free", FilterSettings(relative_margin=None))
    assert kept(filter_negatives(free, out=tmp_path / "more", negatives=5)) == ["a", "b", "c"]
    assert kept(filter_negatives(free, out=tmp_path / "on", negatives=5, absolute_margin=0.2)) == ["b", "c"]

"""Mixing by examples small enough to check by hand."""

from __future__ import annotations

import pytest

from negatron.errors import NegatronError, SettingError
from negatron.identity import stream
from negatron.negatives.mixing import MixReport, MixSettings, choose, merged, mix, quota, together
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query, Verdict

OUT = Verdict(False, "relative margin", 0.9, 0.8)


def candidate(source: str, rank: int, *verdicts: Verdict, text: str = "", query_id: str = "q") -> Judged:
    name = f"{source}-{rank}"
    return Judged(Candidate(query_id, Document(name, text or f"text of {name}"), (Origin(source, "maker", rank=rank),)), verdicts)


def record(*judged: Judged, query_id: str = "q", text: str = "why", positives: tuple[Positive, ...] = ()) -> JudgedQuery:
    return JudgedQuery(Query(query_id, text), positives, judged)


def names(item: JudgedQuery) -> list[str]:
    return [judged.candidate.document.id for judged in item.judged if judged.kept]


def mixed(item: JudgedQuery, report: MixReport | None = None, **settings: object) -> JudgedQuery:
    return next(mix([item], MixSettings.checked(settings), 0, report))


def test_a_whole_quota_needs_no_luck() -> None:
    assert {quota(6, 0.5, stream(n)) for n in range(50)} == {(2, 4)}
    assert {quota(3, 0.5, stream(n)) for n in range(50)} == {(1, 2)}, "SyNeg's figure 1"
    assert {quota(4, 0.0, stream(n)) for n in range(50)} == {(0, 4)}
    assert {quota(4, 3.0, stream(n)) for n in range(50)} == {(3, 1)}


def test_a_fraction_is_rounded_to_one_of_its_neighbours() -> None:
    assert {quota(5, 0.7, stream(n)) for n in range(50)} == {(2, 3), (3, 2)}  # 5 * 0.7 / 1.7 = 2.06


def test_the_best_of_each_kind_are_kept_and_the_others_stay_on_file() -> None:
    everything = [*(candidate("bm25", n) for n in (1, 2, 3, 4, 5)), *(candidate("synthetic", n) for n in (1, 2, 3))]
    item = mixed(record(*everything), negatives=6, ratio=0.5)
    assert names(item) == ["bm25-1", "bm25-2", "bm25-3", "bm25-4", "synthetic-1", "synthetic-2"]
    assert [judged.candidate for judged in item.judged] == [judged.candidate for judged in everything]
    assert item.judged[1].verdicts == (Verdict(True, "mix", 2.0, 4.0, "retrieved"),)
    assert item.judged[-1].verdicts == (Verdict(False, "mix", None, 2.0, "synthetic"),)


def test_what_a_filter_rejects_is_never_chosen_and_carries_no_choice() -> None:
    item = mixed(record(candidate("bm25", 1, OUT), candidate("bm25", 2), candidate("synthetic", 1, OUT)), negatives=2, ratio=1.0)
    assert names(item) == ["bm25-2"] and item.judged[0].verdicts == (OUT,)


def test_an_earlier_choice_is_decided_again() -> None:
    kept, left = Verdict(True, "selection", 1.0, 1.0), Verdict(False, "selection", 2.0, 1.0)
    item = mixed(record(candidate("bm25", 1, kept), candidate("bm25", 2, left)), negatives=2, ratio=0.0)
    assert names(item) == ["bm25-1", "bm25-2"]
    again = mixed(item, negatives=1, ratio=0.0)
    assert names(again) == ["bm25-1"] and [v.rule for v in again.judged[1].verdicts] == ["mix"]


def test_sources_of_a_kind_take_turns_whatever_their_ranks() -> None:
    item = record(*(candidate("bm25", n) for n in (1, 2, 3)), *(candidate("dense", n) for n in (30, 31)))
    assert names(mixed(item, negatives=4, ratio=0.0)) == ["bm25-1", "bm25-2", "dense-30", "dense-31"]
    firsts = {names(next(mix([item], MixSettings(negatives=1, ratio=0.0), seed)))[0] for seed in range(30)}
    assert firsts == {"bm25-1", "dense-30"}, "which source goes first is drawn, else one would always win the odd place"


def test_a_gap_is_filled_or_kept_and_reported() -> None:
    item = record(*(candidate("bm25", n) for n in (1, 2, 3, 4)), candidate("synthetic", 1))
    report = MixReport()
    assert len(names(mixed(item, report, negatives=4, ratio=1.0))) == 4
    assert (report.chosen["synthetic"], report.chosen["retrieved"], report.short["synthetic"], report.queries_short) == (1, 3, 1, 0)
    assert report.ratio == pytest.approx(1 / 3) and report.wanted_ratio == 1.0
    kept = MixReport()
    assert len(names(mixed(item, kept, negatives=4, ratio=1.0, when_short="keep"))) == 3
    assert (kept.chosen["retrieved"], kept.short["synthetic"], kept.queries_short) == (2, 1, 1)
    assert "not there: 1 synthetic" in str(kept) and "0.500, wanted 1.000" in str(kept)


def test_pool_mode_gives_a_query_one_kind_only() -> None:
    def item(number: int) -> JudgedQuery:
        own = [candidate(source, n, query_id=f"q{number}") for source in ("bm25", "synthetic") for n in (1, 2, 3)]
        return record(*own, query_id=f"q{number}")

    report = MixReport()
    results = list(mix(map(item, range(400)), MixSettings(mode="pool", ratio=1.0, negatives=3), 0, report))
    kinds = [{name.split("-")[0] for name in names(result)} for result in results]
    assert {frozenset(kind) for kind in kinds} == {frozenset({"bm25"}), frozenset({"synthetic"})}
    assert 150 < sum(kind == {"synthetic"} for kind in kinds) < 250  # 200 expected, sigma 10
    assert report.chosen["synthetic"] + report.chosen["retrieved"] == 1200
    both = list(mix(map(item, range(20)), MixSettings(mode="instance", ratio=0.5, negatives=3), 0))
    assert all({name.split("-")[0] for name in names(result)} == {"bm25", "synthetic"} for result in both)


def test_pure_mode_takes_written_ones_alone() -> None:
    report = MixReport()
    item = record(candidate("bm25", 1), candidate("synthetic", 1), candidate("synthetic:phi", 1))
    assert names(mixed(item, report, mode="pure", negatives=5)) == ["synthetic-1", "synthetic:phi-1"]
    assert report.wanted_ratio is None and report.ratio is None and report.short["synthetic"] == 3
    assert report.sources == {"synthetic": 1, "synthetic:phi": 1}
    empty = MixReport()
    assert names(mixed(record(candidate("bm25", 1)), empty, mode="pure")) == [] and empty.queries_without == 1


def test_settings_that_a_mode_cannot_honour_are_refused() -> None:
    with pytest.raises(SettingError, match="no effect in pure mode"):
        MixSettings.checked({"mode": "pure", "ratio": 0.5})
    with pytest.raises(SettingError, match="pool mode excludes"):
        MixSettings.checked({"mode": "pool", "when_short": "fill"})
    MixSettings.checked({"mode": "pool", "when_short": "keep"})


def test_the_same_text_from_two_folders_is_one_candidate_with_both_origins() -> None:
    one = record(candidate("bm25", 3, text="The  same text."), positives=(Positive(Document("p1", "yes")),))
    other = record(candidate("synthetic", 1, text="the same TEXT."), positives=(Positive(Document("p2", "yes too")),))
    item = merged([one, other])
    assert [judged.candidate.sources for judged in item.judged] == [("bm25", "synthetic")]
    assert [positive.document.id for positive in item.positives] == ["p1", "p2"]


def test_what_one_folder_rejects_stays_rejected() -> None:
    item = merged([record(candidate("bm25", 1)), record(candidate("bm25", 1, OUT))])
    assert len(item.judged) == 1 and not item.judged[0].spare and len(item.judged[0].candidate.origins) == 1


def test_a_positive_of_one_folder_is_no_negative_of_another() -> None:
    same_text = candidate("bm25", 1, text="yes")
    one = record(same_text, candidate("bm25", 2))
    other = record(positives=(Positive(Document("p", "YES")), Positive(Document("bm25-2", "the positive by its id"))))
    item = merged([one, other])
    assert [judged.verdicts[-1].rule for judged in item.judged] == ["known positive"] * 2
    assert names(mixed(item, negatives=2, ratio=0.0)) == []


def test_folders_of_different_data_sets_are_refused() -> None:
    with pytest.raises(NegatronError, match="query q reads 'why' in one folder and 'how' in another"):
        merged([record(text="why"), record(text="how")])


def test_folders_are_read_together_in_any_order_and_no_query_is_lost() -> None:
    def folder(source: str, *query_ids: str) -> list[JudgedQuery]:
        return [record(candidate(source, 1, query_id=name), query_id=name) for name in query_ids]

    found = list(together(folder("bm25", "a", "b", "c"), folder("dense", "c", "d", "a"), folder("synthetic", "e", "b", "d")))
    assert [(item.query.id, [source for j in item.judged for source in j.candidate.sources]) for item in found] == [
        ("a", ["bm25", "dense"]),
        ("b", ["bm25", "synthetic"]),
        ("c", ["bm25", "dense"]),
        ("d", ["dense", "synthetic"]),
        ("e", ["synthetic"]),
    ]
    for twice in ([folder("bm25", "a", "a")], [folder("bm25", "b"), folder("dense", "a", "b", "a")]):
        with pytest.raises(NegatronError, match="comes twice"):
            list(together(*twice))


def test_choosing_more_than_there_is_gives_what_there_is() -> None:
    judged = [candidate("bm25", 1), candidate("synthetic", 1)]
    assert choose(judged, {"synthetic": 5, "retrieved": 5}, stream(0)) == {"synthetic": (1,), "retrieved": (0,)}
    assert choose([], {"synthetic": 5}, stream(0), fill=True) == {"synthetic": (), "retrieved": ()}

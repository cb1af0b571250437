"""Written candidates: planned from seeds, asked for through a real batch file, counted in full."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from negatron.errors import NegatronError, SettingError
from negatron.models.batch_files import BatchReplies, export_batch
from negatron.models.ledger import LedgeredModel
from negatron.negatives.synthesis import SynthesisSettings, SyntheticSource, estimate, plan
from negatron.types import Document, NegativeRequest, Query

WANTED = [
    NegativeRequest(Query("q1", "why do ships float"), (Document("d1", "The hull displaces water.", "Ships"), Document("d2", "Buoyancy."))),
    NegativeRequest(Query("q2", "how do cells divide"), (Document("d3", "Mitosis splits the nucleus."),)),
    NegativeRequest(Query("q3", "stars"), (Document("d4", "Hydrogen fuses to helium."),)),
]
LONG = "This is a text of more than eight words about {}."
SETTINGS = SynthesisSettings(prompt="drg.v1")


def written(*texts: str) -> str:
    return json.dumps({"hard_negatives": [{"text": text} for text in texts]})


def answering(folder: Path, replies: Sequence[str], settings: SynthesisSettings = SETTINGS, seed: int = 0) -> BatchReplies:
    """A model that answers the requests of the plan for WANTED, in order, through a batch file in reverse order; "" is not answered."""
    export_batch(plan(WANTED, settings, seed), folder / "in.jsonl", "m")
    rows = []
    for line, text in zip((folder / "in.jsonl").read_text().splitlines(), replies, strict=True):
        completion = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 10, "completion_tokens": 4}}
        if text:
            rows.append({"custom_id": json.loads(line)["custom_id"], "response": {"status_code": 200, "body": completion}})
    (folder / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    return BatchReplies(folder / "out.jsonl", "m")


def test_candidates_come_in_the_order_of_queries_and_of_writing(tmp_path: Path) -> None:
    model = answering(tmp_path, [written(LONG.format(f"{n}a"), LONG.format(f"{n}b")) for n in (1, 2, 3)])
    source = SyntheticSource(model, SETTINGS)
    found = list(source.propose(WANTED, 2))
    assert [[c.document.text for c in own] for own in found] == [[LONG.format(f"{n}a"), LONG.format(f"{n}b")] for n in (1, 2, 3)]
    assert [c.query_id for own in found for c in own] == ["q1", "q1", "q2", "q2", "q3", "q3"]
    origin = found[0][1].origins[0]
    assert (origin.source, origin.rank, origin.score) == ("synthetic", 2, None)
    assert json.loads(origin.note)["prompt"] == "drg.v1" and json.loads(origin.note)["positive"] in {"d1", "d2"}
    assert len({c.document.id for own in found for c in own}) == 6 and found[0][0].document.id.startswith("written:")
    assert source.report.as_json() == {
        "requests": 3, "parsed": 3, "failed": {}, "prompt_tokens": 30, "completion_tokens": 12, "asked": 6, "written": 6, "dropped": {},
        "flagged": {}, "shortened": 0, "queries": 3, "queries_without": 0,
    }  # fmt: skip


def test_nothing_is_lost_unsaid(tmp_path: Path) -> None:
    model = answering(
        tmp_path,
        [
            written("ships the hull  DISPLACES water.", LONG.format("x").replace("text", "text: why do ships float")),
            written("Too short."),
            "",
        ],
    )
    source = SyntheticSource(model, SETTINGS)
    found = list(source.propose(WANTED, 2))
    assert [len(own) for own in found] == [0, 1, 0]
    report = source.report
    assert report.dropped == {"same as a positive": 1, "contains the whole query": 1, "fewer written than asked for": 1}
    assert report.failed == {"request failed: batch": 1} and report.flagged == {"under 8 words": 1}
    assert report.asked == 6 and report.written == 1 and report.queries_without == 2
    assert report.written + sum(report.dropped.values()) + 2 * sum(report.failed.values()) == report.asked
    assert json.loads(found[1][0].origins[0].note)["flags"] == ["under 8 words"]
    assert "1 of 6 negatives" in str(report) and "request failed: batch" in str(report)


def test_a_one_word_query_may_stand_in_a_negative(tmp_path: Path) -> None:
    model = answering(tmp_path, [written("..."), written(LONG.format("a"), LONG.format("A")), written(LONG.format("stars"))])
    source = SyntheticSource(model, SETTINGS)
    assert [len(own) for own in source.propose(WANTED, 2)] == [0, 1, 1]
    assert source.report.dropped == {"no words": 1, "written twice": 1, "fewer written than asked for": 2}


def test_several_requests_of_a_query_are_one_answer(tmp_path: Path) -> None:
    settings = SynthesisSettings(prompt="drg.v1", per_query=3, per_request=2)
    assert [task.count for task in (plan(WANTED, settings, 0).task(n) for n in range(6))] == [2, 1, 2, 1, 2, 1]
    replies = [text for n in (1, 2, 3) for text in (written(LONG.format(f"{n}a"), LONG.format(f"{n}b")), written(LONG.format(f"{n}c")))]
    found = list(SyntheticSource(answering(tmp_path, replies, settings), settings).propose(WANTED, 3))
    assert [[c.document.text for c in own] for own in found] == [[LONG.format(f"{n}{x}") for x in "abc"] for n in (1, 2, 3)]
    assert [c.origins[0].rank for c in found[2]] == [1, 2, 3]


def test_a_ledger_between_asks_nothing_twice(tmp_path: Path) -> None:
    model = answering(tmp_path, [written(LONG.format(n)) for n in (1, 2, 3)])
    first = list(SyntheticSource(LedgeredModel(model, tmp_path / "ledger"), SETTINGS).propose(WANTED, 2))
    again = LedgeredModel(model, tmp_path / "ledger")
    assert list(SyntheticSource(again, SETTINGS).propose(WANTED, 2)) == first and again.found == 3


def test_a_long_positive_is_cut_and_counted(tmp_path: Path) -> None:
    settings = SynthesisSettings(prompt="drg.v1", positive_words=3)
    texts = [request.messages[0].content for request in plan(WANTED[1:], settings, 0)]
    assert "Mitosis splits the\n" in texts[0] and "nucleus" not in texts[0]
    source = SyntheticSource(answering(tmp_path, [written(LONG.format(n)) for n in (1, 2, 3)], settings), settings)
    list(source.propose(WANTED, 2))
    assert source.report.shortened == sum(task.shortened for task in (plan(WANTED, settings, 0).task(n) for n in range(3))) >= 2


def test_a_request_depends_on_its_query_and_the_seed_alone() -> None:
    settings = SynthesisSettings()
    forwards = {request.id: request for request in plan(WANTED, settings, 5)}
    backwards = {request.id: request for request in plan(WANTED[::-1], settings, 5)}
    assert forwards == backwards
    others = {request.id: request for request in plan(WANTED, settings, 6)}
    assert all(forwards[key].seed != others[key].seed for key in forwards)
    assert len({request.seed for request in forwards.values()}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "drg.v1"}, {"per_query": 3}, {"per_request": 1}, {"temperature": 0.1}, {"top_p": 0.5}, {"max_tokens": 9},
        {"positive_words": 1}, {"attributes": "scifact"}, {"domains": ("Seafaring",)}, {"without": ("reflection",)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_changes_what_is_asked(change: dict[str, object]) -> None:
    assert set(SynthesisSettings.model_fields) == {
        "prompt", "per_query", "per_request", "temperature", "top_p", "max_tokens", "positive_words", "attributes", "domains", "without",
    }  # fmt: skip
    plain = list(plan(WANTED, SynthesisSettings(), 0))
    assert list(plan(WANTED, SynthesisSettings.checked(change), 0)) != plain


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "drg.v1", "domains": ("law",)}, "does not name a domain"),
        ({"without": ("attributes",), "domains": ("law",)}, "does not name a domain"),
        ({"prompt": "drg.v1", "attributes": "scifact"}, "has no attributes"),
        ({"per_request": 5}, "more than per_query"),
    ],
)
def test_a_setting_without_effect_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        plan(WANTED, SynthesisSettings.checked(change), 0)


def test_the_maker_tells_prompts_and_models_apart(tmp_path: Path) -> None:
    def maker(settings: SynthesisSettings, seed: int = 0) -> str:
        model = answering(tmp_path, [written(LONG.format(n)) for n in (1, 2, 3)], settings, seed)
        return next(iter(SyntheticSource(model, settings, seed=seed).propose(WANTED, 2)))[0].origins[0].maker

    makers = [maker(SETTINGS), maker(SynthesisSettings()), maker(SynthesisSettings(prompt="drg.v1", temperature=0.1)), maker(SETTINGS, 1)]
    assert len(set(makers)) == 4 and maker(SETTINGS) == makers[0]


def test_a_plan_is_counted_before_it_is_paid_for() -> None:
    found = estimate(plan(WANTED, SynthesisSettings(max_tokens=100), 0), prices=(1.0, 2.0))
    assert (found.requests, found.completion_tokens) == (3, 300)
    assert found.cost == pytest.approx((found.prompt_tokens + 600) / 1e6) and "at most" in str(found)
    assert estimate(plan(WANTED, SynthesisSettings(), 0)).cost is None


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NegatronError, match="q9 has no positive"):
        plan([NegativeRequest(Query("q9", "x"), ())], SETTINGS, 0)
    with pytest.raises(SettingError, match="'synthetic:NAME'"):
        SyntheticSource(answering(tmp_path, ["a", "b", "c"]), SETTINGS, name="phi")
    with pytest.raises(NegatronError, match="two of the queries have the same id"):
        list(SyntheticSource(answering(tmp_path, ["a", "b", "c"]), SETTINGS).propose([WANTED[0], WANTED[0]], 2))

"""The verb that trains: several data sets, negatives of each, what of a negatives folder an example holds."""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from sentence_transformers import SentenceTransformer  # noqa: E402 - after the check for torch

from negatron.errors import SettingError  # noqa: E402
from negatron.training.recipe import TrainingSettings  # noqa: E402
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query, Verdict  # noqa: E402
from negatron.verbs.training import dev_measure, examples_of, one_for_each, spare_sources, train  # noqa: E402

FAST = {"batch_size": 2, "precision": "fp32", "max_length": 16}


@pytest.fixture
def two(small_collection):
    """The small collection, and one that asks in capitals under other ids."""
    queries = {f"{id_}-2": Query(f"{id_}-2", query.text.upper() + " NOW") for id_, query in small_collection.queries.items()}
    judgements = {
        split: tuple(replace(row, query_id=f"{row.query_id}-2") for row in rows) for split, rows in small_collection.judgements.items()
    }
    return small_collection, replace(small_collection, name="loud", queries=queries, judgements=judgements)


def test_several_data_sets_are_trained_on_one_a_batch_and_counted_together(tiny_encoder, two, tmp_path):
    trained = train(two, None, model=tiny_encoder, out=tmp_path / "model", epochs=2, mixing_exponent=0.0, **FAST)
    assert (trained.facts["pairs"], trained.facts["data"]) == (4, ["small", "loud"])
    lines = [json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()]
    assert sorted(line["set"] for line in lines) == ["loud", "loud", "small", "small"]
    stamp = (tmp_path / "model" / "manifest.json").stat().st_mtime_ns
    train(two, None, model=tiny_encoder, out=tmp_path / "model", epochs=2, mixing_exponent=0.0, **FAST)
    assert (tmp_path / "model" / "manifest.json").stat().st_mtime_ns == stamp, "a finished training was done again"


def test_the_development_score_of_several_data_sets_is_their_mean(tiny_encoder, small_collection):
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    bread, ships = small_collection.judgements["test"]
    crossed = (replace(bread, document_id=ships.document_id), replace(ships, document_id=bread.document_id))
    swapped = replace(small_collection, judgements={**small_collection.judgements, "test": crossed})
    right, wrong = (dev_measure([data], "test", "fp32")(model) for data in (small_collection, swapped))
    assert right != wrong, "the mean could be either"
    assert dev_measure([small_collection, swapped], "test", "fp32")(model) == pytest.approx((right + wrong) / 2)


def test_negatives_are_given_for_each_data_set_or_one_word_for_all():
    assert one_for_each("mine", ["a", "b"]) == ["mine", "mine"]
    assert one_for_each([None], ["a", "b"]) == [None, None]
    assert one_for_each(["x", "y"], ["a", "b"]) == ["x", "y"]
    with pytest.raises(SettingError, match=r"1 negatives for 2 data sets \(a, b\)"):
        one_for_each("x", ["a", "b"])


def judged(id_, source, *, rank, choice=None, score=0.5):
    verdicts = () if choice is None else (Verdict(False, choice),)
    return Judged(Candidate("q0", Document(id_, f"text of {id_}"), (Origin(source, "maker", rank=rank),), score), verdicts)


def test_an_example_holds_the_kept_negatives_with_their_scores_and_spare_ones_of_the_sources_asked_for(small_collection):
    query, positive = small_collection.queries["q0"], small_collection.documents["cells-1"]
    stored = JudgedQuery(
        query,
        (Positive(positive, 0.9),),
        (
            judged("a", "dense", rank=1),
            judged("b", "dense", rank=2, choice="selection"),
            judged("c", "dense", rank=3, choice="relative margin"),
            judged("d", "bm25", rank=1, choice="selection"),
        ),
    )

    def held(**given):
        example = examples_of(small_collection, "train", [stored], **given)[0][0]
        return [(negative.document.id, negative.teacher_score) for negative in example.negatives], example.positive_score

    assert held() == ([("a", 0.5)], 0.9)
    assert held(spare=frozenset({"dense"})) == ([("a", 0.5), ("b", 0.5)], 0.9), "what a filter rejects stays out"


def test_spare_negatives_are_asked_for_by_remining_and_where_every_stage_says_how_many():
    quotas, free = {"share": 0.5, "quotas": {"bm25": 1, "dense": 2}}, {"share": 0.5}
    assert spare_sources(TrainingSettings.checked({"remine": {"source": "dense"}})) == {"dense"}
    assert spare_sources(TrainingSettings.checked({"stages": [quotas, quotas]})) == {"bm25", "dense"}
    assert spare_sources(TrainingSettings.checked({"stages": [quotas, free]})) == set(), "the second would take them all"
    assert spare_sources(TrainingSettings()) == set()


def test_a_guide_changes_what_is_learnt(tiny_encoder, small_collection, tmp_path):
    trained = [
        train(small_collection, None, model=tiny_encoder, out=tmp_path / name, **FAST, learning_rate=1e-3, epochs=2, **changes)
        for name, changes in (("plain", {}), ("guided", {"guide": str(tiny_encoder), "guide_absolute_margin": 2.0}))
    ]
    assert trained[0].facts["last_loss"] > 0 == trained[1].facts["last_loss"], "with such a margin no column counts"

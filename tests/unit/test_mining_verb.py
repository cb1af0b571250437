"""The verb `mine`: every kind of source at once, the cross-encoder as teacher and source, rounds, and the estimate of --dry-run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.data.collection import Collection
from negatron.errors import DataError, SettingError
from negatron.models.dense_index import DenseSearcher, EncoderScorer
from negatron.models.encoder import SentenceEncoder
from negatron.models.known_queries import KnownQueries
from negatron.models.vectors import VectorStore
from negatron.types import Judgement
from negatron.verbs.common import MiningSettings
from negatron.verbs.mining import mine
from negatron.verbs.mining_estimate import estimate_mining

LOOSE = MiningSettings(relative_margin=None, near_copy=None, depth=4, negatives=3, precision="fp32")

BY_IDS = MiningSettings(relative_margin=None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.getbasetemp() / "cache-of-mining-verb"
    monkeypatch.setenv("NEGATRON_CACHE", str(place))
    return place


@pytest.fixture
def data(small_collection: Collection) -> Collection:
    rows = tuple(
        Judgement(query, f"{topic}-1", 1)
        for query, topic in zip(small_collection.queries, ("cells", "stars", "bread", "ships"), strict=True)
    )
    return Collection("small", small_collection.documents, small_collection.queries, {"train": rows})


def test_every_kind_of_source_at_once(data: Collection, tiny_encoder: Path, tiny_cross_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q0 Q0 ships-3 1 2.5 mine\nq0 Q0 bread-3 2 2.0 mine\nelsewhere Q0 bread-3 1 1.0 mine\n")
    names = ["bm25", "dense", "random", f"file:{tmp_path / 'run.trec'}", "cross-encoder"]
    mined = mine(data, sources=names, model=tiny_encoder, cross_encoder=tiny_cross_encoder, round=2, settings=LOOSE, out=tmp_path / "neg")
    found = {origin.source for item in mined for judged in item.judged for origin in judged.candidate.origins}
    assert found == {"bm25", "dense", "random", "file:run.trec", "cross-encoder"}
    first = mined.find("q0")
    listed = {j.candidate.document.id: o for j in first.judged for o in j.candidate.origins if o.source == "file:run.trec"}
    assert {id_: (o.rank, o.score) for id_, o in listed.items()} == {"ships-3": (1, 2.5), "bread-3": (2, 2.0)}
    for item in mined:
        assert {o.round for j in item.judged for o in j.candidate.origins} == {2}
        ranked = sorted(item.judged, key=lambda j: -(j.candidate.teacher_score or 0))
        assert [next(o.rank for o in j.candidate.origins if o.source == "cross-encoder") for j in ranked] == list(range(1, len(ranked) + 1))
        assert all(o.score == j.candidate.teacher_score for j in item.judged for o in j.candidate.origins if o.source == "cross-encoder")
    facts = mined.manifest.facts
    assert facts["teacher_scale"] == "probability" and facts["teachers"] == [mined.manifest.inputs["cross_encoder"]]
    assert "  file:run.trec         2" in str(mined)


def test_a_changed_file_is_another_input(data: Collection, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("q0 Q0 ships-3 1 2.5 mine\n")
    usual = mine(data, sources=[f"file:{run}"], settings=BY_IDS)
    assert mine(data, sources=[f"file:{run}"], settings=BY_IDS).path == usual.path
    run.write_text("q0 Q0 bread-3 1 2.5 mine\n")
    changed = mine(data, sources=[f"file:{run}"], settings=BY_IDS)
    assert changed.path != usual.path and changed.find("q0").judged[0].candidate.document.id == "bread-3"
    run.write_text("q0 Q0 bread-9 1 2.5 mine\n")
    with pytest.raises(DataError, match=r"run.trec:1: there is no document 'bread-9' in small"):
        mine(data, sources=[f"file:{run}"], settings=BY_IDS)


def test_the_cross_encoder_may_rank_while_the_encoder_teaches(data: Collection, tiny_encoder: Path, tiny_cross_encoder: Path) -> None:
    settings = LOOSE.model_copy(update={"teacher": "encoder"})
    mined = mine(data, sources=["bm25", "cross-encoder"], model=tiny_encoder, cross_encoder=tiny_cross_encoder, settings=settings)
    assert mined.manifest.facts["teacher_scale"] == "cosine"
    pairs = [
        (j.candidate.teacher_score, o.score)
        for item in mined
        for j in item.judged
        for o in j.candidate.origins
        if o.source == "cross-encoder"
    ]
    assert pairs and all(taught != ranked for taught, ranked in pairs)


def test_the_hardest_by_the_cross_encoder_are_its_best(data: Collection, tiny_encoder: Path, tiny_cross_encoder: Path) -> None:
    settings = LOOSE.model_copy(update={"choice": "hardest", "negatives": 1})
    for item in mine(data, sources=["bm25"], cross_encoder=tiny_cross_encoder, settings=settings):
        spare = [j for j in item.judged if j.spare]
        (best,) = [j for j in item.judged if j.kept]
        assert len(spare) > 1 and best.candidate.teacher_score == max(j.candidate.teacher_score or 0 for j in spare)


def test_a_dry_run_estimates_every_part_and_writes_nothing(
    data: Collection, tiny_encoder: Path, tiny_cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEGATRON_CACHE", str(tmp_path / "cache"))
    sources = ["bm25", "dense", "cross-encoder"]
    made = estimate_mining(data, sources=sources, model=tiny_encoder, cross_encoder=tiny_cross_encoder, settings=LOOSE)
    assert [part.name for part in made.parts] == [
        "bm25",
        "encode documents",
        "encode queries",
        "dense search",
        "cross-encoder",
        "judge and write",
    ]
    assert all(part.seconds > 0 for part in made.parts) and made.seconds == pytest.approx(sum(part.seconds for part in made.parts))
    assert (made.documents, made.queries, made.candidates) == (12, 4, 4 * 2 * 4 + 4)
    assert made.memory > 400_000, "at least the weights of the models"
    assert "nothing was written" in str(made) and made.as_json()["parts"][0]["name"] == "bm25"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(SettingError, match="did you mean 'bm25'"):
        estimate_mining(data, sources=["bm52"], settings=LOOSE)


def test_queries_at_hand_have_the_vectors_that_the_store_gives(data: Collection, tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny_encoder, precision="fp32")
    store = VectorStore(tmp_path)
    texts = [query.text for query in data.queries.values()]
    searcher = DenseSearcher(encoder, list(data.documents.values()), store, "c")
    pairs = [(text, document.content) for text in texts[1:] for document in data.documents.values()]
    plain = EncoderScorer(encoder, store, searcher).score(pairs)
    at_hand = EncoderScorer(encoder, KnownQueries(store, encoder, texts), searcher)
    entries = len(list(tmp_path.iterdir()))
    np.testing.assert_allclose(at_hand.score(pairs), plain, atol=1e-6)
    for pair in pairs[::7]:
        np.testing.assert_allclose(at_hand.score([pair]), plain[pairs.index(pair)], atol=1e-6)
    assert len(list(tmp_path.iterdir())) == entries, "no part of the queries is encoded by itself"
    assert at_hand.score([("a question that nobody had", "an answer")]).shape == (1,)

from __future__ import annotations

from pathlib import Path

import pytest

from negatron.conformance import TableEncoder, check_searcher, check_source
from negatron.data.collection import Collection
from negatron.identity import stream
from negatron.models.bm25 import BM25Searcher, BM25Settings
from negatron.models.dense_index import DenseSearcher, EncoderScorer
from negatron.models.vectors import VectorStore
from negatron.negatives.filters import FilterSettings, chain, judge
from negatron.negatives.mining import SearchSource, merge, scored, select
from negatron.negatives.records import Negatives, write_negatives
from negatron.store import begin
from negatron.types import Candidate, Document, Judged, JudgedQuery, NegativeRequest, Origin, Positive, Query, Verdict

TEXTS = {"north": (0, 1), "north-east": (1, 1), "east": (1, 0), "west": (-1, 0), "up": (0.2, 1)}


@pytest.fixture
def compass(tmp_path: Path) -> DenseSearcher:
    documents = [Document(text, text) for text in TEXTS if text != "up"]
    return DenseSearcher(TableEncoder(TEXTS), documents, VectorStore(tmp_path), "compass")


def test_dense_search_is_by_cosine_and_ties_go_by_id(compass: DenseSearcher) -> None:
    hits = next(iter(compass.search([Query("q", "north")], 4)))
    assert [hit.document_id for hit in hits] == ["north", "north-east", "east", "west"]
    assert [round(hit.score, 4) for hit in hits] == [1.0, 0.7071, 0.0, 0.0]
    check_searcher(compass, [Query("q", "north"), Query("r", "up")], 3)


def test_the_teacher_scores_known_and_unknown_texts_alike(compass: DenseSearcher, tmp_path: Path) -> None:
    teacher = EncoderScorer(compass.encoder, VectorStore(tmp_path), compass)
    scores = teacher.score([("north", "north-east"), ("north", "up"), ("up", "north"), ("north", "north-east")])
    assert scores.tolist() == pytest.approx([0.7071, 0.9806, 0.9806, 0.7071], abs=1e-4)


def test_bm25_finds_the_words_and_not_documents_without_them(small_collection: Collection) -> None:
    searcher = BM25Searcher(list(small_collection.documents.values()), "c")
    queries = list(small_collection.queries.values())
    hits = next(iter(searcher.search(queries, 10)))
    assert hits[0].document_id == "cells-2"  # the decoy asks in the query's own words
    assert {"cells-1", "cells-2", "cells-3"} <= {hit.document_id for hit in hits} and "bread-3" not in {hit.document_id for hit in hits}
    assert min(hit.score for hit in hits) > 0
    check_searcher(searcher, queries, 10)


def test_a_query_of_stop_words_finds_nothing(small_collection: Collection) -> None:
    searcher = BM25Searcher(list(small_collection.documents.values()), "c")
    assert list(searcher.search([Query("q", "of the and")], 5)) == [[]]


def test_bm25_cuts_chinese_into_words() -> None:
    pytest.importorskip("jieba", reason="needs negatron[chinese]")
    documents = [Document("a", "深度学习模型训练方法"), Document("b", "番茄炒蛋先把鸡蛋打散")]
    hits = list(BM25Searcher(documents, "c").search([Query("q", "模型训练"), Query("r", "鸡蛋")], 5))
    assert [[hit.document_id for hit in own] for own in hits] == [["a"], ["b"]]


@pytest.mark.parametrize("change", [{"k1": 2.0}, {"b": 0.0}, {"language": "plain"}])
def test_every_bm25_setting_has_an_effect(small_collection: Collection, change: dict) -> None:
    documents, query = list(small_collection.documents.values()), [Query("q", "many people dividing the long way of cells cells")]
    usual, other = (BM25Searcher(documents, "c", BM25Settings(**settings)) for settings in ({}, change))
    assert usual.fingerprint != other.fingerprint
    assert list(usual.search(query, 9)) != list(other.search(query, 9))


def test_known_positives_do_not_use_up_the_depth_and_keep_their_rank(small_collection: Collection) -> None:
    documents = small_collection.documents
    searcher = BM25Searcher(list(documents.values()), "c")
    requests = [NegativeRequest(small_collection.queries["q0"], (documents["cells-2"],))]
    source = SearchSource("bm25", searcher, documents)
    check_source(source, requests, 1)
    proposed = next(iter(source.propose(requests, 1)))
    assert [(c.document.id, c.origins[0].rank) for c in proposed] == [("cells-2", 1), ("bread-2", 2)]


def item(scores: dict[str, tuple[str, int]]) -> JudgedQuery:
    """document id -> (source, rank)."""
    judged = tuple(Judged(Candidate("q", Document(i, i), (Origin(source, "m", rank=rank),))) for i, (source, rank) in scores.items())
    return JudgedQuery(Query("q", "?"), (Positive(Document("p", "p")),), judged)


def chosen(record: JudgedQuery) -> list[str]:
    return [j.candidate.document.id for j in record.judged if j.kept]


def test_selection_takes_the_best_of_each_source_in_turn() -> None:
    pool = item({"a": ("bm25", 1), "b": ("bm25", 2), "c": ("bm25", 3), "x": ("dense", 1), "y": ("dense", 2)})
    assert chosen(select(pool, 3, "top", stream(0))) == ["a", "b", "x"]
    assert chosen(select(pool, 1, "top", stream(0))) == ["a"]


def test_selecting_again_forgets_the_earlier_choice_but_no_rejection() -> None:
    pool = item({"a": ("bm25", 1), "b": ("bm25", 2), "c": ("bm25", 3)})
    rejected = Judged(pool.judged[0].candidate, (Verdict(False, "near copy"),))
    one = select(JudgedQuery(pool.query, pool.positives, (rejected, *pool.judged[1:])), 1, "top", stream(0))
    assert chosen(one) == ["b"]
    assert chosen(select(one, 5, "top", stream(0))) == ["b", "c"]


def test_a_random_choice_depends_on_the_stream_and_not_on_the_order_of_the_candidates() -> None:
    scores = {f"d{n:02d}": ("bm25", n + 1) for n in range(20)}
    pool, turned = item(scores), item(dict(reversed(scores.items())))
    first = chosen(select(pool, 5, "random", stream(1, "q")))
    assert sorted(first) == sorted(chosen(select(turned, 5, "random", stream(1, "q"))))
    assert first != chosen(select(pool, 5, "random", stream(2, "q"))) and first != chosen(select(pool, 5, "top", stream(1, "q")))


def test_what_several_sources_found_is_one_candidate_with_all_origins() -> None:
    a = Document("a", "a")
    both = merge([[Candidate("q", a, (Origin("bm25", "m", rank=3),))], [Candidate("q", a, (Origin("dense", "n", rank=1),))]])
    assert [c.sources for c in both] == [("bm25", "dense")]


def test_written_and_read_negatives_are_equal(small_collection: Collection, compass: DenseSearcher, tmp_path: Path) -> None:
    query = Query("q", "north")
    requests = [NegativeRequest(query, (Document("north", "north"),))]
    proposed = list(SearchSource("dense", compass, {d.id: d for d in compass.documents}).propose(requests, 3))
    ((positives, candidates),) = scored(requests, proposed, EncoderScorer(compass.encoder, VectorStore(tmp_path), compass))
    hostile = Candidate("q", Document("w", 'tab\tline\nquote" \U0001f9ea', "标题"), (Origin("synthetic", "m", note='{"a": 1}'),), -0.25)
    record = JudgedQuery(query, positives, judge(chain(FilterSettings()), query, positives, [*candidates, hostile]))
    empty = JudgedQuery(Query("r", "nothing found"), (Positive(Document("p", "p")),), ())
    records = [select(record, 2, "top", stream(0)), empty]
    with begin(tmp_path / "neg", kind="negatives", inputs={}) as work:
        summary = write_negatives(work.path, records)
        work.finish(summary=summary.as_json())
    opened = Negatives.open(tmp_path / "neg")
    assert list(opened) == records
    assert len(opened) == 2 and opened.find("r") == empty
    assert opened.summary["rejected"] == {"known positive": 1} and opened.summary["negatives_per_query"] == {"0": 1, "2": 1}
    assert len(opened.dataset()) == len(records[0].judged)

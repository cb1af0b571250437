"""Neither the order of the input files nor the company of other queries changes what a query gets (invariants 3 and 7), and a rank is
the rank of the retrieval, whatever the filters do (row 8 of the errors found in peers)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs negatron[train]")

from negatron.conformance import TableEncoder, check_searcher, check_source
from negatron.data.beir import read_beir, write_beir
from negatron.data.collection import Collection
from negatron.identity import stream
from negatron.models.bm25 import BM25Searcher, BM25Settings
from negatron.models.dense_index import DenseSearcher, EncoderScorer
from negatron.negatives.filters import FilterSettings
from negatron.negatives.mining import SearchSource, propose_all
from negatron.seams import Searcher
from negatron.types import Document, JudgedQuery, NegativeRequest, Query
from negatron.verbs.negatives import judged_and_chosen

COLLECTIONS = 12


def searchers(collection: Collection, encoder, store) -> dict[str, Searcher]:
    documents = list(collection.documents.values())
    return {"bm25": BM25Searcher(documents, "c"), "dense": DenseSearcher(encoder, documents, store, "c")}


def mined(collection: Collection, encoder, store, requests: Sequence[NegativeRequest] | None = None, **settings) -> dict[str, JudgedQuery]:
    """query id -> its record, from both sources, with the encoder as teacher."""
    found = searchers(collection, encoder, store)
    sources = [SearchSource(name, searcher, collection.documents) for name, searcher in sorted(found.items())]
    wanted = collection.requests("train") if requests is None else requests
    teacher = EncoderScorer(encoder, store, found["dense"])
    chosen = FilterSettings(**({"relative_margin": 0.0} | settings))
    items = judged_and_chosen(wanted, propose_all(sources, wanted, 8), teacher, chosen, 3, "top", 0)
    return {item.query.id: item for item in items}


def permuted(collection: Collection, seed: int) -> Collection:
    """The same documents, queries and judgements in another order."""
    draw = stream(seed, "order")

    def shuffled(mapping: dict) -> dict:
        return dict(draw.sample(list(mapping.items()), len(mapping)))

    rows = {split: tuple(draw.sample(list(own), len(own))) for split, own in collection.judgements.items()}
    return Collection(collection.name, shuffled(collection.documents), shuffled(collection.queries), shuffled(rows))


def decided(items: dict[str, JudgedQuery]) -> dict[str, list[object]]:
    """What was found and decided for each query, with ranks and scores. A verdict's detail names the first of several equal texts, which
    does depend on the order of the judgements."""
    return {
        id_: [
            (j.candidate.document.id, [(o.source, o.rank, o.score) for o in j.candidate.origins], [(v.rule, v.kept) for v in j.verdicts])
            for j in item.judged
        ]
        for id_, item in items.items()
    }


def test_the_order_of_the_input_files_changes_no_querys_negatives(random_collection, word_encoder, passing_store, tmp_path) -> None:
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        other = permuted(collection, number)
        assert list(other.documents) != list(collection.documents) and list(other.queries) != list(collection.queries)
        if number == 0:
            other = read_beir(write_beir(other, tmp_path / "other"))
        expected = decided(mined(collection, word_encoder, passing_store))
        assert decided(mined(other, word_encoder, passing_store)) == expected
        assert any(verdict == ("selection", True) for own in expected.values() for _, _, verdicts in own for verdict in verdicts)


def test_a_limit_takes_the_same_pairs_whatever_the_order_of_the_files(random_collection) -> None:
    collection = random_collection(0)
    for limit in (1, 5, 10):
        some, same = ({(q.id, d.id) for q, d in c.pairs("train", limit=limit).pairs} for c in (collection, permuted(collection, 1)))
        assert some == same and len(some) == limit
        assert some <= {(q.id, d.id) for q, d in collection.pairs("train", limit=limit + 1).pairs}, "a smaller limit is part of a larger"


def test_a_query_finds_alone_what_it_finds_in_company_ties_included(random_collection, word_encoder, passing_store) -> None:
    ties = 0
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        queries = list(collection.queries.values())
        for searcher in searchers(collection, word_encoder, passing_store).values():
            check_searcher(searcher, queries, 6)
            for query, short, long in zip(queries, searcher.search(queries, 6), searcher.search(queries, 25), strict=True):
                assert list(short) == list(long)[:6], f"{query.id}: the first six of a longer list are others"
                ties += len({hit.score for hit in long}) < len(long)
    assert ties > 100, "copies tie, or nothing is shown"


def test_mining_a_query_alone_gives_what_mining_all_gives(random_collection, word_encoder, passing_store) -> None:
    for number in range(COLLECTIONS // 2):
        collection = random_collection(number)
        requests = collection.requests("train")
        assert len({len(request.positives) for request in requests}) > 1, "the depth of a search grows with the most positives"
        whole = mined(collection, word_encoder, passing_store)
        for request in requests:
            assert decided(mined(collection, word_encoder, passing_store, [request])) == {
                request.query.id: decided(whole)[request.query.id]
            }


def test_copies_of_a_text_share_one_score_and_go_by_id(passing_store) -> None:
    """Far more copies than the spare texts a search looks beyond k: every copy counts as one text."""
    directions = {"north": (0.0, 1.0), "north-east": (1.0, 1.0), "east": (1.0, 0.0)}
    documents = [Document(f"{stream(0, n).randrange(10**6):06d}", "north-east") for n in range(80)] + [Document("x", "north")]
    searcher = DenseSearcher(TableEncoder(directions), documents, passing_store, "c")
    hits = next(iter(searcher.search([Query("q", "north")], 5)))
    assert [hit.document_id for hit in hits] == ["x", *sorted(document.id for document in documents)[:4]]
    assert len({hit.score for hit in hits[1:]}) == 1


def test_a_dense_score_is_the_teachers_score_of_the_same_pair(random_collection, word_encoder, passing_store) -> None:
    collection = random_collection(3)
    dense = searchers(collection, word_encoder, passing_store)["dense"]
    teachers = [EncoderScorer(word_encoder, passing_store, dense), EncoderScorer(word_encoder, passing_store)]
    hits = [(query, hit) for query in collection.queries.values() for hit in next(iter(dense.search([query], 30)))]
    pairs = [(query.text, collection.documents[hit.document_id].content) for query, hit in hits]
    for teacher in teachers:
        assert teacher.score(pairs).tolist() == [hit.score for _, hit in hits]
        assert teacher.score(pairs[5:6]).tolist() == [hits[5][1].score], "alone as in company"


def test_a_rank_is_by_retrieval_whatever_the_filters_do(random_collection, word_encoder, passing_store) -> None:
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        found = searchers(collection, word_encoder, passing_store)
        strict = mined(collection, word_encoder, passing_store, relative_margin=0.3, near_copy=0.3)
        loose = mined(collection, word_encoder, passing_store, relative_margin=None, near_copy=None)
        rejected = 0
        for id_, item in strict.items():
            origins = {(j.candidate.document.id, o.source): o for j in item.judged for o in j.candidate.origins}
            assert origins == {(j.candidate.document.id, o.source): o for j in loose[id_].judged for o in j.candidate.origins}
            for source, searcher in found.items():
                hits = next(iter(searcher.search([item.query], len(collection.documents))))
                ranks = {hit.document_id: rank for rank, hit in enumerate(hits, 1)}
                assert all(o.rank == ranks[document] for (document, by), o in origins.items() if by == source)
            rejected += sum(not j.spare for j in item.judged)
        assert rejected > 10


def test_a_source_gives_down_to_the_rank_at_which_enough_are_no_positives(random_collection) -> None:
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        requests = collection.requests("train")
        source = SearchSource("bm25", BM25Searcher(list(collection.documents.values()), "c"), collection.documents)
        check_source(source, requests, 4)
        for request, candidates in zip(requests, source.propose(requests, 4), strict=True):
            known = {document.id for document in request.positives}
            others = [c for c in candidates if c.document.id not in known]
            assert len(others) <= 4 and [c.origins[0].rank for c in candidates] == list(range(1, len(candidates) + 1))
            if len(others) == 4:
                assert candidates[-1] is others[-1], "nothing is given beyond the last one wanted"


def test_bm25_ties_go_by_id_and_a_word_more_often_asked_counts_more() -> None:
    documents = [Document(id_, "yeast lifts dough") for id_ in ("c", "a", "b")] + [Document("d", "yeast feeds on sugar and sugar only")]
    for order in (documents, documents[::-1]):
        searcher = BM25Searcher(order, "c", BM25Settings())
        assert [hit.document_id for hit in next(iter(searcher.search([Query("q", "dough")], 2)))] == ["a", "b"]
        once, twice = (
            {h.document_id: h.score for h in hits} for hits in searcher.search([Query("q", "yeast"), Query("r", "yeast yeast")], 9)
        )
        assert twice == {id_: pytest.approx(2 * score, rel=1e-6) for id_, score in once.items()}


def test_bm25_is_the_formula_written_out() -> None:
    """Lucene: a word counts ln(1 + (N - n + 0.5) / (n + 0.5)) f / (f + k1 (1 - b + b L / mean L)), without the factor k1 + 1."""
    texts = ["red red blue", "blue green", "red green green green yellow"]
    k1, b = 1.7, 0.6
    searcher = BM25Searcher([Document(str(n), text) for n, text in enumerate(texts)], "c", BM25Settings(k1=k1, b=b, language="plain"))
    words = [text.split() for text in texts]
    mean = sum(map(len, words)) / len(words)

    def score(query: str, own: list[str]) -> float:
        total = 0.0
        for word in query.split():
            n, f = sum(word in other for other in words), own.count(word)
            total += np.log(1 + (len(words) - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * len(own) / mean))
        return float(total)

    hits = next(iter(searcher.search([Query("q", "red green")], 9)))
    assert {hit.document_id: hit.score for hit in hits} == {
        str(n): pytest.approx(score("red green", own), rel=1e-5) for n, own in enumerate(words)
    }
    assert [hit.document_id for hit in hits] == [str(n) for n in sorted(range(3), key=lambda n: -score("red green", words[n]))]

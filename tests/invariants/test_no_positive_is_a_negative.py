"""No known positive of a query, nor a copy of one, is ever a negative of it; no training query asks what a test query asks (invariant 6).

On fifty random collections with copies, near copies, several positives and queries of one text, through the whole way: mine, have
negatives written, mix, make examples, lay out batches; every tenth of them through files. What may not be a negative is worked out
here from the judgements alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.conformance import ScriptedLanguageModel
from negatron.data.collection import Collection
from negatron.errors import NegatronError
from negatron.identity import same_words, stream
from negatron.models.bm25 import BM25Searcher
from negatron.models.dense_index import DenseSearcher, EncoderScorer
from negatron.negatives.filters import FilterSettings
from negatron.negatives.mining import SearchSource, propose_all
from negatron.negatives.mixing import MixSettings, mix, together
from negatron.negatives.records import KIND, Negatives, write_negatives
from negatron.negatives.synthesis import SynthesisSettings, SyntheticSource
from negatron.store import begin
from negatron.training.batches import collate, plan
from negatron.types import (
    Candidate,
    Document,
    Judged,
    JudgedQuery,
    Judgement,
    NegativeRequest,
    Origin,
    Positive,
    Query,
    TrainingExample,
    Verdict,
)
from negatron.verbs.negatives import judged_and_chosen
from negatron.verbs.training import examples_of

COLLECTIONS = 50


def forbidden(collection: Collection, query_text: str) -> set[str]:
    """The contents that may not be negatives of a query of this text: whatever split train holds relevant to any query that asks it."""
    asking = {query.id for query in collection.queries.values() if same_words(query.text) == same_words(query_text)}
    rows = collection.judgements["train"]
    return {same_words(collection.documents[row.document_id].content) for row in rows if row.query_id in asking and row.grade > 0}


def through_files(folder: Path, items: list[JudgedQuery]) -> Negatives:
    """The items, written and opened again."""
    with begin(folder, kind=KIND, inputs={}) as work:
        work.finish(summary=write_negatives(work.path, items).as_json())
    return Negatives.open(folder)


def mined(collection: Collection, requests: Sequence[NegativeRequest], encoder, store, settings: FilterSettings) -> list[JudgedQuery]:
    """From BM25 and dense search, judged with the encoder as teacher."""
    documents = list(collection.documents.values())
    dense = DenseSearcher(encoder, documents, store, collection.corpus_fingerprint)
    sources = [
        SearchSource("bm25", BM25Searcher(documents, collection.corpus_fingerprint), collection.documents),
        SearchSource("dense", dense, collection.documents),
    ]
    teacher = EncoderScorer(encoder, store, dense)
    return list(judged_and_chosen(requests, propose_all(sources, requests, 8), teacher, settings, 4, "top", 0))


def written(requests: Sequence[NegativeRequest], encoder, store, settings: FilterSettings) -> list[JudgedQuery]:
    """From a language model that copies answers: the positives of one query after the other, in capitals, and texts of its own."""
    texts = [request.positives[-1].text.upper() for request in requests] + ["a text of its own that nobody else has written down before"]
    replies = ['{"hard_negatives": [{"text": "%s"}, {"text": "%s too"}]}' % (text, text) for text in texts]  # noqa: UP031 - braces
    source = SyntheticSource(ScriptedLanguageModel(replies), SynthesisSettings(prompt="drg.v1"), seed=0)
    return list(judged_and_chosen(requests, list(source.propose(requests, 2)), EncoderScorer(encoder, store), settings, 2, "top", 0))


def check_batches(examples: Sequence[TrainingExample], collection: Collection) -> int:
    """Every column of every batch that is a positive of a query, or a copy of one, is excluded for it; gives their number."""
    seen = 0
    for rows in plan([example.query.text for example in examples], 5, seed=0, epoch=0):
        batch = collate([examples[row] for row in rows])
        excluded, own = (set(map(tuple, pairs.tolist())) for pairs in (batch.targets.excluded, batch.targets.own))
        for row, (text, positive) in enumerate(zip(batch.query_texts, batch.targets.positive.tolist(), strict=True)):
            barred = forbidden(collection, text)
            for column, document in enumerate(batch.document_texts):
                if column != positive and same_words(document) in barred:
                    assert (row, column) in excluded and (row, column) not in own, f"{document!r} counts against {text!r}"
                    seen += 1
    return seen


def test_on_random_collections_no_positive_becomes_a_negative(random_collection, word_encoder, passing_store, tmp_path: Path) -> None:
    rejections: Counter[str] = Counter()
    negatives = excluded = several = shared = 0
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        settings = FilterSettings(relative_margin=None if number % 2 else 0.0, near_copy=None if number % 3 else 0.7)
        requests = collection.requests("train")
        found = [
            mined(collection, requests, word_encoder, passing_store, settings),
            written(requests, word_encoder, passing_store, settings),
        ]
        mixture = list(mix(together(*found), MixSettings(ratio=0.5, negatives=4), number))
        if number % 10 == 0:
            mixture = through_files(tmp_path / str(number), mixture)
        examples, _ = examples_of(collection, "train", mixture)
        for example in examples:
            barred = forbidden(collection, example.query.text)
            several, shared = several + (len(barred) > 1), shared + (example.query.id == "q-twin")
            assert {same_words(text) for text in example.known_positives} == barred
            for negative in example.negatives:
                assert same_words(negative.document.content) not in barred, f"{collection.name}: {example.query.id} {negative.document.id}"
            negatives += len(example.negatives)
        excluded += check_batches(examples, collection)
        for item in (item for items in found for item in items):  # each source by itself: the mixture would bar what one lets through
            barred = forbidden(collection, item.query.text)
            assert not [j.candidate.document.id for j in item.judged if j.kept and same_words(j.candidate.document.content) in barred]
            rejections.update(verdict.rule for judged in item.judged for verdict in judged.verdicts if not verdict.kept)
    assert negatives > 1000 and several > 300 and shared >= COLLECTIONS and excluded > 100, "there was something to get wrong"
    assert rejections["known positive"] > 300 and rejections["same text"] > 100 and rejections["near copy"] > 10, rejections


def test_no_training_query_asks_what_a_test_query_asks_and_those_left_out_are_counted(random_collection) -> None:
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        tested = {same_words(collection.queries[row.query_id].text) for row in collection.judgements["test"]}
        examples, facts = examples_of(collection, "train", None)
        asked = {same_words(example.query.text) for example in examples}
        assert asked and not asked & tested
        assert not {same_words(request.query.text) for request in collection.requests("train")} & tested
        relevant = {row.query_id for row in collection.judgements["train"] if row.grade > 0}
        left_out = {id_ for id_ in relevant if same_words(collection.queries[id_].text) in tested}
        assert facts["dropped_queries"] == len(left_out) >= 1
        assert {example.query.id for example in examples} == relevant - left_out


def test_a_query_without_positives_is_neither_mined_nor_trained_on(random_collection) -> None:
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        assert any(row.query_id == "q-empty" for row in collection.judgements["train"])
        assert "q-empty" not in {request.query.id for request in collection.requests("train")}
        assert "q-empty" not in {example.query.id for example in examples_of(collection, "train", None)[0]}


def test_every_positive_of_a_query_makes_a_pair_and_all_are_known_to_each(random_collection) -> None:
    for number in range(COLLECTIONS):
        collection = random_collection(number)
        examples, _ = examples_of(collection, "train", None)
        pairs = Counter((example.query.id, example.positive.id) for example in examples)
        kept = {query_id for query_id, _ in pairs}
        rows = {(row.query_id, row.document_id) for row in collection.judgements["train"] if row.grade > 0 and row.query_id in kept}
        assert pairs == dict.fromkeys(rows, 1)
        assert all(example.positive.content in example.known_positives for example in examples)


QUERY, ANSWER = Query("q", "why do ships float"), Document("a", "The hull displaces water.", "Ships")
SMALL = Collection("small", {"a": ANSWER, "b": Document("b", "Yeast lifts dough.")}, {"q": QUERY}, {})


@pytest.mark.parametrize(
    ("document", "query", "message"),
    [
        (ANSWER, QUERY, "hold a, a known positive of it or a copy"),
        (Document("x", "ships  THE hull displaces water."), QUERY, "hold x, a known positive of it or a copy"),
        (Document("x", "the hull displaces  water."), QUERY, "hold x, a known positive of it or a copy"),
        (Document("a", "An older wording under the same id."), QUERY, "hold a, a known positive of it or a copy"),
        (Document("b", "Yeast lifts dough."), Query("q", "why do kites fly"), "reads 'why do kites fly' in the negatives"),
    ],
)
def test_training_refuses_a_file_that_holds_a_positive_as_a_negative(document: Document, query: Query, message: str) -> None:
    collection = Collection(SMALL.name, SMALL.documents, SMALL.queries, {"train": (Judgement("q", "a", 1),)})

    def item(held: Document, asked: Query, *verdicts: Verdict) -> JudgedQuery:
        candidate = Candidate("q", held, (Origin("dense", "m", rank=1),))
        return JudgedQuery(asked, (Positive(ANSWER),), (Judged(candidate, verdicts),))

    fine = item(Document("b", "Yeast lifts dough."), QUERY)
    assert [len(example.negatives) for example in examples_of(collection, "train", [fine])[0]] == [1]
    with pytest.raises(NegatronError, match=message):
        examples_of(collection, "train", [item(document, query)])
    with pytest.raises(NegatronError, match="none of the 1 pairs of train has a negative"):
        examples_of(collection, "train", [item(document, query, Verdict(False, "known positive"))])


def test_the_stream_of_a_query_decides_a_random_choice_not_its_neighbours(random_collection) -> None:
    collection = random_collection(1)
    requests = collection.requests("train")
    documents = list(collection.documents.values())
    source = SearchSource("bm25", BM25Searcher(documents, "c"), collection.documents)
    off = FilterSettings(relative_margin=None)

    def chosen(some: Sequence[NegativeRequest], seed: int) -> dict[str, list[str]]:
        items = judged_and_chosen(some, propose_all([source], some, 9), None, off, 2, "random", seed)
        return {item.query.id: [j.candidate.document.id for j in item.judged if j.kept] for item in items}

    whole = chosen(requests, 5)
    assert whole == {id_: ids for request in reversed(requests) for id_, ids in chosen([request], 5).items()}
    assert whole != chosen(requests, 6)
    assert stream(5, "select", "q0").random() != stream(5, "select", "q1").random()

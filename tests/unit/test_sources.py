"""Chance, files and re-ranking as sources; what is held of a source's proposals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from negatron.conformance import check_source
from negatron.data.candidate_files import read_candidates
from negatron.data.collection import Collection
from negatron.errors import DataError
from negatron.negatives.mining import Held, Reranking, proposals, scored
from negatron.negatives.sources import FileSource, RandomSource
from negatron.types import Candidate, Document, NegativeRequest, Origin, Query

DOCUMENTS = {id_: Document(id_, f"text {id_}") for id_ in "abcdefghij"}


def requests(count: int, *positives: str) -> list[NegativeRequest]:
    return [NegativeRequest(Query(f"q{n}", f"question {n}"), tuple(DOCUMENTS[id_] for id_ in positives)) for n in range(count)]


def test_random_documents_are_uniform_and_never_known_positives() -> None:
    source = RandomSource(DOCUMENTS, "c", seed=3)
    asked = requests(3000, "a", "e")
    check_source(source, asked[:20], 2)
    drawn = [[c.document.id for c in own] for own in source.propose(asked, 2)]
    counts = Counter(id_ for own in drawn for id_ in own)
    assert counts.keys() == set("bcdfghij") and all(len(set(own)) == 2 for own in drawn)
    # 3000 x 2 draws over 8 documents: 750 each; 5 standard deviations of a binomial are 128
    assert max(abs(count - 750) for count in counts.values()) < 128
    first = Counter(own[0] for own in drawn)
    assert max(abs(count - 375) for count in first.values()) < 92, "the first drawn, too: ranks say nothing"


def test_random_documents_depend_on_seed_and_query_and_not_on_the_order_of_corpus_or_queries() -> None:
    asked = requests(30, "a")
    usual = {r.query.id: own for r, own in zip(asked, RandomSource(DOCUMENTS, "c").propose(asked, 5), strict=True)}
    turned = dict(reversed(DOCUMENTS.items()))
    again = {r.query.id: own for r, own in zip(asked[::-1], RandomSource(turned, "c").propose(asked[::-1], 5), strict=True)}
    assert usual == again and len({tuple(c.document.id for c in own) for own in usual.values()}) > 20
    other = list(RandomSource(DOCUMENTS, "c", seed=1).propose(asked, 5))
    assert other != list(usual.values())


def test_a_corpus_smaller_than_asked_for_gives_all_it_has() -> None:
    (own,) = RandomSource(DOCUMENTS, "c").propose(requests(1, "a", "b"), 50)
    assert sorted(c.document.id for c in own) == list("cdefghij") and [c.origins[0].rank for c in own] == list(range(1, 9))


def collection() -> Collection:
    return Collection("letters", DOCUMENTS, {f"q{n}": Query(f"q{n}", f"question {n}") for n in range(3)}, {})


def test_a_run_is_read_best_first_whatever_its_order(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q0 Q0 c 3 1.0 x\nq0 Q0 a 1 9.5 x\nq0 Q0 b 2 1.0 x\nq9 Q0 a 1 1.0 x\n")
    listed = read_candidates(tmp_path / "run.trec", collection())
    assert listed.documents == {"q0": (("a", 9.5), ("b", 1.0), ("c", 1.0))} and listed.unknown_queries == 1


def test_pairs_without_scores_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        '{"query_id": "q0", "document_id": "c"}\n{"query-id": "q0", "corpus-id": "a"}\n{"query_id": "q1", "document_id": "b", "score": 2}\n'
    )
    listed = read_candidates(tmp_path / "pairs.jsonl", collection())
    assert listed.documents == {"q0": (("c", None), ("a", None)), "q1": (("b", 2.0),)}
    source = FileSource("file:pairs.jsonl", listed.documents, DOCUMENTS, "m")
    asked = requests(3, "c")
    check_source(source, asked, 1)
    found = [[(c.document.id, c.origins[0].rank, c.origins[0].score) for c in own] for own in source.propose(asked, 1)]
    assert found == [[("c", 1, None), ("a", 2, None)], [("b", 1, 2.0)], []], "a known positive keeps its rank and does not count"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.trec", "q0 Q0 a 1 1.0 x\nq0 a 1.0\n", "run.trec:2: 'q0 a 1.0', expected six columns"),
        ("run.trec", "q0 Q0 a 1 1.0 x\nq0 Q0 zz 2 0.5 x\n", "run.trec:2: there is no document 'zz' in letters"),
        ("run.trec", "q0 Q0 a 1 1.0 x\nq0 Q0 a 2 0.5 x\n", "run.trec:2: query 'q0' has document 'a' twice, in line 1 too"),
        ("run.trec", "q0 Q0 a 1 nan x\n", "run.trec:1: .*a finite number"),
        ("run.trec", "other Q0 a 1 1.0 x\n", "run.trec: lists no query of letters; expected ids such as 'q0'"),
        ("run.trec", "", "run.trec: lists no query"),
        ("p.jsonl", '{"query_id": "q0"}\n', "p.jsonl:1: no \"document_id\" among 'query_id'"),
        ("p.jsonl", '{"query_id": 7, "document_id": "a"}\n', 'p.jsonl:1: "query_id" is a number'),
        ("p.jsonl", "nothing\n", "p.jsonl:1: not JSON"),
        ("p.jsonl", '{"query_id": "q0", "document_id": "a", "score": "high"}\n', 'p.jsonl:1: "score" is a string'),
        (
            "p.jsonl",
            '{"query_id": "q0", "document_id": "a"}\n{"query_id": "q0", "document_id": "b", "score": 1}\n',
            "p.jsonl:2: some lines of query 'q0' have a score and some have none",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_candidates(tmp_path / name, collection())


class Letters:
    """A cross-encoder that likes late letters, and counts what it is asked."""

    fingerprint = "letters"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, pairs):
        self.asked += len(pairs)
        return np.array([ord(content[-1]) / 1000 for _, content in pairs], np.float32)


def test_a_reranked_pool_keeps_every_origin_and_gets_one_more() -> None:
    asked = requests(2, "a")
    found = list(proposals([RandomSource(DOCUMENTS, "c")], asked, [3]))
    judge = Letters()
    items = scored(asked, found, judge)
    once = judge.asked
    ranked = Reranking("cross-encoder", judge, 1).applied(asked, items, judge)
    assert judge.asked == once, "what it scored as the teacher it is not asked again"
    assert [own for _, own in ranked] == [own for _, own in Reranking("cross-encoder", judge, 1).applied(asked, items, None)]
    for own, (_, candidates) in zip(found, ranked, strict=True):
        assert [c.origins[0] for c in candidates] == [c.origins[0] for c in own]
        order = sorted(candidates, key=lambda c: c.origins[1].rank or 0)
        assert [c.document.id for c in order] == sorted((c.document.id for c in own), reverse=True)
        assert {(c.sources, c.origins[1].maker, c.origins[1].round) for c in candidates} == {(("random", "cross-encoder"), "letters", 1)}


def test_what_is_held_comes_back_as_it_was() -> None:
    origins = [
        Origin("bm25", "m", 1, 3, 0.5),
        Origin("bm25", "m", 1, None, None),
        Origin("bm25", "m", 1, 1, 2.0, "a note"),
        Origin("x", "m"),
    ]
    lists = [
        [Candidate("q0", DOCUMENTS["a"], (origins[0],)), Candidate("q0", DOCUMENTS["b"], (origins[1],))],
        [],
        [Candidate("q2", DOCUMENTS["c"], (origins[2],)), Candidate("q2", DOCUMENTS["a"], (origins[0],))],
        [Candidate("q3", DOCUMENTS["c"], (origins[3],))],
        [Candidate("q4", DOCUMENTS["c"], (origins[0], origins[3]))],
        [Candidate("q5", DOCUMENTS["c"], (origins[0],), 0.7)],
    ]
    held = Held()
    for own in lists:
        held.add(own)
    assert [held.of(row, f"q{row}") for row in range(len(lists))] == lists

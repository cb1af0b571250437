"""Evaluation folders: what is written is read again, and nothing that is damaged is taken for a result."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import pytrec_eval

from negatron.errors import DataError, SettingError
from negatron.evaluation.benchmark import evaluate, fuse, read_evaluation, read_run, score_run, write_evaluation, write_run
from negatron.evaluation.measures import Measure, measure, ranked
from negatron.types import Query, ScoredDocument

NDCG, RECALL = Measure("ndcg", 10), Measure("recall", 2)


class WordSearcher:
    """A real, if simple, searcher: the score of a document is the number of words that it shares with the query."""

    fingerprint = "words"

    def __init__(self, documents: dict[str, str]) -> None:
        self.documents, self.asked = documents, []

    def search(self, queries: Sequence[Query], k: int) -> Iterator[Sequence[ScoredDocument]]:
        for query in queries:
            self.asked.append(query.id)
            shared = {d: len(set(query.text.split()) & set(text.split())) for d, text in self.documents.items()}
            best = sorted((-score, d) for d, score in shared.items() if score)[:k]
            yield [ScoredDocument(query.id, d, float(-score)) for score, d in best]


QUERIES = {"q1": Query("q1", "red fish"), "q2": Query("q2", "blue bird"), "q3": Query("q3", "green tree"), "q4": Query("q4", "odd")}
DOCUMENTS = {"d1": "a red fish", "d2": "a blue boat", "d3": "a blue bird flies", "d4": "one green leaf"}
GRADES = {"q1": {"d1": 1}, "q2": {"d2": 1, "d3": 0}, "q3": {"d9": 1}, "q4": {"d1": 0}}


def test_a_searcher_is_asked_for_judged_queries_only_and_measured_over_all_of_them():
    searcher = WordSearcher(DOCUMENTS)
    run, evaluation = evaluate(searcher, QUERIES, GRADES, [Measure("mrr", 10), RECALL], depth=10, model="words", data="small", split="dev")
    assert searcher.asked == ["q1", "q2", "q3"]
    assert evaluation.of("mrr@10") == {"q1": 1.0, "q2": 0.5, "q3": 0.0}
    assert evaluation.means == {Measure("mrr", 10): 0.5, RECALL: pytest.approx(2 / 3)}
    assert (evaluation.queries, evaluation.queries_without_positive) == (3, 1)
    assert set(evaluation.seconds) == {"search", "measure"}
    assert list(run) == ["q1", "q2", "q3"]
    assert "words on small, dev: 3 queries, 1 without a positive left out" in str(evaluation)


def test_a_measure_that_looks_deeper_than_the_search_is_refused():
    with pytest.raises(SettingError, match=r"recall@2 looks at 2 documents .* only 1"):
        evaluate(WordSearcher(DOCUMENTS), QUERIES, GRADES, [RECALL], depth=1)


def test_a_judged_query_that_is_nowhere_is_refused():
    with pytest.raises(DataError, match="'q7'"):
        evaluate(WordSearcher(DOCUMENTS), QUERIES, {"q7": {"d1": 1}}, [NDCG])


def test_scores_json_has_the_keys_of_the_contract(tmp_path):
    run, evaluation = evaluate(WordSearcher(DOCUMENTS), QUERIES, GRADES, [NDCG, RECALL], model="words")
    write_evaluation(tmp_path / "out", run, evaluation, texts={q.id: q.text for q in QUERIES.values()})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["per_query.parquet", "run.trec", "scores.json"]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    contract = {"model", "data", "split", "queries", "measures", "seconds", "versions"}
    assert set(scores) == contract | {"fingerprint", "queries_without_positive"}
    assert scores["measures"] == {str(one): value for one, value in evaluation.means.items()}
    assert {"negatron", "pytrec_eval-terrier", "python"} <= set(scores["versions"])


def test_an_evaluation_written_and_read_again_is_equal(tmp_path):
    run, evaluation = evaluate(WordSearcher(DOCUMENTS), QUERIES, GRADES, [RECALL, NDCG])
    write_evaluation(tmp_path, run, evaluation)
    again = read_evaluation(tmp_path)
    assert again == evaluation
    assert list(again.per_query) == [RECALL, NDCG]
    assert read_run(tmp_path / "run.trec") == {q: tuple(ranked(found)) for q, found in run.items() if found}
    assert score_run(read_run(tmp_path / "run.trec"), GRADES, [RECALL, NDCG]).per_query == evaluation.per_query


def test_means_that_are_not_those_of_the_queries_are_refused(tmp_path):
    run, evaluation = evaluate(WordSearcher(DOCUMENTS), QUERIES, GRADES, [NDCG])
    write_evaluation(tmp_path, run, evaluation)
    path = tmp_path / "scores.json"
    text = path.read_text()
    path.write_text(text.replace(str(evaluation.means[NDCG]), "0.99"))
    with pytest.raises(DataError, match=r"scores.json: ndcg@10 = 0.99 is not the mean"):
        read_evaluation(tmp_path)
    path.write_text(text.replace('"queries": 3', '"queries": 4'))
    with pytest.raises(DataError, match="over 4 queries"):
        read_evaluation(tmp_path)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="not the scores of an evaluation"):
        read_evaluation(tmp_path)
    path.write_text(text.replace("ndcg@10", "recall@10"))
    with pytest.raises(DataError, match="every measure"):
        read_evaluation(tmp_path)
    path.write_text(text)
    (tmp_path / "per_query.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"per_query.parquet: cannot be read"):
        read_evaluation(tmp_path)
    with pytest.raises(DataError, match="negatron evaluate"):
        read_evaluation(tmp_path / "nowhere")


def test_a_run_file_keeps_every_float32_score_and_the_order_of_trec_eval(tmp_path):
    draw = random.Random(3)
    scores = [np.nextafter(np.float32(0.7), np.float32(1)), np.float32(0.7), np.float32(1e-30), np.float32(-12345.678), np.float32(3e38)]
    found = [ScoredDocument("q", f"d{i}", float(draw.choice(scores))) for i in range(40)]
    write_run({"q": found}, tmp_path / "run.trec", tag="two words")
    lines = [line.split(" ") for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [int(line[3]) for line in lines] == list(range(1, 41))
    assert {line[5] for line in lines} == {"two-words"}
    assert [line[2] for line in lines] == [d.document_id for d in ranked(found)]
    assert {line[2]: np.float32(line[4]) for line in lines} == {d.document_id: np.float32(d.score) for d in found}
    again = read_run(tmp_path / "run.trec")
    for right in ("d0", "d17", "d39"):
        ours = measure(again, {"q": {right: 1}}, [Measure("mrr")])[Measure("mrr")]["q"]
        theirs = pytrec_eval.RelevanceEvaluator({"q": {right: 1}}, {"recip_rank"}).evaluate({"q": {d.document_id: d.score for d in found}})
        place = next(int(line[3]) for line in lines if line[2] == right)
        assert ours == theirs["q"]["recip_rank"] == pytest.approx(1 / place)


@pytest.mark.parametrize("name", ["plain", "two words", "no\u00a0break", "中文", "line\u2028mark", "100%20"])
def test_ids_of_all_kinds_come_back_from_a_run_file(tmp_path, name):
    run = {name: (ScoredDocument(name, f"{name}.d", 1.0), ScoredDocument(name, "other", 0.5))}
    write_run(run, tmp_path / "run.trec")
    assert read_run(tmp_path / "run.trec") == run


def test_an_id_that_a_run_file_cannot_hold_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="tabs or line breaks"):
        write_run({"q": [ScoredDocument("q", "a", 2.0), ScoredDocument("q", "b\nc", 1.0)]}, tmp_path / "run.trec")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q1 Q0 d2 2 0.5", "run.trec:2: 5 columns, expected 6"),
        ("q1 Q0 d2 2 high tag", "run.trec:2: the score is 'high'"),
        ("q1 Q0 d2 2 nan tag", "run.trec:2: the score is 'nan'"),
        ("q1 Q0 d1 2 0.5 tag", "run.trec:2: document 'd1' stands twice"),
    ],
)
def test_a_damaged_run_file_is_refused_with_its_line(tmp_path, line, said):
    (tmp_path / "run.trec").write_text(f"q1 Q0 d1 1 0.9 tag\n{line}\n")
    with pytest.raises(DataError, match=said):
        read_run(tmp_path / "run.trec")


def test_a_run_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "run.trec").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_run(tmp_path / "run.trec")


def test_fusing_adds_the_reciprocal_ranks():
    first = {"q": [ScoredDocument("q", "a", 9.0), ScoredDocument("q", "b", 8.0)]}
    second = {"q": [ScoredDocument("q", "b", 0.3), ScoredDocument("q", "c", 0.2)], "only here": [ScoredDocument("only here", "x", 1.0)]}
    fused = fuse([first, second], k=60)
    assert {d.document_id: d.score for d in fused["q"]} == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62})
    assert [d.document_id for d in fused["q"]] == ["b", "a", "c"]
    assert fused["only here"][0].score == pytest.approx(1 / 61)


def test_weights_k_and_depth_of_a_fusion_each_have_an_effect():
    first = {"q": [ScoredDocument("q", "a", 9.0), ScoredDocument("q", "b", 8.0), ScoredDocument("q", "c", 7.0)]}
    second = {"q": [ScoredDocument("q", "c", 0.3)]}
    assert [d.document_id for d in fuse([first, second])["q"]] == ["c", "a", "b"]
    assert [d.document_id for d in fuse([first, second], weights=[1.0, 0.0])["q"]] == ["a", "b", "c"]
    assert fuse([first], k=0)["q"][0].score == 1.0
    assert [d.document_id for d in fuse([first, second], depth=1)["q"]] == ["c"]
    with pytest.raises(SettingError, match="one weight a run"):
        fuse([first, second], weights=[1.0])


def test_the_order_of_the_runs_does_not_change_their_fusion():
    draw = random.Random(1)
    runs = [{"q": [ScoredDocument("q", f"d{i}", draw.random()) for i in draw.sample(range(50), 30)]} for _ in range(3)]
    assert fuse(runs) == fuse(runs[::-1])

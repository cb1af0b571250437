"""Measures against pytrec_eval asked directly, and against a few lines of NumPy that share no code with either."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from negatron.evaluation.measures import Measure, measure
from negatron.types import ScoredDocument

CUTS = (1, 3, 10, 100)


def by_numpy(found: list[ScoredDocument], grades: dict[str, int], cut: int) -> dict[str, float]:
    """nDCG, MRR, recall, precision, success and average precision at `cut`, from their definitions."""
    order = sorted(found, key=lambda d: d.document_id, reverse=True)
    order.sort(key=lambda d: -float(np.float32(d.score)))
    gains = np.array([max(grades.get(d.document_id, 0), 0) for d in order[:cut]], dtype=float)
    ideal = np.sort([g for g in grades.values() if g > 0])[::-1][:cut].astype(float)
    right = gains > 0
    places = np.flatnonzero(right) + 1
    positives = sum(g > 0 for g in grades.values())
    return {
        "ndcg": float(np.sum(gains / np.log2(np.arange(len(gains)) + 2)) / np.sum(ideal / np.log2(np.arange(len(ideal)) + 2))),
        "mrr": float(1 / places[0]) if len(places) else 0.0,
        "recall": float(right.sum() / positives),
        "precision": float(right.sum() / cut),
        "success": float(right.any()),
        "map": float(np.sum(np.arange(1, len(places) + 1) / places) / positives) if len(places) else 0.0,
    }


def random_case(seed: int) -> tuple[dict[str, list[ScoredDocument]], dict[str, dict[str, int]]]:
    """Graded judgements (also negative grades), few distinct scores so that ties abound, queries missing from the run or empty in it."""
    draw = random.Random(seed)
    run, grades = {}, {}
    for n in range(90):
        query = f"q{n}"
        pool = [f"d{i}" for i in range(40)] + [query]
        grades[query] = {d: draw.choice([-1, 0, 0, 1, 2, 3]) for d in draw.sample(pool, draw.choice([0, 1, 5, 20]))}
        kind = draw.choice(["missing", "empty", "partial", "full", "full"])
        if kind != "missing":
            size = {"empty": 0, "partial": draw.randint(1, 5), "full": 30}[kind]
            run[query] = [
                ScoredDocument(query, d, draw.choice([0.5, 1.0, 1.0 + 1e-9, 7.25, -3.0, draw.random()])) for d in draw.sample(pool, size)
            ]
    return run, grades


@pytest.mark.parametrize("seed", range(8))
def test_every_measure_equals_its_definition(seed):
    run, grades = random_case(seed)
    ties = sum(len(found) - len({np.float32(d.score) for d in found}) for found in run.values())
    missing = sum(1 for query, of in grades.items() if any(g > 0 for g in of.values()) and not run.get(query))
    assert ties > 10, "no ties, so their order would not be tested"
    assert missing > 0, "every query is answered, so the zero would not be tested"
    wanted = [Measure(name, cut) for name in ("ndcg", "mrr", "recall", "precision", "success", "map") for cut in CUTS]
    found = measure(run, grades, wanted)
    compared = 0
    for one in wanted:
        assert set(found[one]) == {query for query, of in grades.items() if any(g > 0 for g in of.values())}
        for query, value in found[one].items():
            assert value == pytest.approx(by_numpy(run.get(query, []), grades[query], one.cut)[one.name], abs=1e-12), (one, query)
            compared += value > 0
    assert compared > 100


def bm25_run(folder: Path) -> tuple[dict[str, list[ScoredDocument]], dict[str, dict[str, int]]]:
    """BM25 over a real BEIR folder: a run with real scores, and the judgements of its test split."""
    import bm25s

    documents = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    queries = {q["_id"]: q["text"] for q in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))}
    grades: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        grades.setdefault(query, {})[document] = int(grade)
    index = bm25s.BM25()
    index.index(bm25s.tokenize([d["title"] + " " + d["text"] for d in documents], show_progress=False), show_progress=False)
    tokens = bm25s.tokenize([queries[q] for q in grades], show_progress=False)
    found, scores = index.retrieve(tokens, k=100, show_progress=False)
    run = {
        query: [ScoredDocument(query, documents[i]["_id"], float(s)) for i, s in zip(found[n], scores[n], strict=True)]
        for n, query in enumerate(grades)
    }
    return run, grades


@pytest.mark.skipif("NEGATRON_DATA" not in os.environ, reason="NEGATRON_DATA does not name the folder of the BEIR sets")
def test_measures_of_a_real_run_equal_pytrec_eval():
    run, grades = bm25_run(Path(os.environ["NEGATRON_DATA"]) / "scifact")
    judged = {query for query, of in grades.items() if any(g > 0 for g in of.values())}
    names = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "precision@10": "P_10", "map@100": "map_cut_100", "mrr": "recip_rank"}
    asked = {"ndcg_cut.10", "recall.100", "P.10", "map_cut.100", "recip_rank"}
    whole = {query: {d.document_id: d.score for d in found} for query, found in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(grades, asked).evaluate(whole)
    ours = measure(run, grades, [Measure.parse(name) for name in [*names, "mrr@10"]])
    for name, key in names.items():
        values = ours[Measure.parse(name)]
        assert set(values) == judged
        assert 0 < sum(values.values()) < len(values)
        assert all(abs(value - theirs[query][key]) <= 1e-12 for query, value in values.items()), name
    cut = {q: dict(sorted(sorted(of.items(), reverse=True), key=lambda x: -np.float32(x[1]))[:10]) for q, of in whole.items()}
    first_ten = pytrec_eval.RelevanceEvaluator(grades, {"recip_rank"}).evaluate(cut)
    assert all(abs(value - first_ten[query]["recip_rank"]) <= 1e-12 for query, value in ours[Measure("mrr", 10)].items())
    assert ours[Measure("mrr", 10)] != ours[Measure("mrr")], "no first hit below rank 10, so the cut would not be tested"

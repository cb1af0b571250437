"""What must stay true of measures, whatever the run: together = alone, no hash seed matters, shifting all scores moves nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

from negatron.evaluation.measures import Measure, mean_over_judged, measure
from negatron.types import ScoredDocument

NAMES = [
    "ndcg@10",
    "ndcg@5",
    "ndcg",
    "mrr@10",
    "mrr@3",
    "mrr",
    "recall@10",
    "recall@100",
    "precision@10",
    "map@10",
    "map",
    "success@1",
    "success@5",
]

SCRIPT = """
import json, sys
from negatron.evaluation.measures import Measure, measure
from negatron.types import ScoredDocument
rows, grades, names = json.load(sys.stdin)
run = {q: [ScoredDocument(q, d, s) for d, s in found] for q, found in rows.items()}
found = measure(run, grades, [Measure.parse(name) for name in names])
print(json.dumps({str(one): values for one, values in found.items()}))
"""


def case() -> tuple[dict[str, list[ScoredDocument]], dict[str, dict[str, int]]]:
    draw = random.Random(5)
    run, grades = {}, {}
    for n in range(20):
        query = f"q{n}"
        grades[query] = {f"d{i}": draw.choice([0, 1, 2]) for i in draw.sample(range(60), 8)}
        run[query] = [ScoredDocument(query, f"d{i}", draw.randint(0, 12) / 4) for i in draw.sample(range(60), 40)]
    del run["q3"]
    return run, grades


def test_measured_together_equals_measured_alone():
    run, grades = case()
    measures = [Measure.parse(name) for name in NAMES]
    together = measure(run, grades, measures)
    assert len({mean_over_judged(values, values) for values in together.values()}) == len(NAMES), "two measures agree: a mix-up could hide"
    for one in measures:
        assert measure(run, grades, [one])[one] == together[one]
    for query, of_query in grades.items():
        alone = measure({query: run.get(query, [])}, {query: of_query}, measures)
        for one in measures:
            assert alone[one].get(query) == together[one].get(query)


def test_no_hash_seed_and_no_order_of_asking_moves_a_measure():
    run, grades = case()
    here = {str(one): values for one, values in measure(run, grades, [Measure.parse(name) for name in NAMES]).items()}
    rows = {query: [(d.document_id, d.score) for d in found] for query, found in run.items()}
    for seed in ("0", "1", "2", "3"):
        names = random.Random(seed).sample(NAMES, len(NAMES))
        answer = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps([rows, grades, names]),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(answer.stdout) == here


def test_shifting_all_scores_moves_no_measure():
    run, grades = case()
    measures = [Measure.parse(name) for name in NAMES]
    shifted = {q: [ScoredDocument(q, d.document_id, d.score - 1000.0) for d in found] for q, found in run.items()}
    upside_down = {q: [ScoredDocument(q, d.document_id, -d.score) for d in found] for q, found in run.items()}
    assert measure(upside_down, grades, measures) != measure(run, grades, measures), "the scores do not matter here"
    assert measure(shifted, grades, measures) == measure(run, grades, measures)


def test_the_order_in_which_results_are_given_moves_no_measure():
    run, grades = case()
    measures = [Measure.parse(name) for name in NAMES]
    other_way = {query: found[::-1] for query, found in reversed(run.items())}
    assert measure(other_way, grades, measures) == measure(run, grades, measures)


def test_leaving_queries_out_of_the_run_lowers_the_mean():
    """Silent error of a peer: a mean over the queries of the run is 1.0 where half of them are missing."""
    grades = {f"q{n}": {"d": 1} for n in range(10)}
    run = {f"q{n}": [ScoredDocument(f"q{n}", "d", 1.0)] for n in range(5)}
    values = measure(run, grades, [Measure("ndcg", 10)])[Measure("ndcg", 10)]
    assert values.keys() == grades.keys()
    assert mean_over_judged(values, list(grades)) == 0.5
    assert mean_over_judged(dict.fromkeys(run, 1.0), list(grades)) == 0.5


def test_measuring_works_without_torch_scipy_and_plotly():
    code = (
        "import sys, negatron.evaluation.report, negatron.evaluation.significance; "
        "print([name for name in ('torch', 'scipy', 'plotly', 'pytrec_eval', 'jinja2') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

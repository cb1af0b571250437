"""`negatron explain` prints the whole way of a query, from the searchers to the verdicts: a golden text, made again by

    python tests/end_to_end/test_explain_golden.py

The vectors are a table, so that every number can be checked by hand: positive 0.8, margin 0.05, so the limit is 0.76.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from negatron.conformance import ScriptedLanguageModel, TableEncoder
from negatron.models.bm25 import BM25Searcher
from negatron.models.dense_index import DenseSearcher, EncoderScorer
from negatron.models.vectors import VectorStore
from negatron.negatives.filters import FilterSettings
from negatron.negatives.mining import SearchSource, propose_all
from negatron.negatives.records import KIND, write_negatives
from negatron.negatives.synthesis import SynthesisSettings, SyntheticSource
from negatron.store import begin
from negatron.types import Document, NegativeRequest, Query
from negatron.verbs.negatives import explain, judged_and_chosen

GOLDEN = Path(__file__).parent / "golden" / "explain.txt"
QUESTION = "why do ships float on the sea"
WRITTEN = "Sailors paint the outside of a ship every second spring, in a dry dock."
DOCUMENTS = {  # id: (text, cosine to the question); each text has a direction of its own beside the question's
    "hull": ("The hull displaces water that weighs as much as the vessel.", 0.8),
    "copy": ("the HULL displaces water that weighs as much as the vessel.", 0.8),
    "near": ("The hull displaces water that weighs as much as the whole vessel, always.", 0.79),
    "false": ("Ships float because the sea carries them.", 0.77),
    "decoy": ("Children ask why ships float on the sea.", 0.7),
    "other": ("Why do kites fly on windy days by the sea?", 0.3),
    "far": ("Yeast turns sugar into gas.", 0.0),
}


def table() -> TableEncoder:
    """The question is the first axis; a text of cosine c is (c, sqrt(1 - c^2)) on the first axis and one of its own."""
    texts = [*(text for text, _ in DOCUMENTS.values()), WRITTEN]
    cosines = [*(cosine for _, cosine in DOCUMENTS.values()), 0.5]
    axes = len(texts) + 1
    vectors = {QUESTION: [1.0] + [0.0] * len(texts)}
    for number, (text, cosine) in enumerate(zip(texts, cosines, strict=True), 1):
        vectors[text] = [cosine if axis == 0 else (1 - cosine**2) ** 0.5 if axis == number else 0.0 for axis in range(axes)]
    return TableEncoder(vectors)


def explained(folder: Path) -> str:
    """The biography of one query whose candidates come from BM25, from dense search and from a language model."""
    documents = {id_: Document(id_, text) for id_, (text, _) in DOCUMENTS.items()}
    request = NegativeRequest(Query("q1", QUESTION), (documents["hull"],))
    dense = DenseSearcher(table(), list(documents.values()), VectorStore(folder / "vectors"), "golden")
    reply = '{"hard_negatives": [{"text": "%s"}]}' % WRITTEN  # noqa: UP031 - braces
    sources = [
        SearchSource("bm25", BM25Searcher(list(documents.values()), "golden"), documents),
        SearchSource("dense", dense, documents),
        SyntheticSource(ScriptedLanguageModel([reply]), SynthesisSettings(prompt="drg.v1", per_query=6)),
    ]
    candidates = propose_all(sources, [request], 6)
    teacher = EncoderScorer(dense.encoder, dense.store, dense)
    items = judged_and_chosen([request], candidates, teacher, FilterSettings(near_copy=0.6), 2, "top", 0)
    with begin(folder / "neg", kind=KIND, inputs={}) as work:
        work.finish(summary=write_negatives(work.path, items).as_json())
    # who made a candidate depends on the version of bm25s, and is masked
    return re.sub(r"maker [0-9a-f]{16}", "maker ................", str(explain(folder / "neg", "q1"))) + "\n"


def test_the_biography_of_a_query_is_the_golden_one(tmp_path: Path) -> None:
    assert explained(tmp_path) == GOLDEN.read_text(encoding="utf-8")


def test_the_golden_text_shows_every_kind_of_source_and_verdict() -> None:
    text = GOLDEN.read_text(encoding="utf-8")
    for words in ("bm25 rank", "dense rank", "synthetic rank", "known positive: rejects", "copy of positive hull", "near copy of hull",
                  "relative margin: rejects, 0.7700 against 0.7600", "selection: keeps", "selection: rejects"):  # fmt: skip
        assert words in text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        GOLDEN.write_text(explained(Path(place)), encoding="utf-8")
    sys.stdout.write(f"{GOLDEN}\n")

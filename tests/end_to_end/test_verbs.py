"""Every verb of the contract on the user's own BEIR folder: what it makes, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from negatron.cli import app
from negatron.data.beir import write_beir
from negatron.data.collection import Collection
from negatron.data.formats import read, read_qrels, read_run
from negatron.identity import file_sha256, same_words
from negatron.negatives.records import Negatives
from negatron.store import read_manifest
from negatron.types import Document, JudgedQuery, Judgement, Query
from negatron.verbs.common import load

pytest.importorskip("torch", reason="needs negatron[train]")

COMMAND = Path(sys.executable).with_name("negatron")
LOOSE = ("--set", "relative_margin=0", "--set", "precision=fp32")
VERBS = {
    *(command.name or command.callback.__name__ for command in app.registered_commands),
    *(f"{group.name} {command.name}" for group in app.registered_groups for command in group.typer_instance.registered_commands),
}


def kept(folder: Path) -> dict[str, list[str]]:
    """query id -> ids of its negatives."""
    return {item.query.id: [j.candidate.document.id for j in item.judged if j.kept] for item in Negatives.open(folder)}


def by_text(items: Iterable[JudgedQuery]) -> dict[str, set[str]]:
    """query text -> texts of its negatives, for forms that hold no ids."""
    found: dict[str, set[str]] = {}
    for item in items:
        texts = {same_words(j.candidate.document.content) for j in item.judged if j.kept}
        found.setdefault(same_words(item.query.text), set()).update(texts)
    return found


def partial_folders(place: Path) -> list[str]:
    return [path.name for path in place.rglob(".*.partial")]


# ---- the contract --------------------------------------------------------------------------------------------------------------------


def test_the_verbs_are_those_of_the_contract() -> None:
    contract = "demo mine synthesize filter mix export train evaluate compare search report explain"
    assert {verb for verb in VERBS if " " not in verb} >= set(contract.split())
    groups = {"data list", "data fetch", "data check", "data import", "data export", "models list", "models fetch"}
    assert {verb for verb in VERBS if " " in verb} >= groups


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_help_of_every_verb_has_an_example_and_json(verb: str, negatron) -> None:
    words = " ".join(negatron(*verb.split(), "--help").out.split())
    assert f"Example: negatron {verb} " in words or f"Example: negatron {verb}." in words
    assert "--json" in words


@pytest.mark.parametrize(
    ("arguments", "wrong", "meant"),
    [
        ("mine {data}", "dept=5", "depth"),
        ("filter {mined}", "relativ_margin=0.1", "relative_margin"),
        ("synthesize {data}", "temprature=1", "temperature"),
        ("mix {mined}", "ration=1", "ratio"),
        ("train {data}", "bacth_size=2", "batch_size"),
        ("evaluate bm25 {data}", "measure=['ndcg@5']", "measures"),
        ("search bm25 {data} words", "max_lenght=9", "max_length"),
        ("demo", "documents_=5", "documents"),
    ],
)
def test_an_unknown_setting_ends_in_one_line_with_the_nearest_name(arguments: str, wrong: str, meant: str, negatron, data, mined) -> None:
    said = negatron(*arguments.format(data=data, mined=mined).split(), "--set", wrong, expect=2)
    assert said.out == "" and said.err.count("\n") == 1
    assert f"no setting {wrong.partition('=')[0]!r}; did you mean {meant!r}?" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        "mine {there}/none --source bm25 --out {there}/x",
        "synthesize {there}/none --out {there}/x",
        "filter {there}/none --out {there}/x",
        "mix {there}/none {mined} --out {there}/x",
        "export {there}/none --format trec --out {there}/x",
        "explain {there}/none q-cells",
        "train {there}/none --negatives none --out {there}/x",
        "train {data} --negatives {there}/none --model {model} --out {there}/x",
        "train {data} --negatives none --model {there}/none --out {there}/x",
        "evaluate bm25 {there}/none --out {there}/x",
        "evaluate {there}/none {data} --out {there}/x",
        "compare {there}/none {there}/none",
        "search bm25 {there}/none words",
        "report {there}/none",
        "data check {there}/none",
        "data import {there}/none.csv --out {there}/x",
    ],
)
def test_a_missing_folder_is_named_and_nothing_is_written(arguments: str, negatron, data, mined, tiny_encoder, tmp_path) -> None:
    said = negatron(*arguments.format(there=tmp_path, data=data, mined=mined, model=tiny_encoder).split(), expect=2)
    assert "none" in said.err + said.out and "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_the_console_command_speaks_by_exit_codes_and_keeps_stdout_for_results(data: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "NEGATRON_CACHE": str(tmp_path / "cache")}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(COMMAND), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)

    mine = run("mine", data, "--source", "bm25", "--set", "relative_margin=off", "--out", tmp_path / "neg", "--json")
    assert mine.returncode == 0, mine.stderr
    assert json.loads(mine.stdout)["summary"]["queries"] == 6, "one JSON object and nothing else"
    assert "bm25 search: 6/6 queries" in mine.stderr
    wrong = run("mine", data, "--set", "dept=3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "negatron: --set dept=3: there is no setting 'dept'; did you mean 'depth'?\n"


def test_an_interrupted_command_says_that_it_goes_on(data: Path, tmp_path: Path) -> None:
    code = f"""
from negatron.cli import main
from negatron.models import bm25
def stop(*_, **__): raise KeyboardInterrupt
bm25.BM25Searcher.search = stop
main(["mine", {str(data)!r}, "--source", "bm25", "--set", "relative_margin=off", "--out", {str(tmp_path / "neg")!r}])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 130 and "the same command goes on where it was" in ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "neg").exists()


@pytest.mark.parametrize("arguments", ["data list", "models list", "filter {mined} --set relative_margin=0", "explain {mined} q-rain"])
def test_json_is_one_object_alone_on_stdout(arguments: str, negatron, mined: Path) -> None:
    said = negatron(*arguments.format(mined=mined).split(), "--json")
    assert isinstance(said.json, dict) and said.json and said.out.startswith("{") and said.out.endswith("}\n")
    assert not negatron(*arguments.format(mined=mined).split()).out.startswith("{"), "without it, words"


# ---- data ----------------------------------------------------------------------------------------------------------------------------


def test_data_check_counts_what_is_there_and_tells_of_a_damage_with_its_line(negatron, data: Path, tmp_path: Path) -> None:
    assert negatron("data", "check", data, "--json").json["documents"] == 40
    broken = shutil.copytree(data, tmp_path / "broken")
    (broken / "manifest.json").unlink()
    with (broken / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q-new", "text": \n')
    said = negatron("data", "check", broken, expect=2)
    assert "queries.jsonl:11:" in said.out
    assert "queries.jsonl:11:" in negatron("mine", broken, "--source", "bm25", "--out", tmp_path / "neg", expect=2).err
    assert not (tmp_path / "neg").exists() and partial_folders(tmp_path) == []


def test_imported_pairs_can_be_mined(negatron, tmp_path: Path) -> None:
    rows = [f"what is number {n},number {n} is {n * n} squared" for n in range(200)]
    (tmp_path / "pairs.csv").write_text("query,answer\n" + "\n".join(rows) + "\n")
    negatron("data", "import", tmp_path / "pairs.csv", "--out", tmp_path / "data", "--query-column", "query")
    made = load(tmp_path / "data")
    assert len(made.documents) == 200 and {"train", "test"} <= made.judgements.keys()
    off = ("--set", "relative_margin=off", "--set", "near_copy=off")
    found = negatron("mine", tmp_path / "data", "--source", "bm25", *off, "--out", tmp_path / "neg", "--json").json
    assert found["summary"]["queries"] == len(made.pairs("train").pairs) > 100


@pytest.mark.parametrize("format_", ["beir", "hub"])
def test_an_exported_data_set_loads_as_the_same_collection(format_: str, negatron, data: Path, tmp_path: Path) -> None:
    negatron("data", "export", data, "--format", format_, "--out", tmp_path / "out", "--json")
    collection, back = load(data), load(tmp_path / "out")
    assert (dict(back.documents), dict(back.queries)) == (dict(collection.documents), dict(collection.queries))
    assert {split: set(rows) for split, rows in back.judgements.items()} == {s: set(rows) for s, rows in collection.judgements.items()}


def test_a_training_file_of_another_tool_becomes_a_data_set_with_its_negatives(negatron, mined: Path, tmp_path: Path) -> None:
    negatron("export", mined, "--format", "flagembedding", "--out", tmp_path / "train.jsonl")
    imported = ("--out", tmp_path / "data", "--negatives", tmp_path / "neg")
    counts = negatron("data", "import", tmp_path / "train.jsonl", "--format", "flagembedding", *imported, "--json").json
    assert by_text(Negatives.open(tmp_path / "neg")) == by_text(Negatives.open(mined))
    assert counts["documents"] == len(load(tmp_path / "data").documents)


# ---- negatives -----------------------------------------------------------------------------------------------------------------------


def test_mining_leaves_out_what_the_test_split_asks_and_says_so(negatron, mined: Path) -> None:
    assert read_manifest(mined).facts["dropped_queries"] == 1
    assert "q-same" not in kept(mined) and len(kept(mined)) == 6


def test_no_positive_and_no_copy_of_one_is_kept(mined: Path, data: Path) -> None:
    collection = load(data)
    rejected = Counter(verdict.rule for item in Negatives.open(mined) for j in item.judged for verdict in j.verdicts if not verdict.kept)
    assert rejected["known positive"] >= 6 and rejected["same text"] >= 5, "there was something to reject"
    for query_id, ids in kept(mined).items():
        positives = {same_words(document.content) for document in collection.positives("train")[query_id]}
        assert ids and not positives & {same_words(collection.documents[id_].content) for id_ in ids}
    assert "ships-3" not in kept(mined)["q-ships"], "the answer of a query with the same text"


@pytest.mark.parametrize("source", ["bm25", "dense"])
def test_one_source_alone_finds_what_it_finds_in_company(source: str, negatron, data, mined, tiny_encoder, tmp_path) -> None:
    negatron("mine", data, "--source", source, "--model", tiny_encoder, "--negatives", 3, *LOOSE, "--out", tmp_path / "neg")

    def found(folder: Path) -> dict[tuple[str, str], tuple[int | None, float | None]]:
        origins = ((item.query.id, j.candidate.document.id, o) for item in Negatives.open(folder) for j in item.judged for o in
                   j.candidate.origins if o.source == source)  # fmt: skip
        return {(query_id, document_id): (origin.rank, origin.score) for query_id, document_id, origin in origins}

    assert found(tmp_path / "neg") == found(mined) != {}
    assert {s for item in Negatives.open(tmp_path / "neg") for j in item.judged for s in j.candidate.sources} == {source}


def test_the_same_command_gives_the_finished_folder_back(negatron, data, mined, tiny_encoder, place) -> None:
    before = {path.name: (path.stat().st_mtime_ns, file_sha256(path)) for path in mined.iterdir()}
    command = ("mine", data, "--source", "dense", "--source", "bm25", "--model", tiny_encoder, "--negatives", 3)
    again = negatron(*command, *LOOSE, "--out", mined, "--json")
    assert again.json["fingerprint"] == read_manifest(mined).fingerprint and again.err == ""
    assert {path.name: (path.stat().st_mtime_ns, file_sha256(path)) for path in mined.iterdir()} == before


def test_other_settings_into_the_same_place_are_refused_by_name(negatron, data, mined, trained, evaluated, tiny_encoder) -> None:
    said = negatron("mine", data, "--model", tiny_encoder, "--negatives", 2, *LOOSE, "--out", mined, expect=2)
    assert "settings.negatives: 3 there, 2 now" in said.err
    said = negatron("filter", mined, "--out", trained, expect=2)
    assert "it holds model, not negatives" in said.err
    said = negatron("evaluate", "bm25", data, "--name", "after", "--out", evaluated / "after", expect=2)
    assert "already holds another result (model." in said.err


def test_a_mistyped_option_leaves_no_half_folder(negatron, data, tiny_encoder, tmp_path) -> None:
    for wrong in (("--split", "trian"), ("--source", "desne"), ("--set", "max_length=4096")):
        said = negatron("mine", data, "--source", "dense", "--model", tiny_encoder, *wrong, "--out", tmp_path / "neg", expect=2)
        assert "train" in said.err or "dense" in said.err or "128 tokens at most" in said.err
    negatron("evaluate", tiny_encoder, data, "--split", "tset", "--out", tmp_path / "eval", expect=2)
    negatron("train", data, "--negatives", "none", "--dev-split", "dve", "--model", tiny_encoder, "--out", tmp_path / "model", expect=2)
    assert list(tmp_path.iterdir()) == []


def test_filtering_again_asks_no_model(negatron, data, place, tiny_encoder, tmp_path) -> None:
    model = shutil.copytree(tiny_encoder, tmp_path / "model")
    negatron("mine", data, "--source", "dense", "--model", model, *LOOSE, "--out", tmp_path / "neg")
    shutil.rmtree(model)
    said = negatron("filter", tmp_path / "neg", "--set", "relative_margin=0.02", "--set", "negatives=40", "--out", tmp_path / "stricter")
    assert said.err == ""
    loose = {q: [j.candidate for j in item.judged] for q, item in ((i.query.id, i) for i in Negatives.open(tmp_path / "neg"))}
    strict = list(Negatives.open(tmp_path / "stricter"))
    assert {item.query.id: [j.candidate for j in item.judged] for item in strict} == loose, "the candidates and their scores stay"
    for item in strict:
        lowest = min(positive.teacher_score for positive in item.positives)
        margins = [(j, v) for j in item.judged for v in j.verdicts if v.rule == "relative margin"]
        assert all(v.limit == pytest.approx(0.98 * lowest) and v.kept == (j.candidate.teacher_score < v.limit) for j, v in margins)
    assert 0 < sum(map(len, kept(tmp_path / "stricter").values())) < sum(map(len, loose.values()))


def test_a_margin_over_scores_that_are_not_there_is_refused(negatron, data, tmp_path) -> None:
    off = ("--set", "relative_margin=off")
    negatron("mine", data, "--source", "bm25", *off, "--out", tmp_path / "neg")
    said = negatron("filter", tmp_path / "neg", "--set", "relative_margin=0.1", "--out", tmp_path / "x", expect=2)
    assert "needs teacher scores" in said.err and "turn the filter off" in said.err
    negatron("filter", tmp_path / "neg", "--out", tmp_path / "x")  # what was off stays off


def test_a_margin_over_scores_of_two_encoders_is_refused(negatron, data, mined, trained, tmp_path) -> None:
    negatron("mine", data, "--source", "dense", "--model", trained, *LOOSE, "--out", tmp_path / "other")
    negatron("mix", mined, tmp_path / "other", "--ratio", 0, "--out", tmp_path / "mix")
    said = negatron("filter", tmp_path / "mix", "--out", tmp_path / "x", expect=2)
    assert "several encoders" in said.err
    negatron("filter", tmp_path / "mix", "--set", "relative_margin=off", "--out", tmp_path / "x")


def test_explain_tells_who_found_a_candidate_and_what_each_rule_decided(negatron, mined: Path) -> None:
    text = negatron("explain", mined, "q-cells").out
    assert text.startswith("query q-cells: how do cells divide\n  positive cells-1, teacher score ")
    assert "known positive: rejects" in text and "same text: rejects (copy of positive cells-1)" in text
    assert "bm25 rank " in text and "dense rank " in text and "selection: keeps, 1.0000 against 3.0000" in text
    record = negatron("explain", mined, "q-cells", "--json").json
    assert record["query"]["text"] == "how do cells divide" and len(record["judged"]) == text.count("teacher score") - 2
    assert "no query 'q-none'; it holds 6 queries" in negatron("explain", mined, "q-none", expect=2).err


@pytest.mark.parametrize("format_", ["sentence-transformers", "triplets", "flagembedding", "tevatron", "beir"])
def test_an_export_reads_back_with_the_same_negatives(format_: str, negatron, mined: Path, tmp_path: Path) -> None:
    ending = {"flagembedding": ".jsonl", "tevatron": ".jsonl", "beir": ""}.get(format_, ".parquet")
    counts = negatron("export", mined, "--format", format_, "--out", tmp_path / f"out{ending}", "--json").json
    assert counts["queries"] == 6
    back = read(tmp_path / f"out{ending}", format_)
    assert by_text(back.judged) == by_text(Negatives.open(mined))
    assert len(back.collection.queries) in (5, 6), "two of the six queries have one text, which a table without ids cannot tell apart"


def test_a_trec_export_holds_the_judgements_and_the_candidates(negatron, mined: Path, tmp_path: Path) -> None:
    counts = negatron("export", mined, "--format", "trec", "--out", tmp_path / "out", "--json").json
    rows = read_qrels(next(path for path in tmp_path.iterdir() if "qrels" in path.name or path.suffix == ".txt"))
    assert sum(row.grade > 0 for row in rows) == counts["positives"] and sum(row.grade == 0 for row in rows) == counts["negatives"]
    assert counts["negatives"] == sum(map(len, kept(mined).values()))


def test_written_negatives_are_judged_like_mined_ones_and_asked_for_once(negatron, data, written, chat_server, tiny_encoder, tmp_path):
    facts = read_manifest(written).facts
    assert facts["writing"]["requests"] == 6 and facts["dropped_queries"] == 1 and facts["model"] is None
    assert set(facts["summary"]["rejected"]) <= {"same text", "near copy", "known positive"}
    for query_id, ids in kept(written).items():
        assert ids and all(id_.startswith("written:") for id_ in ids), query_id
    asked = len(chat_server.bodies)
    assert asked == 6 - 1 or asked == 6, "the two queries of one text may share a request"
    command = ("synthesize", data, "--endpoint", chat_server.url, "--llm", "served", "--per-query", 3, "--prompt", "drg.v1")
    negatron(*command, "--set", "relative_margin=0", "--model", tiny_encoder, "--out", tmp_path / "again")
    assert len(chat_server.bodies) == asked, "the ledger answers"
    plan = negatron(*command, "--dry-run", "--json").json
    assert plan["requests"] == 6 and plan["prompt_tokens"] > 0 and len(chat_server.bodies) == asked


def test_a_batch_file_is_written_instead_of_asking(negatron, data, chat_server, tmp_path) -> None:
    asked = len(chat_server.bodies)
    said = negatron("synthesize", data, "--llm", "m", "--export-batch", tmp_path / "batch.jsonl", "--json").json
    lines = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    assert said["requests"] == 6 and len(lines) == 6 and {line["body"]["model"] for line in lines} == {"m"}
    assert len(chat_server.bodies) == asked


@pytest.mark.parametrize(("mode", "ratio"), [("instance", "1"), ("pool", "1"), ("pure", None)])
def test_a_mixture_holds_both_kinds_by_its_mode(mode: str, ratio: str | None, negatron, mined, written, tmp_path) -> None:
    given = ("--ratio", ratio) if ratio else ()
    report = negatron("mix", mined, written, "--mode", mode, *given, "--negatives", 2, "--out", tmp_path / "mix", "--json").json["mix"]
    kinds = [{"written" if id_.startswith("written:") else "mined" for id_ in ids} for ids in kept(tmp_path / "mix").values()]
    assert report["queries"] == len(kinds) == 6
    if mode == "instance":
        assert kinds.count({"written", "mined"}) == 6 and report["ratio"] == 1
    elif mode == "pool":
        assert {frozenset(kind) for kind in kinds} == {frozenset({"written"}), frozenset({"mined"})}
    else:
        assert kinds == [{"written"}] * 6


# ---- training and measuring ----------------------------------------------------------------------------------------------------------


def test_plain_sentence_transformers_loads_the_trained_model_and_encodes_the_same(trained: Path, tiny_encoder: Path) -> None:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from negatron.models.encoder import SentenceEncoder

    facts = read_manifest(trained, "model").facts
    assert facts["pairs"] == 7 and facts["steps"] == 2 and facts["dropped_queries"] == 1 and facts["most_negatives"] == 3
    texts = ["how do cells divide", "Mitosis splits the nucleus before the body separates in two."]
    theirs = SentenceTransformer(str(trained), device="cpu").encode(texts)
    ours = SentenceEncoder(trained, precision="fp32", device="cpu")
    assert np.abs(theirs - ours.encode_documents(texts)).max() < 1e-6
    before = SentenceEncoder(tiny_encoder, precision="fp32", device="cpu")
    assert np.abs(before.encode_documents(texts) - ours.encode_documents(texts)).max() > 1e-3, "it learnt something"
    assert before.fingerprint != ours.fingerprint


def test_the_same_training_gives_the_same_weights(negatron, data, mined, trained, tiny_encoder, tmp_path) -> None:
    recipe = ("--set", "batch_size=4", "--set", "learning_rate=0.001", "--set", "precision=fp32")
    command = ("train", data, "--negatives", mined, "--model", tiny_encoder, *recipe)
    assert negatron(*command, "--seed", 3, "--out", trained, "--json").json["fingerprint"] == read_manifest(trained).fingerprint
    negatron(*command, "--seed", 3, "--out", tmp_path / "again")
    assert file_sha256(tmp_path / "again" / "model.safetensors") == file_sha256(trained / "model.safetensors")


def test_negatives_that_fit_no_pair_are_refused_not_ignored(negatron, data, tiny_encoder, tmp_path) -> None:
    off = ("--set", "relative_margin=off")
    negatron("mine", data, "--source", "bm25", "--split", "test", *off, "--out", tmp_path / "other-split")
    said = negatron("train", data, "--negatives", tmp_path / "other-split", "--model", tiny_encoder, "--out", tmp_path / "m", expect=2)
    assert "none of the 7 pairs of train has a negative: the folder holds the queries of 0 of them" in said.err
    collection = load(data)
    renamed = {id_: type(query)(id_, f"{query.text} today") for id_, query in collection.queries.items()}
    write_beir(Collection("other", collection.documents, renamed, collection.judgements), tmp_path / "other-data")
    negatron("mine", tmp_path / "other-data", "--source", "bm25", *off, "--out", tmp_path / "other-texts")
    said = negatron("train", data, "--negatives", tmp_path / "other-texts", "--model", tiny_encoder, "--out", tmp_path / "m", expect=2)
    assert "reads 'how do cells divide today' in the negatives" in said.err
    assert not (tmp_path / "m").exists() and partial_folders(tmp_path) == []


def test_training_with_no_options_mines_by_itself(negatron, data, tiny_encoder, tmp_path) -> None:
    recipe = ("--set", "batch_size=4", "--set", "precision=fp32", "--pairs", 4)
    said = negatron("train", data, "--model", tiny_encoder, *recipe, "--out", tmp_path / "m", expect=2)
    assert "keeps no candidate" in said.err, "an untrained encoder's margin leaves nothing, which is said"
    none = negatron("train", data, "--negatives", "none", "--model", tiny_encoder, *recipe, "--out", tmp_path / "m", "--json").json
    assert none["pairs"] == 4 and none["most_negatives"] == 0


def test_scores_json_has_the_keys_of_the_contract(evaluated: Path) -> None:
    scores = json.loads((evaluated / "after" / "scores.json").read_text())
    assert {"model", "data", "split", "queries", "measures", "seconds", "versions"} <= scores.keys()
    assert (scores["model"], scores["split"], scores["queries"]) == ("after", "test", 3)
    assert {"ndcg@10", "mrr@10", "recall@100"} <= scores["measures"].keys()
    assert {path.name for path in (evaluated / "after").iterdir()} >= {"scores.json", "run.trec", "per_query.parquet", "manifest.json"}


def test_a_run_file_measured_again_gives_the_same_scores(negatron, data, evaluated, tmp_path) -> None:
    run = evaluated / "after" / "run.trec"
    assert len({row.query_id for row in read_run(run)}) == 3
    again = negatron("evaluate", run, data, "--out", tmp_path / "again", "--json").json
    assert again["measures"] == json.loads((evaluated / "after" / "scores.json").read_text())["measures"]


def test_fused_searchers_are_named_and_must_differ(negatron, data, tiny_encoder, tmp_path) -> None:
    fused = negatron("evaluate", f"bm25+{tiny_encoder}", data, "--set", "precision=fp32", "--out", tmp_path / "fused", "--json").json
    assert {"search bm25", "search dense"} <= fused["seconds"].keys()
    assert "different names joined by +" in negatron("evaluate", "bm25+bm25", data, expect=2).err


def test_compare_reads_single_folders_and_folders_of_seeds(negatron, data, evaluated, tiny_encoder, tmp_path) -> None:
    one = negatron("compare", evaluated / "before", evaluated / "after", "--json").json
    assert (one["name_a"], one["name_b"]) == ("before", "after") and 0 < one["p_value"] <= 1
    for side, name in (("a", "before"), ("b", "after")):
        for seed in (1, 2):
            shutil.copytree(evaluated / name, tmp_path / side / f"seed-{seed}")
    seeds = negatron("compare", tmp_path / "a", tmp_path / "b", "--json").json
    assert seeds["difference"] == one["difference"], "equal seeds average to themselves"
    text = negatron("compare", evaluated / "before", evaluated / "after").out
    assert "smallest visible difference" in text and "95 % interval" in text
    assert "did you mean 'ndcg@10'?" in negatron("compare", evaluated / "before", evaluated / "after", "--measure", "ndcg@1", expect=2).err


def test_search_shows_two_models_side_by_side(negatron, data, trained) -> None:
    command = ("search", "bm25", data, "why do ships float", "--beside", trained, "--count", 3)
    text = negatron(*command).out
    assert text.splitlines()[0].split()[0] == "bm25" and len(text.splitlines()) == 4 and "[" in text
    rows = negatron(*command, "--json").json
    assert rows["bm25"][0]["document_id"] == "ships-3" and len(rows[str(trained)]) == 3
    assert "twice" in negatron("search", "bm25", data, "ships", "--beside", "bm25", expect=2).err
    negatron("search", "bm25", data, "ships", "--count", 0, expect=2)


def test_the_report_is_one_page_without_addresses_to_load(negatron, evaluated, tmp_path) -> None:
    page = negatron("report", evaluated, "--reference", "before", "--out", tmp_path / "report.html", "--json").json["report"]
    text = Path(page).read_text()
    assert "before" in text and "after" in text and 'src="http' not in text and "<link" not in text
    assert "did you mean 'before'?" in negatron("report", evaluated, "--reference", "befor", expect=2).err


# ---- nothing is accepted and left unused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("mine {data} --source dense --model {model} --set bm25_k1=1.2", "bm25_k1"),
        ("mine {data} --source bm25 --set relative_margin=off --set max_length=32", "max_length"),
        ("evaluate bm25 {data} --set precision=fp32", "precision"),
        ("evaluate {run} {data} --set depth=10", "depth"),
        ("search bm25 {data} words --set max_length=32", "max_length"),
        ("synthesize {data} --llm m --endpoint http://127.0.0.1:9/v1 --set relative_margin=off --set max_length=32", "max_length"),
        ("synthesize {data} --llm m --endpoint http://127.0.0.1:9/v1 --set price_sent=1", "price_sent"),
        ("synthesize {data} --llm m --dry-run --set concurrency=3", "concurrency"),
        ("synthesize {data} --set concurrency=3", "concurrency"),
        ("synthesize {data} --import-batch {run} --dry-run", "--import-batch"),
        ("mix {mined} --mode pure --ratio 0.5", "ratio"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(arguments: str, name: str, negatron, data, mined, evaluated, tiny_encoder) -> None:
    run = evaluated / "after" / "run.trec"
    said = negatron(*arguments.format(data=data, mined=mined, model=tiny_encoder, run=run).split(), expect=2)
    assert name in said.err and ("no effect" in said.err or "goes with neither" in said.err)


# ---- killed and started again --------------------------------------------------------------------------------------------------------

KILLER = """
import os, signal, sys
from negatron.cli import main
from negatron.models import vectors
whole = vectors.write_json
def mark(path, value):
    whole(path, value)
    if value.get("done") == 512 and "document" in (path.parent / "inputs.json").read_text():
        os.kill(os.getpid(), signal.SIGKILL)
vectors.write_json = mark
main(sys.argv[1:])
"""


def test_mining_killed_in_the_middle_of_encoding_ends_with_the_same_bytes(negatron, tiny_encoder, tmp_path) -> None:
    """1,100 documents are three shards; SIGKILL comes after the first one."""
    documents = {f"d{n:04d}": Document(f"d{n:04d}", f"number {n} and {n * n % 97} more words") for n in range(1100)}
    queries = {f"q{n}": Query(f"q{n}", f"which is number {n}") for n in range(20)}
    rows = tuple(Judgement(f"q{n}", f"d{n:04d}", 1) for n in range(20))
    data = write_beir(Collection("many", documents, queries, {"train": rows}), tmp_path / "data")
    command = ["mine", data, "--model", tiny_encoder, "--negatives", "3", *LOOSE, "--out"]

    environment = {**os.environ, "NEGATRON_CACHE": str(tmp_path / "cache-killed"), "OMP_NUM_THREADS": "1"}
    arguments = [str(argument) for argument in (*command, tmp_path / "killed")]
    ended = subprocess.run([sys.executable, "-c", KILLER, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "killed").exists() and ".killed.partial" in partial_folders(tmp_path)

    said = {}
    for name in ("killed", "whole"):
        said[name] = negatron(*command, tmp_path / name, cache=tmp_path / f"cache-{name}").err
    assert "512 of 1,100 texts are already there" in said["killed"] and "already there" not in said["whole"]
    for file in ("judged.parquet", "queries.parquet"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert read_manifest(tmp_path / "killed").fingerprint == read_manifest(tmp_path / "whole").fingerprint
    assert sum(map(len, kept(tmp_path / "whole").values())) > 0 and partial_folders(tmp_path) == []

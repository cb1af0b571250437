"""Every setting of the verbs has an effect or is refused by name (invariant 8; rows 6 and 9 of the errors found in peers).

Each list is compared with the fields of its settings, so that a new setting without a test here fails.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.data.collection import Collection
from negatron.errors import NegatronError, SettingError
from negatron.models.language_model import EndpointModel
from negatron.negatives.filters import FilterSettings
from negatron.negatives.records import Negatives
from negatron.types import Document, Judgement, Query
from negatron.verbs.common import EncodingSettings, MiningSettings
from negatron.verbs.evaluation import EvaluationSettings, evaluate, refuse_unused_encoding, search
from negatron.verbs.negatives import Planned, RefilterSettings, WritingSettings, filter_negatives, mine, synthesize, writer_of

FRUITS = ("apple", "pear", "plum", "cherry", "quince", "medlar")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEGATRON_CACHE", str(tmp_path_factory.getbasetemp() / "cache-of-verb-settings"))


@pytest.fixture(scope="module")
def orchard() -> Collection:
    """Six topics of five documents in inflected English, two of them much alike, with long texts."""
    documents, queries, rows = {}, {}, {"train": [], "test": []}
    for number, fruit in enumerate(FRUITS):
        texts = [
            f"Growing {fruit} trees needs sun, water and patience, and the first harvest comes in the third year after planting them.",
            f"The {fruit} trees were growing well until late frosts and hungry birds took everything that the summer had promised us.",
            f"The {fruit} trees were growing well until late frosts and hungry birds took everything that the summer had promised him.",
            f"A {fruit} painted by an old master hangs in the museum, and visitors often stop, photograph it and walk on to the next room.",
            f"Trees. {fruit}s and {fruit}s again.",
        ]
        documents |= {f"{fruit}-{n}": Document(f"{fruit}-{n}", text, fruit.title() * (n == 0)) for n, text in enumerate(texts)}
        queries[fruit] = Query(fruit, f"how do trees grow with {fruit}s on them")
        rows["train" if number < 4 else "test"].append(Judgement(fruit, f"{fruit}-0", 1))
    rows["train"].append(Judgement("apple", "apple-4", 2))
    rows["test"].append(Judgement("quince", "plum-1", 0))
    return Collection("orchard", documents, queries, {split: tuple(own) for split, own in rows.items()})


def record(negatives: Negatives) -> list[Any]:
    """All that stands on file, but for who made it: the fingerprint of a maker changes with a setting even where nothing else does."""
    return [
        (
            item.query.id,
            [positive.teacher_score for positive in item.positives],
            [
                (j.candidate.document.id, j.candidate.teacher_score, [(o.rank, o.score) for o in j.candidate.origins], j.verdicts)
                for j in item.judged
            ],
        )
        for item in negatives
    ]


MINING = {
    "max_length": 8,
    "precision": "bf16",
    "near_copy": 0.3,
    "relative_margin": 0.02,
    "absolute_margin": 0.01,
    "margin_against": "highest",
    "min_score": 0.9,
    "max_score": 0.9,
    "index": "ivf",
    "probes": 1,
    "rank_from": 3,
    "rank_to": 2,
    "negative_below": 0.5,
    "positive_above": 0.51,
    "negatives": 1,
    "choice": "random",
    "among": 3,
    "simans_a": 50.0,
    "simans_b": -3.0,
    "when_short": "fill:random",
    "depth": 3,
    "teacher": "encoder",
    "pair_length": 12,
    "pairs": 2,
    "bm25_k1": 2.0,
    "bm25_b": 1.0,
    "bm25_language": "plain",
}
BASE = {"relative_margin": 0.0, "precision": "fp32"}
BESIDE = {  # what must be there for a setting to be read
    "among": {"choice": "random", "negatives": 2},
    "simans_a": {"choice": "simans", "negatives": 2},
    "simans_b": {"choice": "simans", "negatives": 2, "simans_a": 5.0},
    "when_short": {"rank_to": 2, "relative_margin": None},
    "positive_above": {"negative_below": 0.5},
    "probes": {"index": "ivf"},
}
BY_CROSS_ENCODER = {"negative_below", "positive_above", "teacher", "pair_length"}


def mined(orchard: Collection, encoder: Path, cross_encoder: Path, name: str, *, changed: bool) -> Negatives:
    """Mined with what the setting needs beside it, with or without the setting itself."""
    given = BASE | BESIDE.get(name, {}) | ({name: MINING[name]} if changed else {})
    more = {"cross_encoder": cross_encoder, "sources": ["bm25", "dense", "cross-encoder"]} if name in BY_CROSS_ENCODER else {}
    return mine(orchard, model=encoder, settings=MiningSettings(**given), **more)


def test_every_setting_of_mining_is_in_the_list() -> None:
    assert MINING.keys() == MiningSettings.model_fields.keys()


@pytest.mark.parametrize("name", MINING)
def test_every_setting_of_mining_changes_what_is_on_file(
    name: str, orchard: Collection, tiny_encoder: Path, tiny_cross_encoder: Path
) -> None:
    usual, changed = (mined(orchard, tiny_encoder, tiny_cross_encoder, name, changed=own) for own in (False, True))
    assert any(j.kept for item in usual for j in item.judged)
    assert usual.path != changed.path
    if name in ("index", "probes"):  # of thirty documents every index finds the best; the searcher is another, by its fingerprint
        makers = [
            {o.maker for item in own for j in item.judged for o in j.candidate.origins if o.source == "dense"} for own in (usual, changed)
        ]
        assert len(makers[0] | makers[1]) == 2
    else:
        assert record(changed) != record(usual)


REFILTERING = {name: MINING[name] for name in RefilterSettings.model_fields}


def test_filtering_reads_no_setting_that_mining_does_not() -> None:
    assert REFILTERING.keys() < MINING.keys() and "depth" not in REFILTERING


@pytest.mark.parametrize("name", REFILTERING)
def test_every_setting_of_filtering_changes_what_is_on_file(
    name: str, orchard: Collection, tiny_encoder: Path, tiny_cross_encoder: Path
) -> None:
    reserve = BASE | {"when_short": "fill:random"}  # asked for once, so that it is on file; alone, where the search is not deep
    reserve |= {"depth": 3} if name == "when_short" else {}
    judge = tiny_cross_encoder if name in BY_CROSS_ENCODER else None
    stored = mine(orchard, model=tiny_encoder, cross_encoder=judge, settings=MiningSettings(**reserve))
    base = {"relative_margin": 0.0, "when_short": "keep"} | BESIDE.get(name, {})
    usual, changed = (filter_negatives(stored, **(base | more)) for more in ({}, {name: REFILTERING[name]}))
    assert record(filter_negatives(stored, relative_margin=0.0)) == record(stored), "the same limits decide the same"
    assert record(changed) != record(usual)


@pytest.mark.parametrize(
    ("sources", "given", "named"),
    [
        (["dense"], {"bm25_b": 0.5}, "bm25_b"),
        (["bm25"], {"relative_margin": None, "max_length": 32}, "max_length"),
        (["bm25"], {"relative_margin": None, "precision": "fp32"}, "precision"),
        (["bm25"], {"relative_margin": None, "margin_against": "lowest"}, "margin_against"),
        (["bm25"], {"relative_margin": None, "choice": "random", "simans_a": 2.0}, "simans_a"),
        (["bm25"], {"relative_margin": None, "index": "hnsw"}, "index = 'hnsw' has no effect here: dense search"),
        (["dense"], {"probes": 9}, "probes = 9 has no effect here: index = 'exact'"),
        (["bm25"], {"relative_margin": None, "pair_length": 64}, "no cross-encoder is given"),
        (["bm25"], {"relative_margin": None, "teacher": "cross-encoder"}, "add --cross-encoder M"),
        (["bm25", "cross-encoder"], {}, "the source cross-encoder needs a model"),
        (["bm25"], {"negative_below": 0.1}, "scores of a bi-encoder are cosines"),
        (["bm25"], {"rank_from": 60}, "rank_from = 60 lies below depth = 50"),
        (["bm25", "random"], {"when_short": "fill:random"}, "random is among the sources"),
        (["bm25"], {"when_short": "fill:cross-encoder"}, "proposes nothing of its own"),
        (["bm25"], {"when_short": "fill:rnadom"}, "did you mean 'random'"),
        (["bm25", "file:/nowhere/run.trec"], {}, "/nowhere/run.trec: no such file"),
        (["bm25", "bm25"], {}, "at most once"),
        (["bm52"], {}, "did you mean 'bm25'"),
        ([], {}, "at least one"),
    ],
)
def test_what_mining_would_not_use_is_refused(sources: list[str], given: dict[str, Any], named: str, orchard: Collection) -> None:
    with pytest.raises(NegatronError, match=named):
        mine(orchard, sources=sources, model="nowhere", **given)


def test_a_cross_encoder_that_nothing_asks_is_refused(orchard: Collection) -> None:
    for given, named in (
        ({"sources": ["bm25"], "teacher": "encoder"}, "--cross-encoder has no effect here"),
        ({"sources": ["bm25", "cross-encoder"], "teacher": "encoder", "negative_below": 0.1}, "gives cosines"),
        ({"sources": ["cross-encoder"]}, "ranks what other sources propose"),
        ({"sources": ["bm25"], "max_length": 32}, "max_length = 32 has no effect here"),
        ({"sources": ["bm25"], "round": -1}, "round = -1"),
    ):
        with pytest.raises(SettingError, match=named):
            mine(orchard, model="nowhere", cross_encoder="nowhere", **given)


def test_a_threshold_on_cosines_is_refused_when_filtering_again(orchard: Collection, tiny_encoder: Path) -> None:
    stored = mine(orchard, model=tiny_encoder, **BASE)
    with pytest.raises(SettingError, match="holds no scores of a cross-encoder"):
        filter_negatives(stored, negative_below=0.1)
    with pytest.raises(SettingError, match="holds no candidates of random"):
        filter_negatives(stored, when_short="fill:random")


def test_a_margin_is_measured_with_a_teacher_even_where_only_words_are_searched(orchard: Collection, tiny_encoder: Path) -> None:
    stored = mine(orchard, sources=["bm25"], model=tiny_encoder, **BASE)
    assert all(positive.teacher_score is not None for item in stored for positive in item.positives)
    rules = {verdict.rule for item in stored for judged in item.judged for verdict in judged.verdicts}
    assert "relative margin" in rules
    without = mine(orchard, sources=["bm25"], model="nowhere", relative_margin=None)
    assert without.manifest.facts["model"] is None and without.manifest.inputs["encoder"] is None


ASKED = {  # what changes the requests
    "prompt": "syneg.v1",
    "per_query": 3,
    "per_request": 1,
    "temperature": 0.1,
    "top_p": 0.5,
    "max_tokens": 99,
    "positive_words": 5,
    "attributes": "science",
    "domains": ("gardening",),
    "without": ("definition",),
    "pairs": 2,
    "queries": 1,
}
JUDGED = {name: MINING[name] for name in [*EncodingSettings.model_fields, *FilterSettings.model_fields]}
PRICES = {"price_sent": 2.0, "price_written": 3.0}


def test_every_setting_of_writing_is_in_one_list() -> None:
    lists = [*ASKED, *JUDGED, *PRICES, "concurrency"]
    assert sorted(lists) == sorted(WritingSettings.model_fields)


@pytest.mark.parametrize("name", ASKED)
def test_a_setting_of_writing_changes_what_is_asked(name: str, orchard: Collection, tmp_path: Path) -> None:
    prompt = "syneg.v1" if name in ("attributes", "domains") else "drg.v1"

    def asked(place: Path, **given: Any) -> str:
        synthesize(orchard, llm="m", export_batch=place, settings=WritingSettings(**({"prompt": prompt} | given)))
        return place.read_text()

    if name == "attributes":  # the presets that the prompt has are named by its refusal
        with pytest.raises(SettingError, match="known: ") as refusal:
            asked(tmp_path / "none", attributes="no such preset")
        presets = str(refusal.value).partition("known: ")[2].split(", ")
        texts = {asked(tmp_path / f"{preset}", attributes=preset.strip("'\" ")) for preset in presets}
        assert len(texts) == len(presets) > 1
    else:
        assert asked(tmp_path / "usual") == asked(tmp_path / "again")
        assert asked(tmp_path / "usual") != asked(tmp_path / "changed", **{name: ASKED[name]})


@pytest.fixture(scope="module")
def replies(orchard: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch's output file that answers the usual requests."""
    place = tmp_path_factory.mktemp("batch")
    synthesize(orchard, llm="m", export_batch=place / "in.jsonl", settings=WritingSettings(prompt="drg.v1"))
    rows = []
    for number, line in enumerate((place / "in.jsonl").read_text().splitlines()):
        texts = [
            f"The {FRUITS[number]} trees were growing well until late frosts took the whole crop of that year from every one of us.",
            f"Growing {FRUITS[number]} trees needs sun, water and patience, and a first harvest may come in the tenth year after that.",
        ]
        text = json.dumps({"hard_negatives": [{"text": text} for text in texts]})
        completion = {"choices": [{"message": {"content": text}}]}
        rows.append({"custom_id": json.loads(line)["custom_id"], "response": {"status_code": 200, "body": completion}})
    (place / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place / "out.jsonl"


@pytest.mark.parametrize("name", JUDGED)
def test_a_setting_of_writing_changes_how_it_is_judged(name: str, orchard: Collection, replies: Path, tiny_encoder: Path) -> None:
    def judged(**given: Any) -> list[Any]:
        settings = WritingSettings(**({"prompt": "drg.v1"} | BASE | given))
        made = synthesize(orchard, llm="m", import_batch=replies, model=tiny_encoder, settings=settings)
        assert isinstance(made, Negatives)
        return record(made)

    assert len(judged()) == 4 and judged() != judged(**{name: JUDGED[name]})


def test_the_concurrency_reaches_the_endpoint_and_changes_no_result(orchard: Collection) -> None:
    writer = writer_of("http://127.0.0.1:9/v1", "m", WritingSettings(concurrency=3), 0, None)
    assert isinstance(writer, EndpointModel) and writer.concurrency == 3


@pytest.mark.parametrize("name", PRICES)
def test_a_price_changes_the_estimate(name: str, orchard: Collection) -> None:
    usual, dear = (synthesize(orchard, dry_run=True, settings=WritingSettings(**given)) for given in ({}, {name: PRICES[name]}))
    assert isinstance(usual, Planned) and isinstance(dear, Planned)
    assert usual.estimate.cost is None and dear.estimate.cost is not None and dear.estimate.cost > 0


@pytest.mark.parametrize(
    ("given", "way", "named"),
    [
        ({"relative_margin": None, "max_length": 32}, {}, "max_length"),
        ({"price_sent": 1.0}, {}, "price_sent"),
        ({"concurrency": 2}, {"dry_run": True}, "concurrency"),
        ({"concurrency": 2}, {}, "concurrency"),
        ({}, {"import_batch": Path("out.jsonl"), "dry_run": True}, "import-batch"),
        ({}, {"import_batch": Path("out.jsonl"), "endpoint": "http://127.0.0.1:9/v1"}, "import-batch"),
    ],
)
def test_what_writing_would_not_use_is_refused(given: dict[str, Any], way: dict[str, Any], named: str, orchard: Collection) -> None:
    with pytest.raises(SettingError, match=named):
        synthesize(orchard, model="nowhere", settings=WritingSettings(**given), **way)


MEASURING = {"max_length": 8, "precision": "bf16", "measures": ("mrr@3",), "depth": 2, "corpus_split": "test"}


def test_every_setting_of_evaluation_is_in_the_list() -> None:
    assert MEASURING.keys() == EvaluationSettings.model_fields.keys()
    assert EncodingSettings.model_fields.keys() <= MEASURING.keys()


@pytest.mark.parametrize("name", MEASURING)
def test_every_setting_of_evaluation_changes_run_or_scores(name: str, orchard: Collection, tiny_encoder: Path) -> None:
    def files(**given: Any) -> tuple[str, str]:
        done = evaluate(tiny_encoder, orchard, name="m", settings=EvaluationSettings(**({"precision": "fp32"} | given)))
        scores = json.loads((done.path / "scores.json").read_text())
        return (done.path / "run.trec").read_text(), json.dumps([scores["measures"], scores["queries"]])

    same = {"measures": ("mrr@2",)} if name == "depth" else {}  # a measure that looks deeper than is searched is refused
    assert files(**same) == files(**same)
    assert files(**same) != files(**same, **{name: MEASURING[name]})


def test_a_measure_that_looks_deeper_than_is_searched_is_refused(orchard: Collection, tiny_encoder: Path) -> None:
    with pytest.raises(SettingError, match="set depth = 200"):
        evaluate(tiny_encoder, orchard, settings=EvaluationSettings(measures=("ndcg@200",)))


def test_what_measuring_would_not_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q Q0 d 1 1.0 x\n")
    for given, model in (
        ({"max_length": 32}, "bm25"),
        ({"depth": 5}, tmp_path / "run.trec"),
        ({"corpus_split": "test"}, tmp_path / "run.trec"),
    ):
        settings = EvaluationSettings(**given)
        with pytest.raises(SettingError, match=f"{next(iter(given))} = .* has no effect here"):
            refuse_unused_encoding(settings, model)
    refuse_unused_encoding(EvaluationSettings(max_length=32), "bm25+minilm")
    refuse_unused_encoding(EvaluationSettings(max_length=32), "bm25", "minilm")
    refuse_unused_encoding(EvaluationSettings(depth=5), "bm25")


@pytest.mark.parametrize("change", [{"max_length": 8}, {"precision": "bf16"}])
def test_the_settings_of_a_search_change_its_scores(change: dict[str, Any], orchard: Collection, tiny_encoder: Path) -> None:
    found = [
        search(tiny_encoder, orchard, "growing pears", settings=EncodingSettings(**({"precision": "fp32"} | own))) for own in ({}, change)
    ]
    assert [hit.score for hit in found[0]] != [hit.score for hit in found[1]]

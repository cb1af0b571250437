"""The command line: a verb a step. Progress goes to stderr, results to stdout; what the user can mend ends in one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from negatron.errors import NegatronError, SettingError, nearest

INTERRUPTED = 130
"""128 + SIGINT, as shells count."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch, check, import.")
models_app = typer.Typer(no_args_is_help=True, help="Models: list, fetch.")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
cache_app = typer.Typer(no_args_is_help=True, help="The cache: size, prune.")
app.add_typer(cache_app, name="cache")

DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="A BEIR folder, a catalogue name (`negatron data list`) or a Hugging Face data set.")
]
NegativesArgument = Annotated[Path, typer.Argument(metavar="NEG", help="A negatives folder that one of these verbs wrote.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes; by default into the cache, under its fingerprint.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated. `off` turns an optional one off.")
]
SettingsFile = Annotated[Path | None, typer.Option("--settings", metavar="FILE.toml", help="Settings from a file; --set wins over it.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Model = Annotated[str, typer.Option("--model", help="An encoder: a folder, a name from `negatron models list`, or a Hugging Face name.")]
Split = Annotated[str, typer.Option(help="Which judgements: the name of a file in qrels/.")]


def show(result: object, as_json: dict[str, Any], json_wanted: bool) -> None:
    """A result on stdout, as text or as one JSON object; of several processes that train together, the first one's alone."""
    if os.environ.get("RANK", "0") != "0":
        return
    sys.stdout.write((json.dumps(as_json, ensure_ascii=False, indent=1) if json_wanted else str(result)) + "\n")


def show_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        sys.stdout.write(f"negatron {metadata.version('negatron')}\n")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    """Better dense retrievers by getting their negatives right. Example: negatron demo."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("demo"),
    set_: Set = None,
    settings: SettingsFile = None,
    seed: Seed = 13,
    json_: Json = False,
) -> None:
    """The whole way on real data: fetch, mine, filter, write, mix, train, evaluate, compare; ends with a table and report.html.

    Example: negatron demo --out demo
    """
    from negatron.demo import DemoSettings, run_demo

    result = run_demo(out, DemoSettings.read(settings, set_ or []), seed)
    show(result, result.as_json(), json_)


@app.command()
def mine(
    data: DataArgument,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="bm25, dense, random, cross-encoder or file:PATH; may be repeated. Default: bm25 and dense."),
    ] = None,
    model: Model = "minilm",
    cross_encoder: Annotated[
        str | None, typer.Option("--cross-encoder", metavar="M", help="A CrossEncoder with one score: the teacher, and a source if named.")
    ] = None,
    round_: Annotated[int, typer.Option("--round", help="Turn of mining, written beside each candidate.", min=0)] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and memory from a sample; write nothing.")] = False,
    negatives: Annotated[int | None, typer.Option("--negatives", help="Negatives kept per query.")] = None,
    split: Split = "train",
    out: Out = None,
    set_: Set = None,
    settings: SettingsFile = None,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Find hard negatives in the corpus, judge them, keep the best.

    Example: negatron mine scifact --source bm25 --source dense --negatives 5 --out neg
    """
    from negatron.verbs.common import SOURCES, MiningSettings
    from negatron.verbs.mining import mine as verb
    from negatron.verbs.mining_estimate import estimate_mining

    chosen = MiningSettings.read(settings, set_ or [], negatives=negatives)
    names, judge = source or SOURCES, cross_encoder
    if dry_run:
        if out is not None:
            raise SettingError(f"--out {out} has no effect with --dry-run, which writes nothing; leave one of them out")
        found = estimate_mining(data, sources=names, model=model, cross_encoder=judge, split=split, settings=chosen)
        show(found, found.as_json(), json_)
        return
    result = verb(
        data, sources=names, model=model, cross_encoder=judge, round=round_, split=split, out=out, settings=chosen, seed=seed
    )  # fmt: skip
    show(result, result.as_json(), json_)


@app.command()
def synthesize(
    data: DataArgument,
    prompt: Annotated[str | None, typer.Option(help="A prompt by name, such as syneg.v1 or drg.v1, or a prompt file.")] = None,
    endpoint: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, or `embedded`.")] = "embedded",
    llm: Annotated[
        str, typer.Option(help="The language model's name at the endpoint; for `embedded` a catalogue name or a .gguf file.")
    ] = "smollm2-135m",
    per_query: Annotated[int | None, typer.Option(help="Negatives to write per query.")] = None,
    split: Split = "train",
    export_batch: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the requests as an OpenAI batch file and stop.")] = None,
    import_batch: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the replies from a batch output file instead of asking.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count requests and tokens; ask nothing.")] = False,
    model: Model = "minilm",
    out: Out = None,
    set_: Set = None,
    settings: SettingsFile = None,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Have a language model write hard negatives, and judge them like mined ones.

    Example: negatron synthesize scifact --prompt syneg.v1 --endpoint http://127.0.0.1:8000/v1 --llm qwen3-30b --per-query 2 --out written
    """
    from negatron.verbs.negatives import WritingSettings
    from negatron.verbs.negatives import synthesize as verb

    chosen = WritingSettings.read(settings, set_ or [], prompt=prompt, per_query=per_query)
    result = verb(
        data, endpoint=endpoint, llm=llm, split=split, model=model, out=out, settings=chosen, seed=seed,
        export_batch=export_batch, import_batch=import_batch, dry_run=dry_run,
    )  # fmt: skip
    show(result, result.as_json(), json_)


@app.command("filter")
def filter_(
    negatives: NegativesArgument,
    out: Out = None,
    set_: Set = None,
    settings: SettingsFile = None,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Judge stored candidates again with other limits; nothing is mined again.

    Example: negatron filter neg --set relative_margin=0.1 --out neg2
    """
    from negatron.verbs.negatives import RefilterSettings, filter_negatives

    result = filter_negatives(negatives, out=out, settings=RefilterSettings.read(settings, set_ or []), seed=seed)
    show(result, result.as_json(), json_)


@app.command()
def mix(
    negatives: Annotated[list[Path], typer.Argument(metavar="NEG NEG2 ...", help="Negatives folders, mined and written ones.")],
    ratio: Annotated[
        float | None, typer.Option(help="R = written : retrieved, in each example (instance) or over the queries (pool).")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="instance, pool or pure.")] = None,
    count: Annotated[int | None, typer.Option("--negatives", help="Negatives per query.")] = None,
    out: Out = None,
    set_: Set = None,
    settings: SettingsFile = None,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Mix written and retrieved negatives.

    Example: negatron mix neg written --ratio 0.7 --mode instance --negatives 5 --out mix
    """
    from negatron.negatives.mixing import MixSettings
    from negatron.verbs.negatives import mix as verb

    result = verb(negatives, out=out, settings=MixSettings.read(settings, set_ or [], ratio=ratio, mode=mode, negatives=count), seed=seed)
    show(result, result.as_json(), json_)


@app.command()
def export(
    negatives: NegativesArgument,
    format_: Annotated[
        str, typer.Option("--format", help="sentence-transformers, triplets, labelled, flagembedding, tevatron, beir or trec.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="File or folder to write.")],
    json_: Json = False,
) -> None:
    """Write kept negatives in another tool's format.

    Example: negatron export neg --format flagembedding --out train.jsonl
    """
    from negatron.verbs.negatives import export as verb

    counts = verb(negatives, format_, out)
    show(f"{out}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()), counts, json_)


@app.command()
def explain(negatives: NegativesArgument, query_id: Annotated[str, typer.Argument(metavar="QUERY_ID")], json_: Json = False) -> None:
    """The biography of every candidate of a query: who found or wrote it, its scores, what each rule decided.

    Example: negatron explain neg q17
    """
    from negatron.verbs.negatives import explain as verb

    result = verb(negatives, query_id)
    show(result, result.as_json(), json_)


@app.command()
def train(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Data sets as everywhere; with several, one gives each batch.")],
    negatives: Annotated[
        list[str] | None,
        typer.Option(metavar="NEG", help="A negatives folder, `none` for in-batch negatives only, or `mine` (default); one for each DATA."),
    ] = None,
    model: Model = "minilm",
    split: Split = "train",
    pairs: Annotated[int | None, typer.Option(help="Train on this many pairs, chosen by a hash of their ids.", min=1)] = None,
    dev_split: Annotated[str | None, typer.Option(help="Measure this split during training, for the learning curve.")] = None,
    out: Out = None,
    set_: Set = None,
    settings: SettingsFile = None,
    seed: Seed = 13,
    json_: Json = False,
) -> None:
    """Fine-tune an encoder; with no options by the default recipe, mining included.

    Example: negatron train scifact --negatives neg --model minilm --set batch_size=128 --out model
    """
    from negatron.training.recipe import TrainingSettings
    from negatron.verbs.training import train as verb

    chosen = TrainingSettings.read(settings, set_ or [], seed=seed)
    sources = [None if folder == "none" else folder for folder in negatives or ["mine"]]
    result = verb(data, sources, model=model, split=split, out=out, settings=chosen, pairs=pairs, dev_split=dev_split)
    show(result, {"model": str(result.path), "fingerprint": result.fingerprint, **result.facts}, json_)


@app.command("train-cross-encoder")
def train_cross_encoder(
    data: DataArgument,
    negatives: Annotated[Path, typer.Option("--negatives", metavar="NEG", help="A negatives folder.")],
    model: Model = "minilm",
    split: Split = "train",
    pairs: Annotated[int | None, typer.Option(help="Train on this many pairs, chosen by a hash of their ids.", min=1)] = None,
    out: Out = None,
    set_: Set = None,
    settings: SettingsFile = None,
    seed: Seed = 13,
    json_: Json = False,
) -> None:
    """Train a cross-encoder from pairs and negatives, to be the teacher of a later mining.

    Example: negatron train-cross-encoder scifact --negatives neg --out teacher
    """
    from negatron.models.cross_encoder_training import CrossEncoderSettings
    from negatron.verbs.cross_encoder import train_cross_encoder as verb

    chosen = CrossEncoderSettings.read(settings, set_ or [])
    result = verb(data, negatives, model=model, split=split, out=out, settings=chosen, pairs=pairs, seed=seed)
    show(result, result.as_json(), json_)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="An encoder, `bm25`, several joined by + (fused), or a TREC run file.")],
    data: DataArgument,
    split: Split = "test",
    out: Out = None,
    set_: Set = None,
    settings: SettingsFile = None,
    name: Annotated[str | None, typer.Option(help="What tables call it.")] = None,
    json_: Json = False,
) -> None:
    """Measure a model or a run on judged queries; writes scores.json, run.trec, per_query.parquet.

    Example: negatron evaluate model scifact --split test --out results/mine
    """
    from negatron.verbs.evaluation import EvaluationSettings, refuse_unused_encoding
    from negatron.verbs.evaluation import evaluate as verb

    chosen = EvaluationSettings.read(settings, set_ or [])
    refuse_unused_encoding(chosen, model)
    result = verb(model, data, split=split, out=out, settings=chosen, name=name)
    show(result, {**result.evaluation.as_json(), "folder": str(result.path)}, json_)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="DIR_A", help="A folder that evaluate wrote, or a folder of such folders (seeds).")],
    b: Annotated[Path, typer.Argument(metavar="DIR_B")],
    measure: Annotated[str, typer.Option(help="Which measure.")] = "ndcg@10",
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Say whether B is better than A on the same queries: paired randomisation test, bootstrap interval, smallest visible effect.

    Example: negatron compare results/before results/mine
    """
    from negatron.verbs.evaluation import compare as verb

    result = verb(a, b, measure=measure, seed=seed)
    show(result, result.as_json(), json_)


@app.command()
def search(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An encoder, `bm25`, or several joined by +.")],
    data: DataArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    beside: Annotated[str | None, typer.Option(metavar="MODEL2", help="A second model, shown side by side.")] = None,
    count: Annotated[int, typer.Option(help="Documents shown.", min=1)] = 10,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """The best documents for a question, by one model or by two side by side.

    Example: negatron search model code-search "shortest path between two nodes" --beside minilm
    """
    from negatron.verbs.common import EncodingSettings, load
    from negatron.verbs.evaluation import refuse_unused_encoding, side_by_side
    from negatron.verbs.evaluation import search as verb

    if beside == model:
        raise SettingError(f"--beside {beside}: the same model twice; name another one")
    names = [model, *([beside] if beside else [])]
    chosen = EncodingSettings.read(None, set_ or [])
    refuse_unused_encoding(chosen, *names)
    collection = load(data)
    found = {name: verb(name, collection, text, count=count, settings=chosen) for name in names}
    rows = {name: [{"document_id": hit.document_id, "score": hit.score} for hit in hits] for name, hits in found.items()}
    show(side_by_side(found, collection.documents, width=os.get_terminal_size().columns if sys.stdout.isatty() else 140), rows, json_)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of evaluation folders, such as demo/evaluations.")],
    reference: Annotated[
        str | None, typer.Option(help="Name of the evaluation that the others are compared with; by default the first.")
    ] = None,
    measure: Annotated[str, typer.Option(help="The measure put forward.")] = "ndcg@10",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="By default DIR/report.html.")] = None,
    json_: Json = False,
) -> None:
    """One offline HTML page that compares the evaluations in a folder.

    Example: negatron report results --reference before
    """
    from negatron.verbs.reporting import report as verb

    page = verb(folder, reference=reference, measure=measure, out=out)
    show(page, {"report": str(page)}, json_)


def listing(rows: Mapping[str, Mapping[str, str]]) -> str:
    """A catalogue as lines: name, what it is, licence."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {row['about']} ({row['licence']})" for name, row in rows.items())


@data_app.command("list")
def data_list(json_: Json = False) -> None:
    """The catalogue of data sets. Example: negatron data list."""
    from negatron.data import catalog

    entries = catalog.entries()
    rows = {name: {"about": entry.about, "licence": entry.licence, "source": entry.source} for name, entry in entries.items()}
    show(listing(rows), rows, json_)


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(metavar="NAME")], json_: Json = False) -> None:
    """Download a data set of the catalogue, with its checksum. Example: negatron data fetch code-search."""
    from negatron.data import catalog

    place = catalog.fetch(name)
    show(place, {"folder": str(place)}, json_)


@data_app.command("check")
def data_check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A BEIR folder, or a name of `negatron data list`.")], json_: Json = False
) -> None:
    """Tell of every damage of a BEIR folder, with file and line. Exit code 2 when there is any. Example: negatron data check my-data."""
    from negatron.data import catalog
    from negatron.data.check import check

    folder = Path(data) if Path(data).exists() else catalog.own_folder(data)
    result = check(folder or (catalog.fetch(data) if data in catalog.entries() else Path(data)))
    show(result, result.as_json(), json_)
    if not result.ok:
        raise typer.Exit(2)


@data_app.command("import")
def data_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, TSV, JSON, JSONL or Parquet, a pair a row; or another tool's format.")],
    out: Annotated[Path, typer.Option("--out", metavar="DATA", help="The BEIR folder to write.")],
    query_column: Annotated[str | None, typer.Option(help="Column of the queries; guessed where only one can be meant.")] = None,
    positive_column: Annotated[str | None, typer.Option(help="Column of the positives.")] = None,
    format_: Annotated[
        str, typer.Option("--format", help="pairs, or sentence-transformers, triplets, labelled, flagembedding, tevatron.")
    ] = "pairs",
    negatives: Annotated[Path | None, typer.Option(metavar="NEG", help="Where negatives go that come with such a format.")] = None,
    json_: Json = False,
) -> None:
    """Make a data set out of plain pairs, with a fixed train/dev/test split, or out of another tool's training file.

    Example: negatron data import pairs.csv --out my-data
    """
    if format_ == "pairs":
        from negatron.data.importing import import_pairs

        if negatives is not None:
            raise SettingError("--negatives: plain pairs bring no negatives; name the --format of the file")
        counts = import_pairs(file, out, query_column=query_column, positive_column=positive_column)
        show(counts, counts.as_json(), json_)
    else:
        from negatron.verbs.negatives import import_training_file

        if query_column or positive_column:
            raise SettingError(f"--query-column and --positive-column are for plain pairs; {format_} has fixed names")
        made = import_training_file(file, format_, out, negatives)
        show(", ".join(f"{count:,} {what}" for what, count in made.items()) + f" in {out}", made, json_)


@data_app.command("export")
def data_export(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    format_: Annotated[str, typer.Option("--format", help="beir, or hub: Parquet in the form of MTEB's Hugging Face data sets.")] = "hub",
    json_: Json = False,
) -> None:
    """Write a data set as a BEIR folder or in the form of a Hugging Face data set.

    Example: negatron data export my-data --format hub --out my-data-hub
    """
    from negatron.data.beir import write_beir
    from negatron.data.hub import write_saved
    from negatron.verbs.common import load

    writers = {"beir": write_beir, "hub": write_saved}
    if format_ not in writers:
        raise SettingError(f"there is no format {format_!r}{nearest(format_, writers)}")
    place = writers[format_](load(data), out)
    show(place, {"folder": str(place)}, json_)


@models_app.command("list")
def models_list(json_: Json = False) -> None:
    """The catalogue of models. Example: negatron models list."""
    from negatron.models import catalog

    rows = {name: {"kind": entry.kind, "about": entry.about, "licence": entry.licence} for name, entry in catalog.entries().items()}
    show(listing(rows), rows, json_)


@models_app.command("fetch")
def models_fetch(name: Annotated[str, typer.Argument(metavar="NAME")], json_: Json = False) -> None:
    """Download a model of the catalogue, with its checksum. Example: negatron models fetch minilm."""
    from negatron.models import catalog

    place = catalog.fetch_model(name)
    show(place, {"path": str(place)}, json_)


@cache_app.command("size")
def cache_size(json_: Json = False) -> None:
    """What the cache holds, by kind. Example: negatron cache size."""
    from negatron.verbs.cache import size

    found = size()
    show(found, found.as_json(), json_)


@cache_app.command("prune")
def cache_prune(
    max_size: Annotated[str | None, typer.Option("--max-size", help="Remove the least recently used until no more stays: 10GB.")] = None,
    older_than: Annotated[str | None, typer.Option("--older-than", help="Remove what was not used for so long: 30d, 12h.")] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only these; by default all that can be made or fetched again.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json_: Json = False,
) -> None:
    """Remove what was used longest ago; never what a running command uses. Example: negatron cache prune --max-size 10GB --dry-run."""
    from negatron.verbs.cache import prune

    result = prune(max_size=max_size, older_than=older_than, kinds=kind or [], dry_run=dry_run)
    show(result, result.as_json(), json_)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; the arguments are the process's own unless given. Exit codes: 0 done, 2 the user can mend it, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(args=arguments)
    except NegatronError as error:
        sys.stderr.write(f"negatron: {error}\n")
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer has made this of the KeyboardInterrupt
            sys.stderr.write("negatron: interrupted; the same command goes on where it was\n")
        raise

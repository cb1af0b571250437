"""Known positives, hidden on purpose: how many does each chain of filters let through as "negatives", and what does it cost?

    python benchmarks/hidden_positives.py [--data nfcorpus cisi ...] [--known one half] [--queries 300] [--depth 50] [--json]

For each query with several judged positives some are hidden (all but one, or half of them; drawn by a hash of ids), and the query is mined
with BM25 and MiniLM as if it had only the others. A hidden positive, or a copy of one, that ends among the chosen is known to be a false
negative. Unjudged relevant documents are not counted, so the shares are lower bounds: they compare chains, and do not say how many
negatives are false in all.

Columns: chosen per query; false = share of the chosen that are hidden positives; leak = share of the hidden positives in the pool that
no filter rejects; cost = share of the other candidates (unjudged or judged irrelevant) that the filters reject; short = share of the
queries that get fewer than asked for; hard = mean teacher score of the chosen that are not hidden positives; told = the share that the
report of `negatron mine` would estimate. With half of the positives hidden its assumption (as many unknown as known) holds, so that
told should be near false.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from negatron.data.collection import Collection
from negatron.identity import fingerprint, same_words, stream
from negatron.negatives.filters import chain, judge, judge_again
from negatron.negatives.mining import proposals, scored
from negatron.negatives.selection import SelectionSettings, choose
from negatron.negatives.summary import Sieve, estimated_false
from negatron.progress import say
from negatron.types import Document, JudgedQuery, NegativeRequest
from negatron.verbs.common import MiningSettings, load
from negatron.verbs.mining import workshop_of

SETS = ("nfcorpus", "cisi", "med", "cranfield", "npl-vaswani", "time", "msmarco-dl-pool")
OFF: dict[str, Any] = {"relative_margin": None}
CHAINS: dict[str, dict[str, Any]] = {
    "no filter": OFF,
    "shifted by 10": OFF | {"rank_from": 11},
    "shifted by 20": OFF | {"rank_from": 21},
    "shifted by 10, random": OFF | {"rank_from": 11, "choice": "random"},
    "shifted by 10, among 10": OFF | {"rank_from": 11, "choice": "random", "among": 10},
    "score at most 0.7": OFF | {"max_score": 0.7},
    "score at most 0.5": OFF | {"max_score": 0.5},
    "absolute 0.05": OFF | {"absolute_margin": 0.05},
    "absolute 0.1": OFF | {"absolute_margin": 0.1},
    "relative 0": {"relative_margin": 0.0},
    "relative 0.05": {"relative_margin": 0.05},
    "relative 0.1": {"relative_margin": 0.1},
    "relative 0.2": {"relative_margin": 0.2},
    "relative 0.3": {"relative_margin": 0.3},
    "relative 0.05, shifted by 10": {"relative_margin": 0.05, "rank_from": 11},
    "relative 0.05 from the lowest": {"relative_margin": 0.05, "margin_against": "lowest"},
    "relative 0.05 from the highest": {"relative_margin": 0.05, "margin_against": "highest"},
    "relative 0.05, hardest": {"relative_margin": 0.05, "choice": "hardest"},
    "relative 0.05, random": {"relative_margin": 0.05, "choice": "random"},
    "relative 0.05, among 10": {"relative_margin": 0.05, "choice": "random", "among": 10},
    "relative 0.05, quantiles": {"relative_margin": 0.05, "choice": "quantiles"},
    "relative 0.05, simans": {"relative_margin": 0.05, "choice": "simans"},
    "relative 0.1, simans": {"relative_margin": 0.1, "choice": "simans"},
    "relative 0.2, simans": {"relative_margin": 0.2, "choice": "simans"},
    "relative 0.1, quantiles": {"relative_margin": 0.1, "choice": "quantiles"},
    "relative 0.05, shifted, simans": {"relative_margin": 0.05, "rank_from": 11, "choice": "simans"},
    "shifted by 10, simans": OFF | {"rank_from": 11, "choice": "simans"},
    "simans alone": OFF | {"choice": "simans"},
    "simans alone, b = -1": OFF | {"choice": "simans", "simans_b": -1.0},
    "random alone": OFF | {"choice": "random"},
    "quantiles alone": OFF | {"choice": "quantiles"},
}
"""Name -> settings of the filters and the choice; copies and known positives are rejected by all."""


@dataclass(frozen=True)
class Case:
    """A query with a part of its positives hidden: the scored pool, judged by ids and texts, and the texts that are hidden."""

    item: JudgedQuery
    hidden: frozenset[str]


@dataclass(frozen=True)
class Row:
    """One chain on one data set."""

    data: str
    known: str
    chain: str
    queries: int
    chosen: int
    false: int
    hidden_in_pool: int
    hidden_passed: int
    others_in_pool: int
    others_rejected: int
    short: int
    none: int
    hard: float
    told: float


def requests_of(collection: Collection, split: str, known: str, most: int) -> list[tuple[NegativeRequest, frozenset[str]]]:
    """Queries with enough positives, each with those shown and the texts of those hidden."""
    fewest = 2 if known == "one" else 4
    found = []
    for query_id, positives in collection.positives(split).items():
        distinct: Mapping[str, Document] = {same_words(document.content): document for document in positives}
        if len(distinct) < fewest:
            continue
        order = sorted(distinct)
        stream(0, "hidden", query_id).shuffle(order)
        shown = order[: 1 if known == "one" else len(order) // 2]
        request = NegativeRequest(collection.queries[query_id], tuple(distinct[text] for text in shown))
        found.append((request, frozenset(order) - set(shown)))
    return sorted(found, key=lambda case: fingerprint("queries", case[0].query.id))[:most]


def cases_of(collection: Collection, split: str, known: str, options: argparse.Namespace) -> list[Case]:
    """The queries mined as if only the positives shown were known."""
    settings = MiningSettings(depth=options.depth, max_length=options.max_length)
    shop = workshop_of(collection, options.model, None, settings, 0, 0)
    some = requests_of(collection, split, known, options.queries)
    requests = [request for request, _ in some]
    if not requests:
        return []
    found = list(proposals([shop.source("bm25"), shop.source("dense")], requests, [options.depth] * 2))
    items = scored(requests, found, shop.teacher)
    texts, cases = chain(SelectionSettings(**OFF)), []
    for (request, hidden), (positives, candidates) in zip(some, items, strict=True):
        cases.append(Case(JudgedQuery(request.query, positives, judge(texts, request.query, positives, candidates)), hidden))
    return cases


def measured(cases: Sequence[Case], data: str, known: str, name: str, negatives: int) -> Row:
    """One chain on the cases of one data set."""
    settings = SelectionSettings(negatives=negatives, **CHAINS[name])
    rules = chain(settings)
    counts = dict.fromkeys(("chosen", "false", "hidden_in_pool", "hidden_passed", "others_in_pool", "others_rejected", "short", "none"), 0)
    hard = []
    sieve = Sieve(rules, settings)
    for case, again in zip(cases, judge_again([case.item for case in cases], rules, trust_texts=True), strict=True):
        item = choose(again, settings, stream(0, "select", again.query.id))
        sieve.add(item)
        kept = 0
        for one in item.judged:
            first = one.verdicts[0]
            copied = one.verdicts[1:2] and not one.verdicts[1].kept  # of a positive that is shown, the query, an earlier candidate
            if not first.kept or copied:
                continue
            hidden = same_words(one.candidate.document.content) in case.hidden
            group, moved = ("hidden_in_pool", "hidden_passed") if hidden else ("others_in_pool", "others_rejected")
            counts[group] += 1
            counts[moved] += one.spare if hidden else not one.spare
            if one.kept:
                kept += 1
                counts["false"] += hidden
                if not hidden:
                    hard.append(one.candidate.teacher_score or 0.0)
        counts["chosen"] += kept
        counts["short"] += kept < negatives
        counts["none"] += kept == 0
    told = estimated_false(sieve.as_json()) if sieve.hidden else 0.0
    return Row(data, known, name, len(cases), **counts, hard=round(fmean(hard), 4) if hard else 0.0, told=round(told, 2))


def together(rows: Sequence[Row]) -> list[Row]:
    """One row a chain over all data sets, each query counting once; "hard" is the mean over data sets."""
    found = []
    for known in dict.fromkeys(row.known for row in rows):
        for name in dict.fromkeys(row.chain for row in rows):
            own = [row for row in rows if (row.known, row.chain) == (known, name)]
            sums = {key: sum(getattr(row, key) for row in own) for key in Row.__dataclass_fields__ if isinstance(getattr(own[0], key), int)}
            found.append(Row("all", known, name, **sums, hard=round(fmean(row.hard for row in own), 4), told=sum(row.told for row in own)))
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'':34}{'chosen':>8}{'false':>9}{'leak':>9}{'cost':>9}{'short':>9}{'none':>9}{'told':>9}{'hard':>8}"]
    for row in rows:
        shares = (
            (row.false, row.chosen),
            (row.hidden_passed, row.hidden_in_pool),
            (row.others_rejected, row.others_in_pool),
            (row.short, row.queries),
            (row.none, row.queries),
            (row.told, row.chosen),
        )
        cells = "".join(f"{100 * part / whole:8.1f}%" if whole else f"{'-':>9}" for part, whole in shares)
        lines.append(f"{row.chain:34}{row.chosen / row.queries:8.2f}{cells}{row.hard:8.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SETS))
    parser.add_argument("--known", nargs="+", default=["one", "half"], choices=["one", "half"])
    parser.add_argument("--queries", type=int, default=300, help="of each data set, by a hash of their ids")
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--max-length", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.data:
        if not (Path(os.environ.get("NEGATRON_DATA", "")) / name).is_dir():
            say(f"{name} is left out: NEGATRON_DATA holds no such folder")
            continue
        collection = load(name)
        split = "train" if "train" in collection.judgements else "test"
        for known in options.known:
            cases = cases_of(collection, split, known, options)
            own = [measured(cases, name, known, chain_, options.negatives) for chain_ in CHAINS] if cases else []
            if own:
                print(
                    f"\n{name}, {known} known: {len(cases):,} queries, {sum(len(c.item.judged) for c in cases):,} candidates\n{table(own)}"
                )
                sys.stdout.flush()
            rows += own
    for known in dict.fromkeys(row.known for row in rows):
        print(f"\nall, {known} known\n{table([row for row in together(rows) if row.known == known])}")
    if options.json:
        print(json.dumps({"benchmark": "hidden_positives", "options": vars(options), "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()

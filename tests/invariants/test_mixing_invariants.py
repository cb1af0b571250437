"""What a mixture may not depend on, and that its ratio holds in expectation."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from random import Random

import pytest

from negatron.identity import stream
from negatron.negatives.mixing import MixReport, MixSettings, mix, quota, together
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Query

STREAMS = 10_000


def query(number: int, *, permuted: Random | None = None) -> JudgedQuery:
    """A query with six candidates each of three sources, some found by two."""
    name = f"q{number}"
    judged = []
    for source in ("bm25", "dense", "synthetic"):
        for rank in range(1, 7):
            origins = (Origin(source, "maker", rank=rank),)
            if source == "bm25" and rank % 3 == 0:
                origins += (Origin("dense", "maker", rank=rank + 10),)
            judged.append(Judged(Candidate(name, Document(f"{name}-{source}-{rank}", f"{name} {source} {rank}"), origins)))
    if permuted is not None:
        permuted.shuffle(judged)
    return JudgedQuery(Query(name, name), (), tuple(judged))


def choice(item: JudgedQuery) -> tuple[str, ...]:
    return tuple(sorted(judged.candidate.document.id for judged in item.judged if judged.kept))


def choices(items: list[JudgedQuery], settings: MixSettings, seed: int = 0) -> dict[str, tuple[str, ...]]:
    return {item.query.id: choice(item) for item in mix(items, settings, seed)}


SETTINGS = [MixSettings(), MixSettings(mode="pool", ratio=1.0), MixSettings(mode="pure"), MixSettings(negatives=3, ratio=0.3)]


@pytest.mark.parametrize("settings", SETTINGS, ids=["instance", "pool", "pure", "few"])
def test_neither_order_nor_company_changes_a_querys_choice(settings: MixSettings) -> None:
    items = [query(n) for n in range(60)]
    whole = choices(items, settings)
    assert all(whole.values())
    if settings.mode != "pure":
        differing = {tuple(name.partition("-")[2] for name in chosen) for chosen in whole.values()}
        assert len(differing) > 1, "queries do draw differently, so that equality says something"
    assert choices(items[::-1], settings) == whole
    parts = [items[start::4] for start in (2, 0, 3, 1)]  # four workers
    assert {name: chosen for part in parts for name, chosen in choices(part, settings).items()} == whole
    assert choices([query(n, permuted=Random(n)) for n in range(60)], settings) == whole


def test_the_order_of_folders_does_not_change_a_choice() -> None:
    def only(item: JudgedQuery, sources: set[str]) -> JudgedQuery:
        return JudgedQuery(item.query, item.positives, tuple(j for j in item.judged if j.candidate.sources[0] in sources))

    items = [query(n) for n in range(40)]
    retrieved, written = [only(item, {"bm25", "dense"}) for item in items], [only(item, {"synthetic"}) for item in items]
    one = choices(list(together(retrieved, written)), MixSettings())
    assert one == choices(list(together(written, retrieved)), MixSettings()) == choices(items, MixSettings())


@pytest.mark.parametrize("mode", ["instance", "pool"])
def test_the_same_seed_draws_the_same_and_another_seed_differs(mode: str) -> None:
    items = [query(n) for n in range(60)]
    settings = MixSettings.checked({"mode": mode})
    assert choices(items, settings, 1) == choices(items, settings, 1) != choices(items, settings, 2)


PRINTED = """
import json, sys
from negatron.negatives.mixing import MixSettings, mix
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Query
items = [
    JudgedQuery(Query(f"q{n}", "x"), (), tuple(
        Judged(Candidate(f"q{n}", Document(f"{source}-{rank}", f"{source} {rank}"), (Origin(source, "m", rank=rank),)))
        for source in ("bm25", "dense", "ce", "synthetic") for rank in (1, 2, 3)
    ))
    for n in range(30)
]
print(json.dumps([[j.candidate.document.id for j in item.judged if j.kept] for item in mix(items, MixSettings(), 0)]))
"""


def test_another_process_with_other_hashes_draws_the_same() -> None:
    def printed(seed: str) -> list[list[str]]:
        command, environment = [sys.executable, "-c", PRINTED], {**os.environ, "PYTHONHASHSEED": seed}
        return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    one = printed("1")
    assert one == printed("2") and len({tuple(chosen) for chosen in one}) > 1


@pytest.mark.parametrize(("negatives", "ratio"), [(5, 0.7), (3, 0.7), (1, 0.7), (5, 2.7), (7, 0.2)])
def test_the_expected_number_of_synthetic_negatives_is_exact(negatives: int, ratio: float) -> None:
    expected = negatives * ratio / (1 + ratio)
    drawn = [quota(negatives, ratio, stream(0, "expectation", n))[0] for n in range(STREAMS)]
    assert {math.floor(expected), math.ceil(expected)} == set(drawn), "a fraction, or nothing is shown"
    fraction = expected - math.floor(expected)
    assert abs(sum(drawn) / STREAMS - expected) <= 3 * math.sqrt(fraction * (1 - fraction) / STREAMS)


def test_the_share_of_synthetic_queries_in_a_pool_is_exact() -> None:
    report = MixReport()
    count = 4000
    for _ in mix((query(n) for n in range(count)), MixSettings(mode="pool", ratio=0.7, negatives=1), 0, report):
        pass
    share = 0.7 / 1.7
    assert abs(report.chosen["synthetic"] / count - share) <= 3 * math.sqrt(share * (1 - share) / count)


def test_nothing_leaves_the_file() -> None:
    for settings in SETTINGS:
        for item, after in zip(map(query, range(10)), mix(map(query, range(10)), settings, 0), strict=True):
            assert [judged.candidate for judged in after.judged] == [judged.candidate for judged in item.judged]
            assert all(judged.spare for judged in after.judged), "a choice is no rejection"

"""What stays true of stages, weights and renewed negatives, whatever the settings.

- No example is lost or seen twice where a stage or an epoch ends; no batch reaches over either.
- A step's plan and its negatives are the same before and after a stop, in any order, in any process.
- A band means places among the negatives of its own source, whatever stands beside them; no source's quota changes another's draw.
- Every number of a plan reaches the loss, and `importance` is HCL's beta (the formula written out once more, without its debiasing).
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from negatron.training.curriculum import Curriculum, Defaults, Stage, StepPlan, choose_negatives, draw_of
from negatron.training.remining import ConanReplacement, Look, RemineRule, is_due
from negatron.training.weighting import Ramp, Weighting
from negatron.types import Document, Negative, Origin, Query, TrainingExample

SOURCES = ("bm25", "dense", "synthetic:mgh")
COURSE = (
    Stage.checked({"name": "easy", "share": 0.3, "quotas": {"bm25": 1, "synthetic": 1}, "bands": {"synthetic": [3, 4]}, "batch_size": 3}),
    Stage.checked({"name": "plain", "share": 0.3, "temperature": {"from": 0.1, "to": 0.05}, "false_negative_margin": "off"}),
    Stage.checked({"name": "hard", "share": 0.4, "quotas": {"dense": 2, "synthetic": 1}, "bands": {"dense": [1, 3]}, "temperature": 0.02}),
)
WEIGHTING = Weighting(
    focal=Ramp(start=0.0, to=2.0), importance=Ramp(start=1.0, to=0.0, shape="steps"), hardness=Ramp(start=0.0, to=9.0, shape="cosine")
)


def examples(count: int = 20) -> list[TrainingExample]:
    """Each with five negatives of each source; the first is of two."""
    found = []
    for n in range(count):
        own = [
            Negative(Document(f"{source}-{n}-{rank}", f"{source} {n} {rank}"), (Origin(source, "m", rank=rank),))
            for source in SOURCES
            for rank in range(1, 6)
        ]
        own[0] = Negative(own[0].document, (Origin("bm25", "m", rank=1), Origin("dense", "m", rank=2)))
        found.append(TrainingExample(Query(f"q{n}", f"question {n}"), Document(f"p{n}", f"answer {n}"), tuple(own)))
    return found


def course(**changes: Any) -> Curriculum:
    return Curriculum(
        **{"defaults": Defaults(4, 0.05, 0.1), "examples": 20, "epochs": 2, "stages": COURSE, "weighting": WEIGHTING} | changes
    )


def ids(example: TrainingExample) -> list[str]:
    return [negative.document.id for negative in example.negatives]


# ---- no example is lost ------------------------------------------------------------------------------------------------------------------


def random_curriculum(draw: random.Random) -> Curriculum:
    weights = [draw.random() + 0.05 for _ in range(draw.randint(0, 4))]
    stages = tuple(Stage(share=min(1.0, weight / sum(weights)), batch_size=draw.choice([None, 1, 3, 8, 100])) for weight in weights)
    return Curriculum(Defaults(draw.randint(1, 9)), draw.randint(30, 90), draw.randint(1, 4), stages)


@pytest.mark.parametrize("seed", range(40))
def test_every_example_of_every_epoch_is_in_exactly_one_step(seed: int) -> None:
    made = random_curriculum(random.Random(seed))
    seen: Counter[tuple[int, int]] = Counter()
    plans = [made.at(step) for step in range(made.steps)]
    for plan in plans:
        assert 1 <= plan.examples <= plan.batch_size
        seen.update((plan.epoch, plan.first_of_epoch + n) for n in range(plan.examples))
    assert seen == Counter({(epoch, n): 1 for epoch in range(made.epochs) for n in range(made.examples)})
    assert [plan.stage for plan in plans] == sorted(plan.stage for plan in plans)
    assert {plan.stage for plan in plans} == (set(range(1, len(made.stages) + 1)) or {0}), "no stage is left out"
    assert [plan.progress for plan in plans] == sorted({plan.progress for plan in plans}), "it grows at every step"
    short = [plan for plan in plans if plan.examples < plan.batch_size]
    ends = {span.first_step + span.steps - 1 for span in made.spans}
    assert {plan.step for plan in short} <= ends, "only the last batch of a span is smaller"


def test_a_stage_has_its_share_to_within_one_example() -> None:
    for seed in range(40):
        made = random_curriculum(random.Random(seed))
        for number, stage in enumerate(made.stages, 1):
            own = sum(span.examples for span in made.spans if span.stage == number)
            assert abs(own - stage.share * made.examples * made.epochs) <= 1


# ---- the same before and after a stop ----------------------------------------------------------------------------------------------------


class Model:
    """A model in training, as cosines that fall the sooner the harder the negative; it counts how often it was asked."""

    def __init__(self) -> None:
        self.step, self.asked = 0, 0

    def cosines(self, queries: Sequence[str], documents: Sequence[str]) -> list[float]:
        self.asked += len(queries)
        return [0.9 - 0.05 * self.step / int(document.split()[-1]) for document in documents]


def trained(made: Curriculum, first: int, end: int, state: dict[str, Any] | None) -> tuple[list[Any], dict[str, Any]]:
    """Steps first .. end-1 as a trainer does them; what each step saw, and the checkpoint after the last."""
    every = examples()
    remine, model = ConanReplacement(RemineRule(every=4, negatives=2, first_rank=3)), Model()
    if state is not None:
        assert made.resume(state["curriculum"]) == first
        remine.restore(state["remine"])
    lines = []
    for step in range(first, end):
        model.step, plan = step, made.at(step)
        if is_due(remine, step):
            remine.renew(Look(step, every, model.cosines, lambda folder: None))
        batch = [remine.current(every[plan.first_of_epoch + n]) for n in range(plan.examples)]
        chosen = [choose_negatives(example, plan, draw_of(example, seed=7, epoch=plan.epoch)) for example in batch]
        lines.append([plan.loss_options(), plan.stage, plan.batch_size, [ids(example) for example in chosen]])
    return lines, json.loads(json.dumps({"curriculum": made.state(end), "remine": remine.state()}))


def test_weights_quotas_and_temperature_change_by_step_and_survive_a_stop() -> None:
    whole, _ = trained(course(), 0, course().steps, None)
    options = [line[0] for line in whole]
    assert len({option["temperature"] for option in options}) >= 4
    assert [option["focal"] for option in options] == sorted({option["focal"] for option in options})
    assert len({option["importance"] for option in options}) >= 9 and len({option["hardness"] for option in options}) == len(options)
    assert {option["false_negative_margin"] for option in options} == {0.1, None}
    assert len({line[2] for line in whole}) == 2
    sources_of_stage: dict[int, set[str]] = {}
    for _, stage, _, batch in whole:
        sources_of_stage.setdefault(stage, set()).update(name.partition("-")[0] for own in batch for name in own)
    assert sources_of_stage == {1: {"bm25", "synthetic:mgh"}, 2: {"bm25", "dense", "synthetic:mgh"}, 3: {"dense", "synthetic:mgh"}}
    assert any(name.startswith("dense") and name.endswith("-3") for line in whole for own in line[3] for name in own), "none was renewed"
    for stop in range(1, course().steps):
        before, state = trained(course(), 0, stop, None)
        after, _ = trained(course(), stop, course().steps, state)
        assert before + after == whole, f"stopped after {stop} steps"


def test_the_choice_depends_on_no_order_and_no_company() -> None:
    plan = course().at(course().steps - 1)
    draw = random.Random(3)
    for example in examples():
        usual = ids(choose_negatives(example, plan, draw_of(example, seed=7, epoch=1)))
        for _ in range(5):
            shuffled = [replace(negative, origins=negative.origins[::-1]) for negative in example.negatives]
            draw.shuffle(shuffled)
            other = replace(example, negatives=tuple(shuffled), stage=9)
            assert sorted(ids(choose_negatives(other, plan, draw_of(other, seed=7, epoch=1)))) == sorted(usual)
    assert len({tuple(ids(choose_negatives(examples()[0], plan, draw_of(examples()[0], seed=n, epoch=1)))) for n in range(30)}) > 3


CODE = """
from negatron.training.curriculum import *
from negatron.types import *
found = [(s, n) for s in "abcd" for n in range(1, 9)]
own = tuple(Negative(Document(f"{s}{n}", f"{s} {n}"), (Origin(s, "m", rank=n), Origin("all", "m", rank=n))) for s, n in found)
example = TrainingExample(Query("q", "question"), Document("p", "answer"), own)
made = Curriculum(Defaults(4), 20, stages=(Stage(share=1.0, quotas={"d": 2, "all": 5, "a": 2, "c": 1}, bands={"all": (3, 9)}),))
chosen = choose_negatives(example, made.at(0), draw_of(example, seed=1, epoch=0))
print(made.fingerprint, [negative.document.id for negative in chosen.negatives])
"""


def test_another_process_chooses_the_same() -> None:
    seen = set()
    for hash_seed in ("0", "1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
        seen.add(run.stdout)
    assert len(seen) == 1


# ---- a band and a quota mean their own source alone --------------------------------------------------------------------------------------


def plan_of(**stage: Any) -> StepPlan:
    return course(stages=(Stage.checked({"share": 1.0} | stage),)).at(0)


def test_a_band_means_the_same_whatever_stands_beside_its_source() -> None:
    for example in examples():
        alone = replace(example, negatives=tuple(n for n in example.negatives if n.origins[0].source == "synthetic:mgh"))
        plan = plan_of(quotas={"synthetic": 2}, bands={"synthetic": [2, 3]})
        draws = [draw_of(one, seed=7, epoch=0) for one in (example, alone)]
        expected = [f"synthetic:mgh-{example.query.id[1:]}-{rank}" for rank in (2, 3)]
        assert ids(choose_negatives(example, plan, draws[0])) == ids(choose_negatives(alone, plan, draws[1])) == expected


def test_at_most_the_quota_and_nothing_twice_and_no_shortage_that_could_be_avoided() -> None:
    draw = random.Random(5)
    for _ in range(200):
        own = tuple(
            Negative(Document(f"d{n}", f"d{n}"), tuple(Origin(s, "m", rank=n + 1) for s in draw.sample("ab", draw.randint(1, 2))))
            for n in range(draw.randint(0, 6))
        )
        quotas = {"a": draw.randint(0, 3), "b": draw.randint(0, 3)}
        example = TrainingExample(Query("q", "q"), Document("p", "p"), own)
        chosen = ids(choose_negatives(example, plan_of(quotas=quotas), random.Random(draw.random())))
        found_by = [{origin.source for origin in negative.origins} for negative in own]
        a, b, both = (found_by.count(sources) for sources in ({"a"}, {"b"}, {"a", "b"}))
        best = min(sum(quotas.values()), min(a, quotas["a"]) + min(b, quotas["b"]) + both)  # the shared ones fill what either lacks
        assert len(set(chosen)) == len(chosen) == best, (quotas, own)


# ---- every number reaches the loss -------------------------------------------------------------------------------------------------------


def small_batch() -> tuple[Any, Any, Any]:
    torch = pytest.importorskip("torch", reason="needs negatron[train]")
    from negatron.training.losses import Targets

    draw = torch.Generator().manual_seed(4)
    queries, documents = (torch.nn.functional.normalize(torch.randn(n, 6, generator=draw), dim=1) for n in (4, 8))
    own = torch.tensor([[row, 4 + row] for row in range(4)])
    return queries, documents, Targets(torch.arange(4), torch.empty(0, 2).long(), own)


def test_importance_is_the_beta_of_hcl_at_its_temperature() -> None:
    """Robinson et al. 2021, with tau_plus = 0: R = sum_j imp_j e^(s_j / tau) / mean_j imp_j, imp_j = e^(beta s_j / tau)."""
    queries, documents, targets = small_batch()
    from negatron.training.losses import InfoNCE

    beta, tau = 0.7, 0.25
    plan = course(defaults=Defaults(4, tau), stages=(), weighting=Weighting(importance=beta)).at(0)
    total = 0.0
    for row in range(4):
        cosines = [float(queries[row].double() @ documents[column].double()) for column in range(8)]
        negatives = [cosine for column, cosine in enumerate(cosines) if column != row]
        importances = [math.exp(beta * s / tau) for s in negatives]
        weighted = sum(w * math.exp(s / tau) for w, s in zip(importances, negatives, strict=True)) / (sum(importances) / len(importances))
        positive = math.exp(cosines[row] / tau)
        total -= math.log(positive / (positive + weighted))
    ours, unweighted = (
        InfoNCE(**{**plan.loss_options(), **more})(queries, documents, targets).item() for more in ({}, {"importance": 0.0})
    )
    assert abs(unweighted - total) > 0.1, "the weights change nothing here, so nothing is compared"
    assert ours == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.5),
        ("false_negative_margin", -0.5),
        ("focal", 2.0),
        ("importance", 3.0),
        ("hardness", 5.0),
        ("hardness_of", "own"),
    ],
)
def test_every_number_of_a_plan_changes_the_loss(name: str, value: Any) -> None:
    queries, documents, targets = small_batch()
    from negatron.training.losses import InfoNCE

    plan = course(stages=(), weighting=Weighting(hardness=1.0) if name == "hardness_of" else Weighting(), defaults=Defaults(4, 0.25)).at(0)
    usual, changed = (InfoNCE(**one.loss_options())(queries, documents, targets).item() for one in (plan, replace(plan, **{name: value})))
    assert abs(usual - changed) > 1e-3
    assert set(plan.loss_options()) == {"temperature", "false_negative_margin", "focal", "importance", "hardness", "hardness_of"}

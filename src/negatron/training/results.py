"""What a training leaves: the saved model and a result that says how it was made.

1. `finish` saves the weights that are kept to `work/model`, then writes `work/result.json`, then removes the checkpoints.
2. `finished` gives that result again when the same training is asked for.

What stays true: `work/model` and `work/result.json` are whole where they exist, and hold no date: the same training gives the same bytes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from negatron.store import write_json
from negatron.training import adapters, checkpoints
from negatron.training.checkpoints import Progress
from negatron.training.towers import CutTexts

MODEL, RESULT = "model", "result.json"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training did. `evaluations` are (steps done, score); `steps_kept` says after how many steps the saved weights were taken."""

    model: Path
    steps: int
    steps_kept: int
    examples: int
    """Examples learnt from, each counted as often as it was seen."""
    tokens: int
    """Encoded, without padding and second passes."""
    precision: str
    device: str
    cut: CutTexts
    excluded_share: float
    """Of all (query, column) pairs of all batches, 0..1: those that could not count as negatives."""
    first_loss: float
    last_loss: float
    evaluations: tuple[tuple[int, float], ...]

    def facts(self) -> dict[str, Any]:
        """All of it but the place of the model, which may move, as JSON values for a manifest."""
        return {key: value for key, value in asdict(self).items() if key != "model"}

    @classmethod
    def from_facts(cls, model: Path, values: Mapping[str, Any]) -> TrainingResult:
        """The result that `facts` gave."""
        evaluations = tuple((steps, score) for steps, score in values["evaluations"])
        return cls(**{**values, "model": model, "cut": CutTexts(**values["cut"]), "evaluations": evaluations})


def result_of(work: Path, done: Progress, recipe: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], cut: CutTexts) -> TrainingResult:
    """The result of a training that is over, from the lines of its log."""
    pairs = sum(line["examples"] for line in lines)
    return TrainingResult(
        model=work / MODEL,
        steps=done.steps,
        steps_kept=done.best[0] if recipe["keep"] == "best" and done.best is not None else done.steps,
        examples=pairs,
        tokens=sum(line["tokens"] for line in lines),
        precision=recipe["precision"],
        device=recipe["device"],
        cut=cut,
        excluded_share=math.fsum(line["excluded_share"] * line["examples"] for line in lines) / pairs,
        first_loss=lines[0]["loss"],
        last_loss=lines[-1]["loss"],
        evaluations=tuple((line["step"], line["evaluation"]) for line in lines if "evaluation" in line),
    )


def finish(model: SentenceTransformer, work: Path, result: TrainingResult, recipe: Mapping[str, Any]) -> None:
    """Saves the model, as it is or with the best evaluation's weights, then the result; the checkpoints go, nobody needs them any more."""
    model.eval()
    if result.steps_kept < result.steps:
        checkpoints.load_best(work / checkpoints.FOLDER, model)
    if recipe["lora"] is not None:
        adapters.merge(model)
    save_model_folder(model, work / MODEL)
    write_json(work / RESULT, {"recipe": recipe, "result": result.facts()})
    shutil.rmtree(work / checkpoints.FOLDER, ignore_errors=True)


def save_model_folder(model: SentenceTransformer, folder: Path) -> None:
    """Saves the model under its final name only when it is whole. No model card: it would hold the date, and differ from run to run."""
    beside = folder.with_name(f".{folder.name}.partial")
    for old in (beside, folder):
        shutil.rmtree(old, ignore_errors=True)
    model.save(str(beside), create_model_card=False)
    beside.rename(folder)


def finished(work: Path, recipe: Mapping[str, Any]) -> TrainingResult | None:
    """The result of this training if it has ended before, None if it has not. Raises NegatronError when `work` holds another training's."""
    path = work / RESULT
    if not path.is_file():
        return None
    written = json.loads(path.read_text(encoding="utf-8"))
    checkpoints.refuse_other_recipe(path, written["recipe"], recipe)
    shutil.rmtree(work / checkpoints.FOLDER, ignore_errors=True)  # a kill just after the result was written leaves them
    return TrainingResult.from_facts(work / MODEL, written["result"])

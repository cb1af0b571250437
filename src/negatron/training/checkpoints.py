"""Where a stopped training goes on: `step-000000120/` folders, each written whole or not at all, only the newest kept.

A checkpoint holds the weights, the optimiser's state, and `state.json`: the steps done, the best evaluation so far, a learnt
temperature, which negatives re-mining has put in place, and the recipe, that is, all that the final weights depend on. The learning rate,
the stages, the batches and dropout follow from the step's number and the seed, so no schedule and no generator has a state to keep.

What stays true: a folder with the final name is whole, since it got that name by one rename. A run killed at any moment finds the
newest whole one, and does the same steps again from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from negatron.errors import NegatronError
from negatron.store import write_json, writing

FOLDER = "checkpoints"
"""Its name in the folder of a training."""
WEIGHTS, OPTIMISER, STATE, BEST = "model.safetensors", "optimizer.pt", "state.json", "best.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is. `best` is (steps done, score) of the best evaluation so far."""

    steps: int = 0
    best: tuple[int, float] | None = None
    without_best: int = 0
    """Evaluations since then."""

    def after(self, steps: int) -> Progress:
        """The same, that many steps done."""
        return replace(self, steps=steps)


def folders(place: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    return sorted(place.glob("step-*"))


def save(
    place: Path,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    recipe: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint; then removes the older ones. `more`: other state, as JSON values."""
    older = folders(place)
    partial = place / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(model, str(partial / WEIGHTS))
    torch.save(optimiser.state_dict(), partial / OPTIMISER)
    state = {"steps": progress.steps, "best": progress.best, "without_best": progress.without_best, "more": more or {}, "recipe": recipe}
    write_json(partial / STATE, state)
    partial.rename(place / f"step-{progress.steps:09d}")
    for folder in older:
        shutil.rmtree(folder)


def resume(
    place: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, recipe: Mapping[str, Any]
) -> tuple[Progress, dict[str, Any]]:
    """Loads the newest whole checkpoint into model and optimiser; how far it is, and its other state. Progress() where there is none.

    Raises NegatronError when it was made with another recipe.
    """
    if not (found := folders(place)):
        return Progress(), {}
    newest = found[-1]
    state = json.loads((newest / STATE).read_text(encoding="utf-8"))
    refuse_other_recipe(newest, state["recipe"], recipe)
    load_model(model, str(newest / WEIGHTS))
    optimiser.load_state_dict(torch.load(newest / OPTIMISER, weights_only=True))
    return Progress(state["steps"], tuple(state["best"]) if state["best"] else None, state["without_best"]), state["more"]


def save_best(place: Path, model: torch.nn.Module) -> None:
    """Writes the weights as those of the best evaluation, in place of older ones."""
    with writing(place / BEST) as beside:
        save_model(model, str(beside))


def load_best(place: Path, model: torch.nn.Module) -> None:
    """Loads the weights of the best evaluation."""
    load_model(model, str(place / BEST))


def refuse_other_recipe(where: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises NegatronError that names what differs; a mixture of two recipes would be neither."""
    now = json.loads(json.dumps(now))
    differing = [f"{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in {**there, **now} if there.get(key) != now.get(key)]
    if differing:
        raise NegatronError(f"{where} belongs to another training ({'; '.join(differing[:2])}); choose another folder, or remove this one")

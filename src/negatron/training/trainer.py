"""The loop. In: a model, training examples, settings, a folder to work in. Out: `work/model`, which plain SentenceTransformer loads.

1. Load the model, make the `Learner`, find the newest checkpoint in `work/checkpoints`.
2. For each step: what holds at it (`curriculum`), negatives renewed where it is time (`remining`), one optimiser step (`steps`), an
   evaluation where one is due (`evaluating`), its line in `work/log.jsonl`, now and then a checkpoint.
3. Save the model and `work/result.json` (`results`).

What stays true: everything a step draws comes from (seed, step), so a run killed at any moment and started again ends with the same
bytes as one that never stopped (on one CPU thread, and wherever torch's own arithmetic repeats itself). The caller's random state is
left alone. All processes of a training do the same steps; the first one alone writes.

What it does not know: where negatives come from, how a model is judged (`evaluate` is a value), which precision a device likes
(`autocast` is a value).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from negatron.progress import Meter, rate, say
from negatron.seams import Encoder
from negatron.training import checkpoints, evaluating, looking, results, towers, tracking
from negatron.training.allocator import keep_freed_memory
from negatron.training.checkpoints import Progress
from negatron.training.evaluating import Evaluate
from negatron.training.journal import Journal
from negatron.training.learner import Autocast, Learner, drawn_seed, precision_of, prepared, recipe_of, refuse_what_teaches_nothing
from negatron.training.mixtures import ExampleSet, as_sets
from negatron.training.recipe import TrainingSettings
from negatron.training.remining import Remine
from negatron.training.results import TrainingResult
from negatron.training.steps import take_step
from negatron.training.workers import Workers
from negatron.types import TrainingExample

__all__ = ["Autocast", "Evaluate", "ExampleSet", "OnStep", "TrainingResult", "TrainingSettings", "train"]

OnStep = Callable[[Mapping[str, Any]], None]
"""Called with each line of the log once it is written."""


def train(
    model_folder: str | Path,
    examples: Sequence[TrainingExample] | Sequence[ExampleSet],
    settings: TrainingSettings,
    work: Path,
    *,
    autocast: Autocast,
    device: str | None = None,
    on_step: OnStep | None = None,
    evaluate: Evaluate | None = None,
    guide: Encoder | None = None,
    remine: Remine | None = None,
    trackers_at: Path | None = None,
) -> TrainingResult:
    """Trains the model on the examples and saves it to `work/model`. After a stop the same call goes on; after the end it gives the result.

    Args:
        model_folder: a sentence-transformers model.
        examples: (query, positive) pairs with their own negatives and all known positives of the query; or a tuple of sets of them.
        settings: how.
        work: folder of this training alone, the same for all processes; made if missing.
        autocast: models.precision.autocast, or another with its form.
        device: "cpu", "cuda", ...; None = this process's own.
        on_step: sees each line of the log, in the first process.
        evaluate: scores the model during training, on queries that are neither in the examples nor in the test.
        guide: the encoder that `settings.guide` names.
        remine: another way to renew negatives than `settings.remine`.
        trackers_at: where those of `settings.trackers` that write files put them; None = `work/trackers`.

    Raises NegatronError when `work` holds another training, the model does not load, or the loss is no longer a number; SettingError when
    the settings leave nothing to learn, or cannot be honoured.

    """
    sets = as_sets(examples)
    refuse_what_teaches_nothing(sets, settings, evaluated=evaluate is not None, guided=guide is not None)
    tracking.refuse_missing(settings.trackers)
    workers = Workers.start(device, trackers=settings.trackers, folder=trackers_at or work / "trackers")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), ExitStack() as open_things:
        torch.manual_seed(drawn_seed(settings.seed, "load"))  # a folder without pooler weights gets random ones: always the same here
        model = towers.load(model_folder, max_length=settings.max_length, device=str(workers.device))
        context = partial(autocast, str(model.device), settings.precision)
        recipe = recipe_of(model, sets, settings, precision_of(context, model.device), workers, guide)
        if (finished := workers.agree(results.finished(work, recipe) if workers.first else None)) is not None:
            return finished
        learner, cut = prepared(model, sets, settings, context, workers, work / checkpoints.FOLDER, guide=guide, remine=remine)
        done = resumed(learner, work, recipe)
        if workers.first:
            say(f"train: {learner.curriculum.examples:,} examples, {learner.steps:,} steps, {recipe['precision']} on {model.device}; {cut}")
        journal = open_things.enter_context(Journal(work / "log.jsonl", done.steps, writes=workers.first))
        open_things.enter_context(tracking.tracked(workers, recipe))
        if model.device.type == "cpu":
            keep_freed_memory()
        done = loop(learner, done, work, recipe, journal, on_step=on_step, evaluate=evaluate)
        result = results.result_of(work, done, recipe, journal.lines, cut)
        if workers.first:
            results.finish(model, work, result, recipe)
        workers.wait()
        return result


def resumed(learner: Learner, work: Path, recipe: Mapping[str, Any]) -> Progress:
    """Takes over the newest checkpoint; how far the training is."""
    done, more = checkpoints.resume(work / checkpoints.FOLDER, learner.model, learner.optimiser, recipe)
    if learner.log_inverse_temperature is not None and "log_inverse_temperature" in more:
        learner.log_inverse_temperature.data.fill_(more["log_inverse_temperature"])
    if learner.remine is not None and "remine" in more:
        learner.remine.restore(more["remine"])
    learner.workers.wait()  # nobody goes on, and writes, before all have read
    return done


def state_of(learner: Learner) -> dict[str, Any]:
    """What a checkpoint holds beside weights and optimiser, as JSON values."""
    state: dict[str, Any] = {}
    if learner.log_inverse_temperature is not None:
        state["log_inverse_temperature"] = learner.log_inverse_temperature.item()
    if learner.remine is not None:
        state["remine"] = learner.remine.state()
    return state


def loop(
    learner: Learner,
    done: Progress,
    work: Path,
    recipe: Mapping[str, Any],
    journal: Journal,
    *,
    on_step: OnStep | None,
    evaluate: Evaluate | None,
) -> Progress:
    """All steps that are left; returns how far the training is then, with the best evaluation."""
    settings, first = learner.settings, learner.workers.first
    saved = time.monotonic()
    learner.model.train()
    with Meter("train", learner.examples_in(learner.steps), "examples", skipped=learner.examples_in(done.steps), quiet=not first) as meter:
        while done.steps < learner.steps and not evaluating.is_enough(learner, done):
            began = time.monotonic()
            plan = learner.curriculum.at(done.steps)
            renewed = looking.renewed(learner, done.steps)
            line = {**take_step(learner, plan), **renewed}
            done = done.after(plan.step + 1)
            if evaluate is not None and evaluating.is_due(learner, done.steps):
                line["evaluation"], done = evaluating.judged(learner, evaluate, done, work / checkpoints.FOLDER)
            journal.write(line)
            tracking.log(learner.workers, line)
            if on_step is not None and first:
                on_step(line)
            meter.advance(line["examples"], f"{rate(line['tokens'], time.monotonic() - began, 'tokens')}, loss {line['loss']:.4f}")
            if first and time.monotonic() - saved >= settings.checkpoint_seconds and done.steps < learner.steps:
                checkpoints.save(work / checkpoints.FOLDER, learner.model, learner.optimiser, done, recipe, state_of(learner))
                saved = time.monotonic()
    return done

"""The loop. In: a model, training examples, settings, a folder to work in. Out: `work/model`, which plain SentenceTransformer loads.

1. Load the model; count the texts that are cut; find the newest checkpoint in `work/checkpoints`.
2. For each step: plan and collate its batch, set the learning rate, add up the gradient, clip it, step; write a line to `work/log.jsonl`.
3. Now and then evaluate, now and then write a checkpoint.
4. Save the model, then `work/result.json`; the checkpoints go.

What stays true: everything a step draws comes from (seed, step), so a run killed at any moment and started again ends with the same
bytes as one that never stopped (on one CPU thread, and wherever torch's own arithmetic repeats itself). The caller's random state is
left alone.

What it does not know: where negatives come from, how a model is judged (`evaluate` is a value), which precision a device likes
(`autocast` is a value). One process, one device.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from sentence_transformers import SentenceTransformer

from negatron.errors import NegatronError, SettingError
from negatron.identity import fingerprint, fingerprint_texts, stream
from negatron.progress import Meter, rate, say
from negatron.store import write_json, writing
from negatron.training import checkpoints, gradients, towers
from negatron.training.batches import Batch, collate, plan
from negatron.training.checkpoints import Progress
from negatron.training.gradients import Tower
from negatron.training.journal import Journal
from negatron.training.losses import info_nce
from negatron.training.recipe import TrainingSettings, learning_rate_at
from negatron.training.towers import CutTexts
from negatron.types import TrainingExample

__all__ = ["Autocast", "Evaluate", "OnStep", "TrainingResult", "TrainingSettings", "train"]

Autocast = Callable[[str, str], AbstractContextManager[Any]]
"""(device, "auto" | "fp32" | "bf16") -> the context in which a model on that device computes so: models.precision.autocast."""
Evaluate = Callable[[SentenceTransformer], float]
"""The model, in evaluation mode -> its score on queries that training does not see; higher is better."""
OnStep = Callable[[Mapping[str, Any]], None]
"""Called with each line of the log once it is written."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training did. `evaluations` are (steps done, score); `steps_kept` says after how many steps the saved weights were taken."""

    model: Path
    steps: int
    steps_kept: int
    examples: int
    """Examples learnt from, each counted once an epoch."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """What a training has in its hands."""

    model: SentenceTransformer
    optimiser: torch.optim.Optimizer
    queries: Tower
    documents: Tower
    settings: TrainingSettings
    examples: Sequence[TrainingExample]

    @property
    def steps_per_epoch(self) -> int:
        """The last, smaller batch counts too."""
        return math.ceil(len(self.examples) / self.settings.batch_size)

    @property
    def steps(self) -> int:
        """In all epochs."""
        return self.settings.epochs * self.steps_per_epoch

    def examples_in(self, steps: int) -> int:
        """Examples in the first `steps` steps."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * len(self.examples) + rest * self.settings.batch_size


def train(
    model_folder: str | Path,
    examples: Sequence[TrainingExample],
    settings: TrainingSettings,
    work: Path,
    *,
    autocast: Autocast,
    device: str | None = None,
    on_step: OnStep | None = None,
    evaluate: Evaluate | None = None,
) -> TrainingResult:
    """Trains the model on the examples and saves it to `work/model`. After a stop the same call goes on; after the end it gives the result.

    Args:
        model_folder: a sentence-transformers model.
        examples: (query, positive) pairs with their own negatives and all known positives of the query.
        settings: how.
        work: folder of this training alone; made if missing.
        autocast: models.precision.autocast, or another with its form.
        device: "cpu", "cuda", ...; None = what sentence-transformers would choose.
        on_step: sees each line of the log.
        evaluate: scores the model during training, on queries that are neither in the examples nor in the test.

    Raises NegatronError when `work` holds another training, the model does not load, or the loss is no longer a number; SettingError when
    the settings leave nothing to learn.

    """
    refuse_what_teaches_nothing(examples, settings, evaluate)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(drawn_seed(settings.seed, "load"))  # a folder without pooler weights gets random ones: always the same here
        model = towers.load(model_folder, max_length=settings.max_length, device=device)
        context = partial(autocast, str(model.device), settings.precision)
        recipe = recipe_of(model, examples, settings, precision_of(context, model.device))
        if (finished := finished_result(work, recipe)) is not None:
            return finished
        learner, cut = prepare(model, examples, settings, context)
        done = checkpoints.resume(work / "checkpoints", model, learner.optimiser, recipe)
        say(f"train: {len(examples):,} examples, {learner.steps:,} steps, {recipe['precision']} on {model.device}; {cut}")
        with Journal(work / "log.jsonl", done.steps) as journal:
            done = loop(learner, done, work, recipe, journal, on_step=on_step, evaluate=evaluate)
        return finish(learner, done, work, recipe, journal.lines, cut)


def refuse_what_teaches_nothing(examples: Sequence[TrainingExample], settings: TrainingSettings, evaluate: Evaluate | None) -> None:
    """Raises NegatronError for no examples, SettingError where no query would have a single negative or nothing could choose the best."""
    if not examples:
        raise NegatronError("there are no training examples; the split has no judged query, or each was left out as a query of the test")
    if not any(example.negatives for example in examples):
        if not settings.in_batch_negatives:
            raise SettingError(
                "in_batch_negatives = false, but no example has a negative of its own, so there is nothing to learn; mine some first"
            )
        if settings.batch_size == 1 or len(examples) == 1:
            raise SettingError(
                "batches of one example without negatives of its own teach nothing; use a larger batch_size, or mine negatives"
            )
    if settings.keep == "best" and evaluate is None:
        raise SettingError('keep = "best", but there is nothing to evaluate on; give queries for it (a dev split), or set keep = "last"')


def prepare(
    model: SentenceTransformer,
    examples: Sequence[TrainingExample],
    settings: TrainingSettings,
    context: Callable[[], AbstractContextManager[Any]],
) -> tuple[Learner, CutTexts]:
    """Towers and optimiser; and how many texts are cut, counted once on distinct texts."""
    query_prompt, document_prompt = (towers.prompt_of(model, names) for names in (towers.QUERY_PROMPTS, towers.DOCUMENT_PROMPTS))
    asked = towers.count_tokens(model, (example.query.text for example in examples), query_prompt)
    documents = (d.content for e in examples for d in (e.positive, *(negative.document for negative in e.negatives)))
    read = towers.count_tokens(model, documents, document_prompt)
    learner = Learner(
        model,
        adamw(model, settings),
        towers.tower(model, "query", query_prompt, asked, context),
        towers.tower(model, "document", document_prompt, read, context),
        settings,
        examples,
    )
    return learner, towers.cut_texts(asked, read, towers.length_limit(model))


def adamw(model: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW as the Trainer of transformers sets it up: no decay on vectors, that is, on biases and the weights of norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


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
    settings, examples = learner.settings, learner.examples
    saved = time.monotonic()
    epoch, batches = -1, list[tuple[int, ...]]()
    learner.model.train()
    with Meter("train", settings.epochs * len(examples), "examples", skipped=learner.examples_in(done.steps)) as meter:
        for step in range(done.steps, learner.steps):
            if step // learner.steps_per_epoch != epoch:
                epoch = step // learner.steps_per_epoch
                batches = plan([example.query.text for example in examples], settings.batch_size, seed=settings.seed, epoch=epoch)
            batch = collate([examples[n] for n in batches[step % learner.steps_per_epoch]], in_batch=settings.in_batch_negatives)
            began = time.monotonic()
            line = take_step(learner, batch, step)
            if evaluate is not None and evaluation_is_due(step + 1, learner):
                line["evaluation"] = score = evaluated(learner.model, evaluate)
                if settings.keep == "best" and (done.best is None or score > done.best[1]):
                    keep_best(work, learner.model)
                    done = Progress(done.steps, (step + 1, score))
            journal.write(line)
            if on_step is not None:
                on_step(line)
            meter.advance(line["examples"], f"{rate(line['tokens'], time.monotonic() - began, 'tokens')}, loss {line['loss']:.4f}")
            done = Progress(step + 1, done.best)
            if time.monotonic() - saved >= settings.checkpoint_seconds and done.steps < learner.steps:
                checkpoints.save(work / "checkpoints", learner.model, learner.optimiser, done, recipe)
                saved = time.monotonic()
    return done


def take_step(learner: Learner, batch: Batch, step: int) -> dict[str, Any]:
    """One optimiser step (the first is 0); returns its line for the log. Raises NegatronError where loss or gradient is not finite."""
    settings, optimiser = learner.settings, learner.optimiser
    learning_rate = learning_rate_at(step, learner.steps, settings)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    torch.manual_seed(drawn_seed(settings.seed, "dropout", step))
    loss = partial(info_nce, temperature=settings.temperature)
    optimiser.zero_grad()
    outcome = gradients.step(
        learner.queries, learner.documents, batch, loss, chunk_size=settings.chunk_size or None, keep_graphs=settings.keep_graphs
    )
    length = torch.nn.utils.clip_grad_norm_(learner.model.parameters(), settings.gradient_clip or math.inf).item()
    if not (math.isfinite(outcome.loss) and math.isfinite(length)):
        raise NegatronError(
            f"step {step + 1}: the loss is {outcome.loss}, the gradient's length {length}; try a lower learning_rate "
            f"({settings.learning_rate:g} now), precision = 'fp32', or a higher temperature ({settings.temperature:g} now)"
        )
    optimiser.step()
    return {
        "step": step + 1,
        "loss": outcome.loss,
        "learning_rate": learning_rate,
        "gradient_length": length,
        "excluded_share": batch.targets.excluded_share(len(batch.document_texts)),
        "examples": len(batch.query_texts),
        "texts": outcome.texts,
        "tokens": outcome.tokens,
    }


def evaluation_is_due(steps: int, learner: Learner) -> bool:
    """True after every `evaluate_every` steps, or every epoch, and after the last step."""
    return steps % (learner.settings.evaluate_every or learner.steps_per_epoch) == 0 or steps == learner.steps


def evaluated(model: SentenceTransformer, evaluate: Evaluate) -> float:
    """The model's score, without dropout; training mode is on again afterwards."""
    model.eval()
    score = float(evaluate(model))
    model.train()
    return score


def keep_best(work: Path, model: SentenceTransformer) -> None:
    """Writes the weights to `checkpoints/best.safetensors`, in place of older ones."""
    with writing(work / "checkpoints" / "best.safetensors") as beside:
        save_model(model, str(beside))


def finish(
    learner: Learner, done: Progress, work: Path, recipe: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], cut: CutTexts
) -> TrainingResult:
    """Saves the model, then the result; then removes the checkpoints, which nobody needs any more."""
    model = learner.model.eval()
    if done.best is not None:
        load_model(model, str(work / "checkpoints" / "best.safetensors"))
    save_model_folder(model, work / "model")
    pairs = sum(line["examples"] for line in lines)
    result = TrainingResult(
        model=work / "model",
        steps=done.steps,
        steps_kept=done.best[0] if done.best is not None else done.steps,
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
    write_json(work / "result.json", {"recipe": recipe, "result": result.facts()})
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    return result


def save_model_folder(model: SentenceTransformer, folder: Path) -> None:
    """Saves the model under its final name only when it is whole. No model card: it would hold the date, and differ from run to run."""
    beside = folder.with_name(f".{folder.name}.partial")
    for old in (beside, folder):
        shutil.rmtree(old, ignore_errors=True)
    model.save(str(beside), create_model_card=False)
    beside.rename(folder)


def finished_result(work: Path, recipe: Mapping[str, Any]) -> TrainingResult | None:
    """The result of this training if it has ended before, None if it has not. Raises NegatronError when `work` holds another training's."""
    path = work / "result.json"
    if not path.is_file():
        return None
    written = json.loads(path.read_text(encoding="utf-8"))
    checkpoints.refuse_other_recipe(path, written["recipe"], recipe)
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    return TrainingResult.from_facts(work / "model", written["result"])


def recipe_of(
    model: SentenceTransformer, examples: Sequence[TrainingExample], settings: TrainingSettings, precision: str
) -> dict[str, Any]:
    """All that the trained weights depend on, as JSON values."""
    chosen = {key: value for key, value in settings.as_json().items() if key != "checkpoint_seconds"}
    start = {"weights": towers.weights_fingerprint(model), "prompts": fingerprint(model.prompts, model.default_prompt_name)}
    return {**start, "examples": examples_fingerprint(examples), **chosen, "precision": precision, "device": str(model.device)}


def examples_fingerprint(examples: Sequence[TrainingExample]) -> str:
    """Of the texts that training reads, in order; not of ids and origins."""
    return fingerprint_texts(
        text
        for e in examples
        for text in (
            e.query.text,
            e.positive.content,
            str(len(e.negatives)),
            *(negative.document.content for negative in e.negatives),
            str(len(e.known_positives)),
            *sorted(e.known_positives),
        )
    )


def precision_of(context: Callable[[], AbstractContextManager[Any]], device: torch.device) -> str:
    """Which of "bf16" and "fp32" is really on inside the context, whatever was asked for."""
    with context():
        if not torch.is_autocast_enabled(device.type):
            return "fp32"
        return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.").replace("bfloat", "bf")


def drawn_seed(seed: int, *names: str | int) -> int:
    """A seed for torch's generator out of the stream of (seed, names)."""
    return stream(seed, *names).getrandbits(63)

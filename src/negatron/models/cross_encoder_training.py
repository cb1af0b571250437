"""Trains a cross-encoder from queries, positives and negatives; sentence-transformers' CrossEncoderTrainer does the work.

What comes in: any BERT-like folder (an encoder such as MiniLM will do; the layer that scores is new and drawn from the seed) and examples.
What goes out: a folder that plain `CrossEncoder(path)` loads. Two losses: "binary" takes every pair alone, so that the sigmoid of the score
is a probability of relevance, which thresholds need; "listwise" compares a positive with its own negatives only, which orders well and
fixes no zero. Same examples, settings and seed, same weights on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from negatron.errors import MissingExtra, SettingError
from negatron.models.precision import choose_precision
from negatron.progress import Meter
from negatron.settings import Settings
from negatron.types import TrainingExample

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import CrossEncoder


class CrossEncoderSettings(Settings):
    """Settings of `train-cross-encoder`."""

    loss: Literal["binary", "listwise"] = "binary"
    """binary: cross-entropy of each pair, so that scores are probabilities. listwise: each positive against its own negatives (ListNet)."""
    negatives: int = Field(default=4, ge=1)
    """Negatives of each pair at most, the first ones kept."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    batch_size: int = Field(default=32, ge=1)
    """(query, document) pairs in one step; with listwise loss, lists."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak of AdamW's learning rate; it rises over the first tenth of the steps and falls to zero."""
    max_length: int = Field(default=256, ge=8)
    """Tokens at which a pair is cut; the model keeps it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What is computed in; weights stay fp32."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training did: rows seen in an epoch, steps, the mean loss over the last epoch."""

    rows: int
    steps: int
    loss: float


def rows_of(examples: Sequence[TrainingExample], settings: CrossEncoderSettings) -> dict[str, list[Any]]:
    """Columns for the loss: (query, document, label) rows, or (query, documents, labels) lists.

    With the binary loss a pair that several examples share is one row, and a document that is a positive of the query is never a negative.
    """
    lists = [(e.query.text, e.positive.content, [n.document.content for n in e.negatives[: settings.negatives]]) for e in examples]
    if settings.loss == "listwise":
        some = [(query, [positive, *negatives]) for query, positive, negatives in lists if negatives]
        labels = [[1.0, *([0.0] * (len(documents) - 1))] for _, documents in some]
        return {"query": [query for query, _ in some], "documents": [documents for _, documents in some], "labels": labels}
    rows = {(query, positive): 1.0 for query, positive, _ in lists}
    for query, _, negatives in lists:
        for negative in negatives:
            rows.setdefault((query, negative), 0.0)
    return {"query": [q for q, _ in rows], "document": [d for _, d in rows], "label": list(rows.values())}


def train_cross_encoder(base: Path, examples: Sequence[TrainingExample], settings: CrossEncoderSettings, out: Path, seed: int) -> Outcome:
    """Trains and writes the model's folder to `out`. Raises SettingError where there is nothing to tell apart."""
    try:
        import torch
        from datasets import Dataset
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtra(str(error.name), "train") from error
    logging.disable_progress_bar()  # our own meter shows what takes long
    columns = rows_of(examples, settings)
    if not columns["query"] or (settings.loss == "binary" and 0.0 not in columns["label"]):
        raise SettingError("the examples hold no negatives: a cross-encoder needs some to tell from the positives")
    with torch.random.fork_rng(devices=[]):  # the new layer's weights come from the seed, and nobody else's draws change
        torch.manual_seed(seed)
        said = logging.get_verbosity()
        logging.set_verbosity_error()  # that the scoring layer is new is no news
        model = CrossEncoder(str(base), num_labels=1, max_length=settings.max_length)
        logging.set_verbosity(said)
        wake_pooler(model)
        outcome = run(model, Dataset.from_dict(columns), settings, seed)
    model.save_pretrained(str(out), create_model_card=False)
    return outcome


def run(model: CrossEncoder, rows: Dataset, settings: CrossEncoderSettings, seed: int) -> Outcome:
    """The training itself."""
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss
    from transformers.trainer_callback import PrinterCallback

    loss = BinaryCrossEntropyLoss(model) if settings.loss == "binary" else ListNetLoss(model)
    steps = -(-len(rows) // settings.batch_size) * settings.epochs
    with TemporaryDirectory() as scratch, Meter("train cross-encoder", steps, "steps") as meter:
        arguments = CrossEncoderTrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=steps // 10,
            seed=seed,
            bf16=choose_precision(settings.precision, model.device.type) == "bf16",
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[counting(meter)])
        trainer.remove_callback(PrinterCallback)  # stdout is for results
        done = trainer.train()
    return Outcome(len(rows), int(done.global_step), float(done.training_loss))


def counting(meter: Meter) -> Any:
    """A callback that counts steps."""
    from transformers import TrainerCallback

    class Counting(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.advance()

    return Counting()


def wake_pooler(model: CrossEncoder) -> None:
    """Draws a pooler anew that is all zeros, as in encoders that never used theirs: behind zeros the scoring layer would learn nothing."""
    import torch

    for name, module in model.named_modules():
        if name.endswith("pooler.dense") and isinstance(module, torch.nn.Linear) and not bool(module.weight.any()):
            torch.nn.init.normal_(module.weight, std=0.02)

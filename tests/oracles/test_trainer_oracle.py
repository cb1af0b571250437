"""Our loop against sentence-transformers' own trainer: same batches, same recipe, no dropout, so the same weights at the end."""

import copy
import logging

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")
datasets = pytest.importorskip("datasets", reason="needs negatron[train]")

from sentence_transformers import SentenceTransformer  # noqa: E402 - after the check for torch

from negatron.models.precision import autocast  # noqa: E402
from negatron.training.trainer import TrainingSettings, train  # noqa: E402
from negatron.types import Document, Negative, Query, TrainingExample  # noqa: E402

EPOCHS, BATCH = 6, 8  # one batch an epoch, so that the order of the examples, which the two draw differently, cannot matter
RATE, DECAY = 1e-3, 0.1


@pytest.fixture(scope="module")
def without_dropout(tiny_encoder, tmp_path_factory):
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    model[0].model.config.hidden_dropout_prob = model[0].model.config.attention_probs_dropout_prob = 0.0
    folder = tmp_path_factory.mktemp("still") / "model"
    model.save(str(folder), create_model_card=False)
    return folder


def rows():
    return [(f"question {n}", f"the answer to {n} is {n * n}", f"nothing of {n} is told here {n + 100}") for n in range(BATCH)]


def theirs(folder, output):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    model = SentenceTransformer(str(folder), device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        weight_decay=DECAY,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    columns = dict(zip(("anchor", "positive", "negative"), map(list, zip(*rows(), strict=True)), strict=True))
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=datasets.Dataset.from_dict(columns), loss=loss).train()
    return copy.deepcopy(model.state_dict())


def ours(folder, work):
    examples = [
        TrainingExample(Query(query, query), Document(positive, positive), (Negative(Document(negative, negative), ()),))
        for query, positive, negative in rows()
    ]
    settings = TrainingSettings(
        epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, weight_decay=DECAY, temperature=1 / 20, chunk_size=3, precision="fp32"
    )
    result = train(folder, examples, settings, work, autocast=autocast, device="cpu")
    return SentenceTransformer(str(result.model), device="cpu").state_dict()


def test_the_trained_weights_are_those_of_sentence_transformers_trainer(without_dropout, tmp_path):
    start = SentenceTransformer(str(without_dropout), device="cpu").state_dict()
    peer, own = theirs(without_dropout, tmp_path / "theirs"), ours(without_dropout, tmp_path / "ours")
    assert peer.keys() == own.keys()

    def change(weights):  # in double precision, since a change is much smaller than its weight
        return torch.cat([(weights[name].double() - start[name].double()).flatten() for name in sorted(start)])

    assert change(peer).norm() > 0.1, "nothing to compare: the peer learnt nothing"
    # measured: 1.4e-5, by rounding; AdamW makes a whole step of a gradient's sign, so what is near zero there moves most
    assert ((change(own) - change(peer)).norm() / change(peer).norm()).item() < 2e-4

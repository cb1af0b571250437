"""negatron.losses: inside sentence-transformers' own trainer; the rows of tokenised columns; targets of columns; what is refused."""

from __future__ import annotations

import math
import random
import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from datasets import Dataset  # noqa: E402 - after the check for torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments  # noqa: E402
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Router  # noqa: E402

import negatron.losses  # noqa: E402
from negatron.errors import NegatronError, SettingError  # noqa: E402
from negatron.losses import InfoNCE, TiledInfoNCE, info_nce, targets_of_columns  # noqa: E402
from negatron.training.tokenised import Column, Padding, Rows  # noqa: E402

WORDS = "the cat sat on a mat while seven dogs barked at every ship and nobody knew why stars shine".split()  # noqa: SIM905 - so it can be read


def texts(count, seed=1):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, 14))) for _ in range(count)]


def load(folder, *, dropout=0.0):
    model = SentenceTransformer(str(folder), device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


# ---- inside the trainer ----------------------------------------------------------------------------------------------------------------


def trained(folder, out, make_loss, *, rows=24, **arguments):
    """The model, the change of its weights, and the log, after an unchanged trainer script."""
    model = load(folder)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    dataset = Dataset.from_dict({"anchor": texts(rows, 1), "positive": texts(rows, 2), "negative": texts(rows, 3)})
    given = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 0.2,
        "optim": "sgd",  # its steps are the gradients, where Adam's are little more than signs
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 7,
        **arguments,
    }
    arguments = SentenceTransformerTrainingArguments(output_dir=str(out), **given)
    loss = make_loss(model)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset.select(range(8)), loss=loss
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's trainer
        trainer.train()
    change = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    return model, change, trainer.state.log_history, loss


ARGUMENTS = {
    "fp32": ({}, 1e-3),
    "bf16": ({"bf16": True}, 0.05),
    "gradient accumulation": ({"gradient_accumulation_steps": 2}, 1e-3),
    "evaluated during training": ({"eval_strategy": "steps", "eval_steps": 1}, 1e-3),
    "a prompt for queries": ({"prompts": {"anchor": "query: "}}, 1e-3),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_unchanged_trainer_script_learns_what_it_learns_with_their_loss(tiny_encoder, tmp_path, case):
    arguments, tolerance = ARGUMENTS[case]
    chunks = {"chunk_tokens": 40, "keep_tokens": 80}
    _, ours, log, _ = trained(tiny_encoder, tmp_path / "ours", lambda model: TiledInfoNCE(model, temperature=0.05, **chunks), **arguments)
    _, theirs, their_log, _ = trained(
        tiny_encoder, tmp_path / "theirs", lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=3), **arguments
    )
    assert theirs.norm() > 1e-2, "nothing to compare: nothing was learnt"
    assert (ours - theirs).norm() <= tolerance * theirs.norm()
    for name in ("loss", "eval_loss"):
        found, expected = ([line[name] for line in lines if name in line] for lines in (log, their_log))
        assert found == pytest.approx(expected, rel=0.02)
        assert len(found) == (3 if name == "loss" or "eval_steps" in arguments else 0)


def test_a_learnt_temperature_is_learnt_by_the_trainer_and_kept_sane(tiny_encoder, tmp_path):
    _, _, _, loss = trained(tiny_encoder, tmp_path, lambda model: TiledInfoNCE(model, learn_temperature=True), learning_rate=0.01)
    assert loss.temperature != pytest.approx(0.05, rel=1e-4)
    loss.sharpening.data.fill_(10.0)
    loss.eval()
    with torch.no_grad():
        loss([loss.model.preprocess(texts(2, n)) for n in range(2)])
    assert loss.temperature == pytest.approx(0.01)


def test_the_model_card_shows_loss_options_and_citation(tiny_encoder, tmp_path):
    model, *_ = trained(tiny_encoder, tmp_path / "run", lambda model: TiledInfoNCE(model, temperature=0.03, hardness=2.0), max_steps=1)
    model.save(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "negatron.losses.TiledInfoNCE" in card
    assert '"temperature": 0.03' in card
    assert '"hardness": 2.0' in card
    assert "1807.03748" in card


def test_a_guide_is_neither_trained_nor_saved(tiny_encoder):
    loss = TiledInfoNCE(load(tiny_encoder), guide=load(tiny_encoder).train(), guide_absolute_margin=0.0)
    assert not loss.guide.model.training
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"model"}
    assert loss.get_config_dict()["guide"] is loss.guide.model


def test_a_guide_with_another_vocabulary_reads_the_decoded_texts(tiny_encoder):
    """The same words under other ids: the same opinion, if they are read anew; nonsense if the ids are handed over."""
    model, other = load(tiny_encoder), load(tiny_encoder)
    other[0].processor = model.tokenizer.train_new_from_iterator([WORDS] * 9, vocab_size=200)
    old, new = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    assert set(WORDS) <= old.keys() & new.keys()
    table = other[0].model.embeddings.word_embeddings
    shared = [word for word in new if word in old]
    table.weight.data[[new[word] for word in shared]] = table.weight.data[[old[word] for word in shared]].clone()
    columns = [texts(6, 1), texts(6, 2)]
    losses = [TiledInfoNCE(model, guide=guide, guide_absolute_margin=0.0) for guide in (load(tiny_encoder), other)]
    same, again = (loss.eval()([model.preprocess(column) for column in columns]).item() for loss in losses)
    assert again == pytest.approx(same, rel=1e-5)
    assert same != pytest.approx(TiledInfoNCE(model)([model.preprocess(column) for column in columns]).item())


def test_each_side_of_a_router_is_reached(tiny_encoder):
    parts = [list(load(tiny_encoder).children()) for _ in range(2)]
    model = SentenceTransformer(modules=[Router.for_query_document(*parts)], device="cpu").eval()
    features = [{**model.preprocess(texts(4, n), task=task), "task": task} for n, task in enumerate(["query", "document", "document"])]
    theirs = CachedMultipleNegativesRankingLoss(model)(features, None)
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[2] for name in expected} == {"query", "document"}
    model.zero_grad()
    TiledInfoNCE(model, chunk_size=2)(features, None).backward()
    for name, gradient in expected.items():
        assert (dict(model.named_parameters())[name].grad - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3), name


def test_a_frozen_document_side_takes_no_gradient(tiny_encoder):
    parts = [list(load(tiny_encoder).children()) for _ in range(2)]
    model = SentenceTransformer(modules=[Router.for_query_document(*parts)], device="cpu").eval()
    model[0].sub_modules["document"].requires_grad_(False)
    features = [{**model.preprocess(texts(4, n), task=task), "task": task} for n, task in enumerate(["query", "document"])]
    for keep in (0, 10**6):
        model.zero_grad()
        TiledInfoNCE(model, keep_tokens=keep)(features).backward()
        reached = {name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
        assert reached == {"query"}


# ---- tokenised columns -----------------------------------------------------------------------------------------------------------------


NOTHING_KNOWN = Padding()


def column(rows, *, width, left=False, tokenizer=NOTHING_KNOWN, **more):
    """Ids as given, padded with 9."""
    ids = torch.full((len(rows), width), 9)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for n, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, where], mask[n, where] = torch.tensor(row), 1
    return Column.of({"input_ids": ids, "attention_mask": mask, "modality": "text", **more}, 0, tokenizer)


def test_equal_rows_of_a_sides_columns_are_one_whatever_their_padding():
    rows = Rows.of([column([[1, 2], [3]], width=4), column([[3], [1, 2, 5]], width=3)])
    assert rows.numbers.tolist() == [[0, 1], [1, 2]]
    assert rows.lengths == [2, 1, 3]


def test_rows_are_put_together_as_wide_as_the_longest_of_them():
    rows = Rows.of([column([[1, 2], [3]], width=8), column([[4], [1, 2, 5]], width=3)])
    features = rows.features([3, 1, 0])
    assert features["input_ids"].tolist() == [[1, 2, 5], [3, 9, 9], [1, 2, 9]]
    assert features["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert features["modality"] == "text"


def test_left_padding_stays_left_and_a_copy_is_a_copy_whatever_its_column_shows():
    unpadded = column([[3, 1], [6, 7]], width=2, tokenizer=Padding(9, left=True))
    rows = Rows.of([column([[1, 2], [3, 1]], width=5, left=True), unpadded, column([[6, 7], [8, 5, 4, 3]], width=4, left=True)])
    assert rows.numbers.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert rows.features([1, 3, 2])["input_ids"].tolist() == [[9, 9, 3, 1], [8, 5, 4, 3], [9, 9, 6, 7]]


def test_a_column_that_shows_no_padding_gets_the_tokenizers():
    rows = Rows.of([column([[1, 2]], width=2), column([[3]], width=1, tokenizer=Padding(77))])
    assert rows.features([0, 1])["input_ids"].tolist() == [[1, 2], [3, 77]]


def test_what_the_encoder_is_told_beside_the_tokens_keeps_rows_apart():
    rows = Rows.of([column([[1]], width=1, task="query"), column([[1]], width=1, task="document")])
    assert rows.numbers.tolist() == [[0], [1]]
    assert rows.kinds == [range(0, 1), range(1, 2)]
    types = Rows.of([column([[1], [1]], width=1, token_type_ids=torch.tensor([[0], [1]]))])
    assert types.numbers.tolist() == [[0, 1]]


def test_features_are_made_anew_so_that_a_module_may_write_into_them():
    rows = Rows.of([column([[1, 2], [3, 4]], width=2)])
    rows.features([0, 1])["attention_mask"].zero_()
    assert rows.features([0, 1])["attention_mask"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"input_ids": torch.ones(1, 9, dtype=torch.long), "cu_seq_lens_q": torch.tensor([0, 4, 9])}, "unpad_inputs = False"),
        ({"input_ids": torch.ones(9, dtype=torch.long), "offsets": torch.tensor([0, 4])}, "column 1 of the batch has input_ids [9]"),
        ({**column([[1], [2]], width=1).features, "pixel_values": torch.zeros(5, 3)}, "pixel_values has 5 rows"),
    ],
)
def test_what_cannot_be_cut_into_rows_is_refused(tiny_encoder, features, said):
    with pytest.raises(NegatronError, match="column 1") as error:
        TiledInfoNCE(load(tiny_encoder))([column([[1], [2]], width=1).features, features])
    assert said in str(error.value)


def test_columns_of_different_lengths_or_a_single_one_are_refused(tiny_encoder):
    loss = TiledInfoNCE(load(tiny_encoder))
    for columns in ([[[1]]], [[[1]], [[2], [3]]]):
        with pytest.raises(NegatronError, match="of equally many rows"):
            loss([column(rows, width=1).features for rows in columns])


# ---- targets, functional form, options -------------------------------------------------------------------------------------------------


def test_targets_of_columns_by_hand():
    """Rows 0 and 2 ask the same. Document 3 is a negative of all; 1 is the positive of row 1 and a negative of row 0; row 1 names its
    own positive as a negative, row 2 the positive of row 0."""
    targets = targets_of_columns(torch.tensor([[0, 1, 2], [3, 3, 3], [1, 1, 0]]), torch.tensor([5, 6, 5]))
    assert targets.positive.tolist() == [0, 1, 2]
    assert targets.excluded.tolist() == [[0, 2], [2, 0]]
    assert targets.own.tolist() == [[0, 1], [0, 3], [1, 3], [2, 3]]


def test_the_functional_form_is_cross_entropy_over_cosines():
    draw = torch.Generator().manual_seed(1)
    queries, documents = torch.randn(3, 4, generator=draw), torch.randn(9, 4, generator=draw)
    cosines = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(documents, dim=1).T
    expected = torch.nn.functional.cross_entropy(cosines / 0.1, torch.arange(3))
    assert info_nce(queries, documents, temperature=0.1).item() == pytest.approx(expected.item(), rel=1e-5)
    assert info_nce(queries, documents, temperature=0.1, reduction="sum").item() == pytest.approx(3 * expected.item(), rel=1e-5)
    assert info_nce(queries, documents, temperature=0.1, hardness=3.0).item() != pytest.approx(expected.item())
    targets = targets_of_columns(torch.arange(9).view(3, 3), in_batch=False)
    assert info_nce(queries, documents, targets, temperature=0.1).item() < expected.item()
    with pytest.raises(SettingError, match="8 documents for 3 queries"):
        info_nce(queries, documents[:8])
    with pytest.raises(SettingError, match="did you mean 'mean'"):
        info_nce(queries, documents, reduction="meen")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": 20}, "temperature = 1 / scale"),
        ({"mini_batch_size": 32}, "chunk_tokens"),
        ({"hardnes": 3.0}, "did you mean 'hardness'"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"chunk_tokens": 0}, "chunk_tokens = 0"),
        ({"keep_tokens": -1}, "keep_tokens = -1"),
        ({"guide_absolute_margin": 0.0}, "need each other"),
    ],
)
def test_an_option_that_means_nothing_here_is_refused(tiny_encoder, options, said):
    with pytest.raises(SettingError) as error:
        TiledInfoNCE(load(tiny_encoder), **options)
    assert said in str(error.value)


def test_a_learnt_temperature_inside_their_matryoshka_loss_is_refused(tiny_encoder):
    model = load(tiny_encoder)
    loss = MatryoshkaLoss(model, TiledInfoNCE(model, learn_temperature=True), [64, 8])
    with pytest.raises(SettingError, match="inside MatryoshkaLoss"):
        loss([model.preprocess(texts(2, n)) for n in range(2)], None)


def test_all_options_are_in_the_config():
    loss = TiledInfoNCE(torch.nn.Linear(1, 1), 0.1, focal=1.0)
    config = loss.get_config_dict()
    assert {"temperature", "focal", "directions", "chunk_tokens", "keep_product_tokens", "learn_temperature", "guide"} <= config.keys()
    assert config["focal"] == 1.0
    assert negatron.losses.MoreOptions.__annotations__.keys() | {"temperature"} == InfoNCE.__dataclass_fields__.keys()


def test_the_public_names_are_the_namespace():
    assert negatron.losses.__all__ == sorted(negatron.losses.__all__)
    for name in negatron.losses.__all__:
        assert getattr(negatron.losses, name) is not None


def test_in_evaluation_the_loss_has_no_graph_and_the_same_value(tiny_encoder):
    model = load(tiny_encoder).eval()
    features = [model.preprocess(texts(4, n)) for n in range(3)]
    loss = TiledInfoNCE(model, chunk_size=2)
    with torch.no_grad():
        value = loss(features)
    assert not value.requires_grad
    assert value.item() == pytest.approx(loss(features).item(), rel=1e-6)
    assert math.isfinite(value.item())

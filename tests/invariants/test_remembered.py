"""Results that the second pass takes from the first (DESIGN invariant 1): the same gradient bit for bit, or an error.

Real layers, real dropout; the operations that are really run are counted below everything else.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 - after the check for torch

from negatron.errors import SettingError  # noqa: E402
from negatron.training.batches import Batch  # noqa: E402
from negatron.training.gradients import Tower, step  # noqa: E402
from negatron.training.losses import InfoNCE, Targets  # noqa: E402
from negatron.training.remembered import PRODUCTS  # noqa: E402


class Run(TorchDispatchMode):
    """Which operations are run inside the block."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))

    def forward_products(self):
        """Of a step whose backward multiplies too; only a forward pass has addmm."""
        return self.operations.count(torch.ops.aten.addmm.default)

    def draws(self):
        return sum(torch.Tag.nondeterministic_seeded in operation.tags for operation in self.operations)


class Net(torch.nn.Module):
    """A table, a layer, dropout, and what `between` does with the layer's result."""

    def __init__(self, between=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden, self.out = torch.nn.Embedding(40, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 8)
        self.between = between

    def forward(self, ids):
        hidden = torch.nn.functional.dropout(self.between(self.hidden(self.words(ids))), 0.5)
        return torch.nn.functional.normalize(self.out(hidden), dim=1)


def gradient(net, **kept):
    numbers = torch.arange(10)
    empty = torch.empty(0, 2, dtype=torch.long)
    batch = Batch(tuple(map(str, range(10))), tuple(map(str, range(10, 40))), Targets(numbers, empty, empty))
    tower = Tower(lambda texts: torch.tensor([int(text) for text in texts]), net)
    torch.manual_seed(1)
    with Run() as run:
        step(tower, tower, batch, InfoNCE(), chunk_size=8, **kept)
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters()]), run


def noisy(hidden):
    """Draws in four more ways."""
    noise = torch.rand_like(hidden).mul_(2) + torch.randn(hidden.shape) + torch.empty(hidden.shape).uniform_(0, 1)
    return torch.tanh(hidden) * noise[:, torch.randperm(hidden.shape[1])]


@pytest.mark.parametrize("between", [torch.tanh, noisy])
def test_the_gradient_is_the_same_bit_for_bit_and_neither_multiplied_nor_drawn_again(between):
    usual, twice = gradient(Net(between))
    other, _ = gradient(Net(torch.relu))
    assert usual.norm() > 0
    assert not torch.equal(usual, other)
    again, once = gradient(Net(between), keep_product_tokens=999)
    assert torch.equal(again, usual)
    assert (twice.forward_products(), once.forward_products()) == (2 * 2 * 6, 2 * 6)  # two layers, 2 + 4 chunks
    assert twice.draws() == 2 * once.draws() > 0


def test_the_random_generator_stands_where_one_pass_leaves_it():
    gradient(Net(noisy))
    expected = torch.rand(3)
    gradient(Net(noisy), keep_product_tokens=999)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_overwrites_its_products_is_refused():
    usual, _ = gradient(Net(lambda hidden: hidden.add_(1).tanh()))
    assert usual.norm() > 0, "without kept products it trains"
    with pytest.raises(SettingError, match="overwrites the results of its matrix products"):
        gradient(Net(lambda hidden: hidden.add_(1).tanh()), keep_product_tokens=999)


def multiplied(hidden):
    return hidden @ torch.eye(16)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.tanh, multiplied, "asks for aten.mm.default where the first gave aten.bernoulli_.float"),
        (multiplied, torch.tanh, "asks for aten.bernoulli_.float where the first gave aten.mm.default"),
        (lambda hidden: hidden, lambda hidden: hidden.repeat(2, 1), "aten.bernoulli_.float of another shape"),
    ],
)
def test_a_model_that_computes_otherwise_with_a_graph_is_an_error(first, second, message):
    between = {False: first, True: second}
    with pytest.raises(RuntimeError, match=message):
        gradient(Net(lambda hidden: between[torch.is_grad_enabled()](hidden)), keep_product_tokens=999)


def test_a_second_pass_that_asks_for_more_is_an_error():
    class Longer(Net):
        def forward(self, ids):
            vectors = super().forward(ids)
            return vectors @ torch.eye(8) if torch.is_grad_enabled() else vectors

    with pytest.raises(RuntimeError, match="where the first gave nothing more"):
        gradient(Longer(), keep_product_tokens=999)


def test_a_real_encoder_has_the_same_gradient_bit_for_bit(tiny_encoder):
    from sentence_transformers import SentenceTransformer

    texts = [f"{'many words ' * (n % 5)}about number {n}" for n in range(12)]
    empty = torch.empty(0, 2, dtype=torch.long)
    batch = Batch(tuple(texts[:4]), tuple(texts[4:]), Targets(torch.arange(4), empty, empty))
    found = []
    for kept in ({}, {"keep_product_tokens": 999}):
        model = SentenceTransformer(str(tiny_encoder), device="cpu").train()
        tower = Tower(model.preprocess, lambda features, model=model: model(dict(features))["sentence_embedding"])
        torch.manual_seed(1)
        with Run() as run:
            step(tower, tower, batch, InfoNCE(), chunk_size=4, **kept)
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.append((torch.cat(gradients), sum(operation in PRODUCTS for operation in run.operations)))
    (usual, more), (again, fewer) = found
    assert usual.norm() > 0
    assert torch.equal(again, usual)
    assert more - fewer == 3 * (2 * 6 + 1)  # three chunks; in two layers queries, keys, values, out, up, down; and the pooler

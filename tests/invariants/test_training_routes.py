"""Invariants of the routes from a batch to a gradient (DESIGN invariant 1; rows 1 and 6 of the silent errors).

1. The chunked gradient equals the whole one, for chunks that divide the batch, do not divide it, and exceed it, in texts and in tokens,
   whichever graphs are kept.
2. With dropout it equals that of one plain graph over the same chunks: the second pass draws what the first one drew.
3. Under autocast too: no weight is cut off from its gradient by the pass without a graph.
4. The gradient is that of the mean over the queries, also when texts repeat; each distinct text is encoded once.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from functools import partial  # noqa: E402 - after the check for torch

from negatron.training.batches import collate  # noqa: E402
from negatron.training.gradients import Tower, step  # noqa: E402
from negatron.training.losses import info_nce  # noqa: E402
from negatron.types import Document, Negative, Query, TrainingExample  # noqa: E402

LOSS = partial(info_nce, temperature=0.05)
CHUNKS = [{"chunk_size": 1}, {"chunk_size": 3}, {"chunk_size": 5}, {"chunk_size": 50}, {"chunk_tokens": 1}, {"chunk_tokens": 12}]
CHUNKS += [{"chunk_tokens": 20, "chunk_size": 4}]
KEPT = [{}, {"keep_graphs": 2}, {"keep_tokens": 20}, {"keep_graphs": 99}, {"keep_tokens": 999}]
KEPT += [{"keep_product_tokens": 999}, {"keep_tokens": 10, "keep_product_tokens": 25}]


def length(text):
    return 1 + int(text.removeprefix("w")) % 7


class Net(torch.nn.Module):
    """Texts `w<n>` are looked up, so that a tower is a table, a hidden layer with dropout, and a length of one."""

    def __init__(self, dropout=0.0, bf16=False):
        super().__init__()
        torch.manual_seed(1)
        self.words = torch.nn.Embedding(100, 16)
        self.hidden, self.out = torch.nn.Linear(16, 32), torch.nn.Linear(32, 8)
        self.dropout, self.bf16, self.encoded, self.passes = torch.nn.Dropout(dropout), bf16, [], 0

    def prepare(self, texts):
        self.encoded += texts
        return torch.tensor([int(text.removeprefix("w")) for text in texts])

    def forward(self, ids):
        self.passes += 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            vectors = self.out(self.dropout(torch.tanh(self.hidden(self.words(ids)))))
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    def tower(self):
        return Tower(self.prepare, self, length)

    def gradient(self):
        return torch.cat([parameter.grad.flatten() for parameter in self.parameters()])


def batch_of_seven():
    """Seven queries, two of them with the same text; two known positives meet; negatives are shared."""
    queries = ["w1", "w2", "w3", "w4", "w5", "w6", "w1"]
    return collate(
        [
            TrainingExample(
                Query(str(n), text),
                Document(f"p{n}", f"w{20 + n}"),
                (Negative(Document("s", "w40"), ()), Negative(Document(f"n{n}", f"w{50 + n}"), ())),
                frozenset({f"w{20 + n}", "w21"} if n == 0 else {f"w{20 + n}"}),
            )
            for n, text in enumerate(queries)
        ]
    )


def gradient_of_step(net, **route):
    net.train()
    torch.manual_seed(3)
    outcome = step(net.tower(), net.tower(), batch_of_seven(), LOSS, **route)
    return net.gradient(), outcome


def chunks_by_hand(texts, chunk_size=10**9, chunk_tokens=10**9):
    chunks = [[]]
    for text in sorted(dict.fromkeys(texts), key=length, reverse=True):
        if chunks[-1] and (len(chunks[-1]) == chunk_size or (len(chunks[-1]) + 1) * length(chunks[-1][0]) > chunk_tokens):
            chunks.append([])
        chunks[-1].append(text)
    return chunks


def plain_gradient(net, **chunks):
    """Without `step`: one graph over the chunks, the longest first, the mean, one backward."""
    net.train()
    torch.manual_seed(3)
    batch = batch_of_seven()
    both = [(side, chunk) for side in ("query_texts", "document_texts") for chunk in chunks_by_hand(getattr(batch, side), **chunks)]
    vectors = {}
    for side, chunk in sorted(both, key=lambda pair: length(pair[1][0]), reverse=True):
        vectors |= {(side, text): vector for text, vector in zip(chunk, net(net.prepare(chunk)), strict=True)}
    rows = [torch.stack([vectors[side, text] for text in getattr(batch, side)]) for side in ("query_texts", "document_texts")]
    mean = LOSS(*rows, batch.targets) / len(batch.query_texts)
    mean.backward()
    return net.gradient(), mean.item()


def relative_error(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_chunked_gradient_equals_whole_gradient(chunks, kept):
    whole, one = gradient_of_step(Net())
    assert whole.norm() > 0, "nothing to compare: the gradient is zero"
    net = Net()
    chunked, other = gradient_of_step(net, **chunks, **kept)
    assert net.passes > 2 or chunks == {"chunk_size": 50}, "no chunks: each side went through in one pass"
    assert relative_error(chunked, whole) <= 1e-5
    assert other.loss == pytest.approx(one.loss, rel=1e-6)


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_with_dropout_the_chunked_gradient_equals_a_plain_graph_over_the_same_chunks(chunks, kept):
    plain, _ = plain_gradient(Net(dropout=0.3), **chunks)
    off, _ = plain_gradient(Net(dropout=0.0), **chunks)
    assert relative_error(off, plain) > 0.05, "dropout makes no difference, so nothing is replayed"
    chunked, _ = gradient_of_step(Net(dropout=0.3), **chunks, **kept)
    assert relative_error(chunked, plain) <= 1e-5


def test_the_random_generator_stands_where_one_pass_leaves_it():
    plain_gradient(Net(dropout=0.3), chunk_size=3)
    after_one_pass = torch.rand(3)
    gradient_of_step(Net(dropout=0.3), chunk_size=3)
    assert torch.equal(torch.rand(3), after_one_pass)


@pytest.mark.parametrize("kept", [{}, {"keep_graphs": 2}, {"keep_product_tokens": 999}], ids=str)
def test_under_autocast_every_weight_gets_the_gradient_of_a_plain_graph(kept):
    plain, _ = plain_gradient(Net(bf16=True), chunk_size=3)
    fp32, _ = plain_gradient(Net(), chunk_size=3)
    assert relative_error(plain, fp32) > 1e-4, "autocast makes no difference"
    chunked, _ = gradient_of_step(Net(bf16=True), chunk_size=3, **kept)
    assert relative_error(chunked, plain) <= 1e-2  # bf16 gradients of a weight are added up chunk by chunk, in another order


@pytest.mark.parametrize("kept", [{}, {"keep_graphs": 2}, {"keep_product_tokens": 999}], ids=str)
def test_under_autocast_of_the_caller_too(kept):
    plain, _ = plain_gradient(Net(bf16=True), chunk_size=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked, _ = gradient_of_step(Net(bf16=True), chunk_size=3, **kept)
    assert relative_error(chunked, plain) <= 1e-2


def test_the_gradient_is_that_of_the_mean_over_the_queries():
    plain, mean = plain_gradient(Net())
    for chunk_size in (None, 3):
        gradient, outcome = gradient_of_step(Net(), chunk_size=chunk_size)
        assert relative_error(gradient, plain) <= 1e-5
        assert outcome.loss == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_each_distinct_text_is_encoded_once(chunk_size):
    net = Net()
    _, outcome = gradient_of_step(net, chunk_size=chunk_size)
    assert len(net.encoded) == outcome.texts == 6 + 15  # seven queries of which two ask the same; 7 positives, 7 negatives, 1 shared
    assert outcome.tokens == sum(map(length, net.encoded))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_changing_the_temperature_changes_loss_and_gradient_on_every_route(chunk_size):
    outcomes = []
    for temperature in (0.05, 0.02):
        net = Net()
        loss = partial(info_nce, temperature=temperature)
        outcomes.append((step(net.tower(), net.tower(), batch_of_seven(), loss, chunk_size=chunk_size).loss, net.gradient()))
    assert abs(outcomes[0][0] - outcomes[1][0]) > 0.1
    assert relative_error(outcomes[1][1], outcomes[0][1]) > 0.1


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_known_positive_in_the_batch_pushes_nothing(chunk_size):
    """The query w1 has the positives w20 and w21: were w21 its only neighbour, its loss and gradient would be zero."""
    known = frozenset({"w20", "w21"})
    rows = [TrainingExample(Query("a", "w1"), Document("p", text), (), known) for text in sorted(known)]
    for barred, expected in ((rows, 0.0), ([TrainingExample(e.query, e.positive) for e in rows[:1]], 0.0)):
        net = Net()
        assert step(net.tower(), net.tower(), collate(barred), LOSS, chunk_size=chunk_size).loss == expected
        assert net.gradient().norm() == 0
    net = Net()
    strangers = [TrainingExample(Query(e.positive.text, f"w{n}"), e.positive) for n, e in enumerate(rows)]
    assert step(net.tower(), net.tower(), collate(strangers), LOSS, chunk_size=chunk_size).loss > 0.1, "with other queries they do push"

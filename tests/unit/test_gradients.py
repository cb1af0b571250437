"""How texts are packed into chunks, and which graphs are kept."""

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.identity import stream  # noqa: E402 - after the check for torch
from negatron.training.batches import Batch  # noqa: E402
from negatron.training.gradients import Side, Tower, pack, step  # noqa: E402
from negatron.training.losses import InfoNCE, Targets  # noqa: E402


def test_a_chunk_holds_texts_of_like_length():
    side = Side.of(Tower(list, lambda features: features), ["aaaaaa", "a", "aa", "aaaaaa", "aaaaa"], None)
    assert [[side.texts[n] for n in chunk.numbers] for chunk in side.chunks(2, None)] == [["aaaaaa", "aaaaa"], ["aa", "a"]]
    assert side.rows.tolist() == [0, 1, 2, 0, 3]


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 64, 500])
def test_every_text_is_in_one_chunk_and_no_chunk_of_several_is_over_a_limit(chunk_size, chunk_tokens):
    draw = stream(1, "lengths")
    lengths = sorted((draw.randint(1, 100) for _ in range(200)), reverse=True)
    chunks = pack(lengths, chunk_size=chunk_size, chunk_tokens=chunk_tokens)
    assert [n for chunk in chunks for n in chunk] == list(range(200))
    for chunk in chunks:
        assert chunk_size is None or len(chunk) <= chunk_size
        assert chunk_tokens is None or len(chunk) == 1 or len(chunk) * lengths[chunk[0]] <= chunk_tokens
    if chunk_size is None and chunk_tokens == 500:
        assert all((len(chunk) + 1) * lengths[chunk[0]] > 500 for chunk in chunks[:-1]), "each is as full as it can be"


def test_no_texts_no_chunks():
    assert pack([], chunk_size=None, chunk_tokens=8) == []


class Table(torch.nn.Module):
    """A vector for each letter; a text is the sum of its letters. Keeps what it was asked to encode, and whether with a graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.letters = torch.nn.Embedding(26, 4)
        self.calls = []

    def prepare(self, texts):
        return list(texts)

    def forward(self, texts):
        self.calls.append((texts, torch.is_grad_enabled()))
        sums = torch.stack([self.letters(torch.tensor([ord(letter) - 97 for letter in text])).sum(0) for text in texts])
        return torch.nn.functional.normalize(sums, dim=1)


def taken(table, **route):
    empty = torch.empty(0, 2, dtype=torch.long)
    batch = Batch(("ab", "cd", "abcd"), ("bbb", "cccccc", "d", "dd", "eeeee"), Targets(torch.tensor([0, 1, 2]), empty, empty))
    tower = Tower(table.prepare, table)
    return step(tower, tower, batch, InfoNCE(temperature=0.5), **route)


def test_the_longest_texts_come_first_on_whichever_side_they_are():
    table = Table()
    taken(table, chunk_tokens=6, keep_tokens=99)
    assert [texts for texts, _ in table.calls] == [["cccccc"], ["eeeee"], ["abcd"], ["bbb", "dd"], ["ab", "cd"], ["d"]]


@pytest.mark.parametrize(("keep_tokens", "graphs", "again"), [(0, 0, 26), (10, 1, 20), (11, 2, 15), (25, 5, 1), (26, 6, 0)])
def test_keep_tokens_says_how_many_padded_tokens_are_encoded_once_only(keep_tokens, graphs, again):
    table = Table()
    outcome = taken(table, chunk_tokens=6, keep_tokens=keep_tokens)
    first = [with_graph for _, with_graph in table.calls[:6]]
    assert first == [True] * graphs + [False] * (6 - graphs)
    assert table.calls[6:] == [(texts, True) for texts, with_graph in table.calls[:6] if not with_graph]
    assert (outcome.padded_tokens, outcome.tokens_again, outcome.tokens) == (26, again, 25)


def test_keep_product_tokens_follow_the_graphs():
    outcome = taken(Table(), chunk_tokens=6, keep_tokens=10, keep_product_tokens=10)
    assert (outcome.padded_tokens, outcome.tokens_again, outcome.product_tokens) == (
        26,
        20,
        9,
    )  # the chunks are of 6, 5, 4, 6, 4 and 1 tokens


def test_without_a_limit_everything_is_encoded_once_a_side_at_a_time():
    table = Table()
    outcome = taken(table)
    assert [len(texts) for texts, _ in table.calls] == [5, 3]
    assert outcome.tokens_again == 0

"""One optimiser step, really run: 80,000 queries with a positive and 5 negatives each are 480,000 columns and one gradient.

    python benchmarks/one_step.py [--queries 80000] [--negatives 5] [--tokens 16] [--json]
    python benchmarks/one_step.py --device cuda --model minilm --tokens 64 --chunk-tokens 131072

A BERT with random weights (`small`: 2 layers of width 128; `minilm`: 6 of 384) on generated texts, all distinct and of one length, so
that there is nothing to gain from padding or repetition. Chunked gradients, the loss in linear memory, AdamW; bf16 inside the encoder on
a GPU. First the same step on few queries is compared with the whole graph and the loss as it is written.

Counted operations: of the encoder's matrix products, forward, second forward where neither graph nor products were kept, and backward
(twice a forward); of the loss 8 Q N D. The shares are of a square matmul of the same machine in the same run: in the encoder's precision,
and in fp32, which the loss is computed in.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from negatron.models.precision import autocast
from negatron.progress import Meter, say
from negatron.training import gradients
from negatron.training.allocator import keep_freed_memory
from negatron.training.batches import Batch
from negatron.training.formula import plain
from negatron.training.gradients import Tower
from negatron.training.losses import InfoNCE, Options, Targets

MODELS = {"small": (2, 128, 2), "minilm": (6, 384, 12)}
"""Layers, width, heads."""
VOCABULARY = 30_522
CHECKED = 64
"""Queries of the comparison with the whole graph."""


def make_model(name: str, tokens: int, device: str) -> BertModel:
    layers, width, heads = MODELS[name]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=max(tokens, 16),
    )
    return BertModel(config, add_pooling_layer=False).to(device)


def make_batch(queries: int, negatives: int) -> Batch:
    """Texts are numbers. Columns: the positives, then each query's first negative, and so on."""
    rows = torch.arange(queries)
    own = torch.stack([rows.repeat_interleave(negatives), (rows[:, None] + queries * torch.arange(1, negatives + 1)).flatten()], 1)
    texts = [str(number) for number in range(queries * (2 + negatives))]
    return Batch(tuple(texts[:queries]), tuple(texts[queries:]), Targets(rows, torch.empty(0, 2, dtype=torch.long), own))


def token_ids(texts: list[str], tokens: int) -> torch.Tensor:
    """[n, tokens]: the first two say which text it is, the others follow from it without a pattern."""
    numbers = torch.tensor([int(text) for text in texts])[:, None]
    ids = (numbers * tokens + torch.arange(tokens)) * 2_654_435_761 % 2**32 % VOCABULARY
    ids[:, 0], ids[:, 1] = numbers[:, 0] % VOCABULARY, numbers[:, 0] // VOCABULARY
    return ids


@dataclass
class Clock:
    """The moments between the parts of a step."""

    device: str
    moments: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.moments[name] = time.perf_counter()

    def parts(self) -> dict[str, float]:
        times = list(self.moments.values())
        names = ("encode", "loss", "backward", "optimiser")
        return {name: end - start for name, start, end in zip(names, times[:-1], times[1:], strict=True)}


def take_step(model: BertModel, batch: Batch, given: argparse.Namespace) -> tuple[dict[str, float], gradients.Step]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    clock, loss = Clock(given.device), InfoNCE()
    texts = len(batch.query_texts) + len(batch.document_texts)
    passes = 2 - min(1.0, given.keep_tokens / (texts * given.tokens))

    def watched(queries: torch.Tensor, documents: torch.Tensor, targets: Targets) -> torch.Tensor:
        clock.mark("encoded")
        for vectors in (queries, documents):
            vectors.register_hook(lambda gradient: clock.mark("scored"))
        return loss(queries, documents, targets)

    with Meter("one step", round(texts * passes), "texts, both passes") as meter:
        tower = make_tower(model, given, meter)
        clock.mark("begun")
        kept = {"keep_tokens": given.keep_tokens, "keep_product_tokens": given.keep_product_tokens}
        outcome = gradients.step(tower, tower, batch, watched, chunk_tokens=given.chunk_tokens, **kept)
        clock.mark("pushed")
    optimiser.step()
    clock.mark("done")
    return clock.parts(), outcome


def make_tower(model: BertModel, given: argparse.Namespace, meter: Meter | None = None) -> Tower:
    def forward(ids: torch.Tensor) -> torch.Tensor:
        with autocast(given.device, given.precision):
            states = model(input_ids=ids.to(given.device, non_blocking=True)).last_hidden_state
        if meter is not None:
            meter.advance(len(ids))
        return normalize(states.float().mean(1), dim=1)

    return Tower(lambda texts: token_ids(list(texts), given.tokens), forward, lambda text: given.tokens)


def check_equal(model: BertModel, given: argparse.Namespace) -> float:
    """Relative difference between the chunked, tiled gradient and that of the whole graph, on few queries, in fp32, without dropout."""
    batch = make_batch(CHECKED, given.negatives)
    tower = make_tower(model.eval(), argparse.Namespace(**{**vars(given), "precision": "fp32"}))

    def written(queries: torch.Tensor, documents: torch.Tensor, targets: Targets) -> torch.Tensor:
        return plain(queries, documents, targets, Options())

    found = []
    for loss, route in ((written, {}), (InfoNCE(), {"chunk_tokens": 7 * given.tokens, "keep_tokens": 50 * given.tokens})):
        gradients.step(tower, tower, batch, loss, **route)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    assert found[0].norm() > 0
    model.train()
    return ((found[1] - found[0]).norm() / found[0].norm()).item()


def matmul_rate(device: str, precision: str) -> float:
    """Operations a second of a square product: the best of ten."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    clock, best = Clock(device), 0.0
    for _ in range(10):
        clock.mark("begun")
        torch.mm(a, b)
        clock.mark("done")
        best = max(best, 2 * size**3 / (clock.moments["done"] - clock.moments["begun"]))
    return best


def encoder_operations(name: str, tokens: int, texts: int) -> float:
    """Of the matrix products of one forward pass: 12 w^2 weights a layer, and two products of each token with every other."""
    layers, width, _ = MODELS[name]
    return 2.0 * texts * tokens * layers * (12 * width**2 + 2 * tokens * width)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)


def measured(given: argparse.Namespace) -> dict[str, object]:
    keep_freed_memory()
    model = make_model(given.model, given.tokens, given.device)
    difference = check_equal(model, given)
    assert difference <= (1e-5 if given.device == "cpu" else 1e-3), (
        f"chunked and whole differ by {difference}"
    )  # a GPU may multiply in tf32
    rates = {precision: matmul_rate(given.device, precision) for precision in {given.precision, "fp32"}}
    batch = make_batch(given.queries, given.negatives)
    before = peak_mib()
    seconds, outcome = take_step(model, batch, given)
    texts, columns = len(batch.query_texts) + len(batch.document_texts), len(batch.document_texts)
    width = MODELS[given.model][1]
    again = (outcome.tokens_again - outcome.product_tokens) / outcome.padded_tokens
    encoding = encoder_operations(given.model, given.tokens, texts) * (3 + again)
    scoring = 8.0 * given.queries * columns * width
    of_gpu = {} if given.device == "cpu" else {"peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20)}
    return {
        "queries": given.queries,
        "columns": columns,
        "tokens": outcome.tokens,
        "model": given.model,
        "device": given.device if given.device == "cpu" else torch.cuda.get_device_name(),
        "precision": given.precision,
        "difference_to_whole": difference,
        "loss": outcome.loss,
        "seconds": {**seconds, "all": sum(seconds.values())},
        "tokens_per_second": outcome.tokens / sum(seconds.values()),
        "queries_per_second": given.queries / sum(seconds.values()),
        "multiplied_again_share": again,
        "peak_mib": round(peak_mib()),
        "peak_mib_before": round(before),
        **of_gpu,
        "matmul_rate": rates,
        "encoder_share_of_matmul": encoding / (seconds["encode"] + seconds["backward"]) / rates[given.precision],
        "loss_share_of_matmul": scoring / seconds["loss"] / rates["fp32"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {
        "queries": 80_000,
        "negatives": 5,
        "tokens": 16,
        "chunk-tokens": 4096,
        "keep-tokens": 0,
        "keep-product-tokens": 0,
        "threads": 2,
    }
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.precision = given.precision or ("fp32" if given.device == "cpu" else "bf16")
    if given.device != "cpu" and not torch.cuda.is_available():
        say(f"skipped: --device {given.device}, but torch sees no GPU here")
        return
    torch.set_num_threads(given.threads)
    found = measured(given)
    seconds = found["seconds"]
    print(f"one step of {found['queries']:,} queries x {found['columns']:,} documents, {found['tokens']:,} tokens, on {found['device']}")
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    print(f"{found['queries_per_second']:,.0f} queries/s, {found['tokens_per_second']:,.0f} tokens/s, peak {found['peak_mib']:,} MiB")
    print(f"share of the matmul rate: encoder {found['encoder_share_of_matmul']:.2f}, loss {found['loss_share_of_matmul']:.2f}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

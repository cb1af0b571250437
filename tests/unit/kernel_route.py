"""How far loss and gradients through the kernels are from the plain ones; run with TRITON_INTERPRET=1 by test_kernels."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from torch.nn.functional import normalize

from negatron.training.formula import Options, plain
from negatron.training.targets import GuideVectors, Targets
from negatron.training.tiled import tiled


def routes_apart(options: dict[str, Any], rows: tuple[int, int] | None) -> list[float]:
    """Relative difference of loss, gradients of queries and documents, and of the inverse temperature: kernels against plain matrices."""
    draw = torch.Generator().manual_seed(4)
    queries, documents, *guides = (normalize(torch.randn(n, d, generator=draw), dim=1) for n, d in ((9, 20), (40, 20), (9, 6), (40, 6)))
    numbers = torch.arange(9)
    own = torch.stack([numbers, numbers + 20], 1)
    targets = Targets(numbers % 7, torch.stack([numbers, numbers + 30], 1), own, weights=torch.rand(9, generator=draw), rows=rows)
    chosen = Options(**options)
    found = []
    for route in (partial(tiled, route="kernels"), plain):
        asked, read = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        inverse = torch.tensor(1 / chosen.temperature, requires_grad=True)
        loss = route(asked, read, targets, chosen, guide=GuideVectors(*guides) if chosen.guided else None, inverse_temperature=inverse)
        (loss / 3).backward()
        found.append((loss.detach(), asked.grad, read.grad, inverse.grad))
    assert all(part.norm() > 0 for part in found[1]), "nothing to compare: a gradient is zero"
    return [((ours - right).norm() / right.norm()).item() for ours, right in zip(*found, strict=True)]


DIRECTIONS = ("query_to_document", "query_to_query", "document_to_document", "document_to_query")
ROUTES: dict[str, tuple[dict[str, Any], tuple[int, int] | None]] = {
    "plain": ({}, None),
    "two rows": ({}, (3, 5)),
    "masked": ({"false_negative_margin": 0.1, "hardness": 5.0, "own_weight": 2.0, "focal": 1.0}, None),
    "everything": ({"guide_absolute_margin": 0.0, "importance": 2.0, "hardness": 1.0, "directions": DIRECTIONS}, None),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: routes_apart(*case) for name, case in ROUTES.items()}))

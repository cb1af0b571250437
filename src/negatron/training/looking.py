"""The model in training, as `remining` asks for it: cosines of pairs, and a folder to mine with.

What stays true: nothing of it changes what is learnt but through the negatives that it chooses: dropout is off, no graph is made, the
random state is left alone. All processes see the same cosines, those of the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negatron.training.gradients import Tower, pack
from negatron.training.learner import Learner
from negatron.training.remining import Look, is_due
from negatron.training.results import save_model_folder
from negatron.training.towers import TokenCounts


def renewed(learner: Learner, step: int) -> dict[str, Any]:
    """Has the negatives of the coming steps renewed where it is time; for the log, how many were."""
    remine = learner.remine
    if remine is None or not is_due(remine, step):
        return {}
    coming = [example for n in range(step, min(step + remine.every, learner.steps)) for example in learner.feed.at(n)[1]]
    learner.model.eval()
    count = remine.renew(Look(step, coming, lambda asked, read: cosines(learner, asked, read), lambda place: save(learner, place)))
    learner.model.train()
    return {"renewed": count}


def cosines(learner: Learner, queries: Sequence[str], documents: Sequence[str]) -> list[float]:
    """Of the pairs (query n, document n); the first process's, in all of them."""
    towers = learner.towers[learner.feed.sets[0].name]
    found: list[float] = []
    if learner.workers.first:
        sides = ((towers.queries, towers.of_queries, queries), (towers.documents, towers.of_documents, documents))
        left, right = (encoded(tower, counts, texts, learner.settings.chunk_tokens or None) for tower, counts, texts in sides)
        found = (left * right).sum(1).tolist()
    return learner.workers.agree(found)


@torch.no_grad()
def encoded(tower: Tower, counts: TokenCounts, texts: Sequence[str], chunk_tokens: int | None) -> Tensor:
    """[len(texts), D]; each distinct text is encoded once."""
    distinct = list(dict.fromkeys(texts))
    counts.ahead(distinct)
    distinct.sort(key=tower.length, reverse=True)
    chunks = pack([tower.length(text) for text in distinct], chunk_size=None, chunk_tokens=chunk_tokens)
    vectors = torch.cat([tower.forward(tower.prepare([distinct[n] for n in chunk])) for chunk in chunks])
    place = {text: n for n, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]]


def save(learner: Learner, place: Path) -> None:
    """Writes the model as it is now into a folder, from the first process."""
    if learner.workers.first:
        save_model_folder(learner.model, place)
    learner.workers.wait()

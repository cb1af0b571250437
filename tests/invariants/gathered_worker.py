"""Runs the cases of test_gathered.py in 1, 2 and 4 real gloo processes on loopback: python gathered_worker.py FOLDER.

Writes FOLDER/<count>-<index>.pt: for each case what that process found.
"""

import math
import os
import socket
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import distributed

from negatron.errors import NegatronError
from negatron.training.batches import Batch, collate
from negatron.training.gathered import Processes
from negatron.training.gradients import Tower, step
from negatron.training.losses import GuideVectors, InfoNCE
from negatron.types import Document, Negative, Query, TrainingExample

COUNTS = (1, 2, 4)
TIMEOUT = timedelta(seconds=180)  # a few seconds are enough, where the machine is not busy otherwise
DIRECTIONS = ("query_to_document", "query_to_query", "document_to_document", "document_to_query")


class Net(torch.nn.Module):
    """Texts `w<n>` are looked up; a hidden layer with dropout; one part that no text reaches, one that does not learn."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.words = torch.nn.Embedding(100, 16)
        self.hidden, self.out = torch.nn.Linear(16, 32), torch.nn.Linear(32, 8)
        self.unused, self.frozen = torch.nn.Linear(2, 2), torch.nn.Linear(8, 8).requires_grad_(False)
        self.log_inverse_temperature = torch.nn.Parameter(torch.tensor(math.log(20.0)))
        self.dropout, self.encoded = torch.nn.Dropout(dropout), []

    def prepare(self, texts):
        self.encoded += texts
        return torch.tensor([int(text.removeprefix("w")) for text in texts])

    def forward(self, ids):
        vectors = self.frozen(self.out(self.dropout(torch.tanh(self.hidden(self.words(ids))))))
        return torch.nn.functional.normalize(vectors, dim=1).T.contiguous().T  # transposed in memory, as a kernel may leave it

    def tower(self):
        return Tower(self.prepare, self, lambda text: 1 + int(text.removeprefix("w")) % 7)


def examples():
    """Seven queries, two of them with the same text; two known positives meet; negatives are shared."""
    return [
        TrainingExample(
            Query(str(n), text),
            Document(f"p{n}", f"w{20 + n}"),
            (Negative(Document("s", "w40"), ()), Negative(Document(f"n{n}", f"w{50 + n}"), ())),
            frozenset({f"w{20 + n}", "w21"} if n == 0 else {f"w{20 + n}"}),
        )
        for n, text in enumerate(["w1", "w2", "w3", "w4", "w5", "w6", "w1"])
    ]


def written_out(queries, documents, targets):
    """InfoNCE of the scored rows, in plain loops; shares nothing with the losses of the package."""
    total = queries.sum() * 0
    excluded = set(map(tuple, targets.excluded.tolist()))
    for row in range(*(targets.rows or (0, len(queries)))):
        logits = torch.stack([queries[row] @ documents[j] / 0.05 for j in range(len(documents)) if (row, j) not in excluded])
        total = total + torch.logsumexp(logits, 0) - queries[row] @ documents[targets.positive[row]] / 0.05
    return total


def guided(queries, documents, targets):
    draw = torch.Generator().manual_seed(5)
    guide = GuideVectors(*(torch.nn.functional.normalize(torch.randn(len(side), 3, generator=draw)) for side in (queries, documents)))
    return InfoNCE(guide_absolute_margin=0.1)(queries, documents, targets, guide=guide)


LOSSES = {
    "written out": written_out,
    "plain": InfoNCE(),
    "joint": InfoNCE(directions=DIRECTIONS),
    "apart": InfoNCE(directions=DIRECTIONS[:3], joint=False),
    "options": InfoNCE(false_negative_margin=0.1, hardness=3.0, hardness_of="own", own_weight=2.0, importance=0.5, focal=1.0),
    "guided": guided,
}
CHUNKS = {"whole": {}, "3 texts": {"chunk_size": 3}, "12 tokens": {"chunk_tokens": 12, "keep_tokens": 20}}


def gradients_of(net):
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def run(processes, *, batch=None, loss=None, net=None, seed=3, **route):
    """A step; what it gave, and what this process had to do for it."""
    net = net or Net()
    torch.manual_seed(seed)
    loss = loss or InfoNCE()
    outcome = step(net.tower(), net.tower(), batch or collate(examples()), loss, processes=processes(net), **route)
    return {"loss": outcome.loss, "texts": outcome.texts, "encoded": net.encoded, "gradients": gradients_of(net)}


def learnt_temperature(processes):
    net = Net()

    def loss(queries, documents, targets):
        return InfoNCE()(queries, documents, targets, log_inverse_temperature=net.log_inverse_temperature)

    return run(processes, net=net, loss=loss, chunk_size=3)


def added(processes):
    """Two steps without clearing the gradients in between."""
    net = Net()
    run(processes, net=net, chunk_size=3)
    return run(processes, net=net, chunk_size=4)


def weights_and_own_only(processes):
    batch = collate(examples(), in_batch=False)
    targets = replace(batch.targets, weights=torch.linspace(0.5, 2.0, 7))
    return run(processes, batch=Batch(batch.query_texts, batch.document_texts, targets), chunk_size=3)


def dropped_out(processes, keep_tokens, dropout=0.5):
    own_seed = 100 + (distributed.get_rank() if distributed.is_initialized() else 0)
    return run(processes, net=Net(dropout), seed=own_seed, chunk_size=2, keep_tokens=keep_tokens)


def other_batch(processes):
    here, rows = processes(Net()), examples()
    try:
        run(processes, batch=collate(rows[::-1] if here is not None and here.index == 1 else rows))
    except NegatronError as error:
        return str(error)
    return "no error"


def strided_sums(processes):
    """Sums of tensors that are not dense, or dense in another order, each with what it must be."""
    now = processes(Net())
    index, count = (0, 1) if now is None else (now.index, now.count)
    found = {}
    for name, view in {
        "every second column": lambda x: x[:, ::2],
        "transposed": torch.t,
        "expanded": lambda x: x[:, :1].expand(4, 6),
    }.items():
        mine = [view(torch.arange(24.0).reshape(4, 6) * (1 + other)) for other in range(count)]
        found[name] = (torch.stack(mine).sum(0), mine[index] if now is None else now.sum(mine[index]))
    return found


def cases():
    for chunks, route in CHUNKS.items():
        for name, loss in LOSSES.items():
            yield f"{name}, {chunks}", partial(run, loss=loss, **route)
        for queries in (1, 3):
            yield f"{queries} queries, {chunks}", partial(run, batch=collate(examples()[:queries]), **route)
    yield "learnt temperature", learnt_temperature
    yield "added to older gradients", added
    yield "weights, own negatives only", weights_and_own_only
    yield "dropout, all encoded again", partial(dropped_out, keep_tokens=0)
    yield "dropout, all graphs kept", partial(dropped_out, keep_tokens=999)
    yield "no dropout", partial(dropped_out, keep_tokens=0, dropout=0.0)
    yield "another batch in process 1", other_batch
    yield "strided sums", strided_sums


def work(index, count, folder):
    torch.set_num_threads(1)
    if count > 1:
        store = distributed.FileStore(str(folder / f"store-{count}"), count)
        distributed.init_process_group("gloo", store=store, rank=index, world_size=count, timeout=TIMEOUT)
    found = {name: case(lambda net: Processes.now(net.parameters())) for name, case in cases()}
    torch.save(found, folder / f"{count}-{index}.pt")
    if count > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def main():
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    fork = get_context("fork")  # torch is imported once; nothing of it has run before the fork
    for count in COUNTS:
        members = [fork.Process(target=work, args=(index, count, Path(sys.argv[1])), daemon=True) for index in range(count)]
        for member in members:
            member.start()
        for member in members:
            member.join(TIMEOUT.seconds)
        if any(member.exitcode != 0 for member in members):
            sys.exit(f"{count} processes ended with {[member.exitcode for member in members]}")


if __name__ == "__main__":
    main()

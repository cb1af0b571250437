"""Runs the cases of test_drop_in_invariants.py in 1 and 2 real gloo processes on loopback: python dropin_worker.py MODEL FOLDER.

Writes FOLDER/<count>-<index>.pt: for each case the value, and the gradient as an optimiser would find it after data-parallel averaging.
"""

import os
import socket
import sys
from copy import deepcopy
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from sentence_transformers import SentenceTransformer
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from negatron.errors import NegatronError
from negatron.losses import TiledInfoNCE

TIMEOUT = timedelta(seconds=60)
ROWS = [
    ["why do stars shine", "hydrogen fuses in the core", "a poem about stars"],
    ["how do cells divide", "mitosis splits the nucleus before the body separates in two", "cells"],
    ["why do ships float", "the hull displaces water", "a poem about stars"],
    ["how does bread rise", "yeast makes gas", "bread is old"],
    ["why do stars shine", "it is their mass that presses", "the sea is deep and cold"],
    ["what burns in the sun", "hydrogen fuses in the core", "yeast makes gas"],
]
"""Rows 0 and 4 ask the same, rows 0 and 5 have the same positive, row 5's negative is row 3's positive; two negatives are the same."""


def halves(index, count, uneven):
    """The rows of a process."""
    middle = 2 if uneven else 3
    return ROWS if count == 1 else ROWS[:middle] if index == 0 else ROWS[middle:]


def features(model, rows):
    return [model.preprocess([row[n] for row in rows]) for n in range(len(rows[0]))]


def run(loaded, index, count, *, wrapped=True, uneven=False, accumulated=False, freeze=False, **options):
    model = deepcopy(loaded)
    if freeze:
        model[0].model.embeddings.requires_grad_(False)
    guide = deepcopy(loaded) if "guide_absolute_margin" in options else None
    if guide is not None:
        torch.manual_seed(5)
        for parameter in guide.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    loss = TiledInfoNCE(model, chunk_tokens=24, gather_across_devices=True, guide=guide, **options)
    rows = halves(index, count, uneven)
    if wrapped and count > 1:
        loss.model = DistributedDataParallel(model)
    if accumulated:  # as a trainer does: two batches, the first without exchanging gradients
        with loss.model.no_sync() if wrapped and count > 1 else torch.enable_grad():
            (loss(features(model, rows)) / 2).backward()
        (loss(features(model, rows)) / 2).backward()
    value = loss(features(model, rows))
    if not accumulated:
        value.backward()
    names = [name for name, parameter in loss.named_parameters() if parameter.grad is not None]
    gradients = {name.replace("model.module.", "model."): dict(loss.named_parameters())[name].grad for name in names}
    if count > 1 and not wrapped:  # what a data-parallel wrapper would do
        for gradient in gradients.values():
            distributed.all_reduce(gradient)
            gradient /= count
    mean = value.detach().clone()
    if count > 1:
        distributed.all_reduce(mean)
    return {"value": mean.item() / count, "gradients": gradients}


def other_columns(loaded, index, count):
    try:
        TiledInfoNCE(loaded, gather_across_devices=True)(features(loaded, ROWS)[: 3 - index])
    except NegatronError as error:
        return str(error)
    return "no error"


CASES = {
    "gathered": partial(run, wrapped=False),
    "data-parallel": run,
    "uneven halves": partial(run, uneven=True),
    "copies counted": partial(run, exclude_copies=False),
    "accumulated": partial(run, accumulated=True),
    "partly frozen": partial(run, freeze=True),
    "all directions": partial(run, directions=("query_to_document", "query_to_query", "document_to_document", "document_to_query")),
    "guided": partial(run, guide_absolute_margin=0.0),
    "learnt temperature": partial(run, learn_temperature=True),
    "other columns": other_columns,
}


def work(index, count, model, folder):
    torch.set_num_threads(1)
    loaded = SentenceTransformer(model, device="cpu").eval()
    if count > 1:
        store = distributed.FileStore(str(folder / f"store-{count}"), count)
        distributed.init_process_group("gloo", store=store, rank=index, world_size=count, timeout=TIMEOUT)
    found = {name: case(loaded, index, count) for name, case in CASES.items()}
    torch.save(found, folder / f"{count}-{index}.pt")
    if count > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def main():
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    fork = get_context("fork")  # torch is imported once; nothing of it has run before the fork
    for count in (1, 2):
        members = [fork.Process(target=work, args=(index, count, sys.argv[1], Path(sys.argv[2])), daemon=True) for index in range(count)]
        for member in members:
            member.start()
        for member in members:
            member.join(TIMEOUT.seconds)
        if any(member.exitcode != 0 for member in members):
            sys.exit(f"{count} processes ended with {[member.exitcode for member in members]}")


if __name__ == "__main__":
    main()

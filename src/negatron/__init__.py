"""negatron: better dense retrievers by getting their negatives right.

The words of the command line are the words of the library:

    import negatron as ng

    data = ng.load("scifact")
    negatives = ng.mine(data, sources=["bm25", "dense"], negatives=5)
    model = ng.train(data, negatives)
    print(ng.compare(ng.evaluate("minilm", data).path, ng.evaluate(model.path, data).path))

Every verb writes a folder (into the cache where no `out` is given), returns an object that prints well and knows its fingerprint, and
takes its settings as keywords. Nothing heavy is imported before a verb is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negatron.data.collection import Collection
    from negatron.errors import NegatronError
    from negatron.negatives.records import Negatives
    from negatron.verbs.common import load
    from negatron.verbs.cross_encoder import train_cross_encoder
    from negatron.verbs.evaluation import compare, evaluate, search
    from negatron.verbs.negatives import dataset, explain, export, mine, mix, synthesize
    from negatron.verbs.negatives import filter_negatives as filter
    from negatron.verbs.training import train

PLACES = {
    "Collection": "negatron.data.collection",
    "NegatronError": "negatron.errors",
    "Negatives": "negatron.negatives.records",
    "compare": "negatron.verbs.evaluation",
    "dataset": "negatron.verbs.negatives",
    "evaluate": "negatron.verbs.evaluation",
    "explain": "negatron.verbs.negatives",
    "export": "negatron.verbs.negatives",
    "filter": "negatron.verbs.negatives",
    "load": "negatron.verbs.common",
    "mine": "negatron.verbs.negatives",
    "mix": "negatron.verbs.negatives",
    "search": "negatron.verbs.evaluation",
    "synthesize": "negatron.verbs.negatives",
    "train": "negatron.verbs.training",
    "train_cross_encoder": "negatron.verbs.cross_encoder",
}

__all__ = [
    "Collection",
    "Negatives",
    "NegatronError",
    "compare",
    "dataset",
    "evaluate",
    "explain",
    "export",
    "filter",
    "load",
    "mine",
    "mix",
    "search",
    "synthesize",
    "train",
    "train_cross_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'negatron' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(PLACES[name]), "filter_negatives" if name == "filter" else name)


def __dir__() -> list[str]:
    return __all__

"""LoRA: small matrices beside the weights of an encoder, which alone are trained. Through peft; torch is not needed to read the settings.

1. `add_lora` puts them in and freezes everything else. Fresh ones change no vector: B is 0.
2. The trainer sees a model like any other: its state has the base weights and the adapters, so checkpoints hold both.
3. `merge` adds them into the weights and takes them out: what is saved then is a plain model. Saved without it, the folder has the adapters
   apart and needs the base model where it was (sentence-transformers' own way; it loads the same).

What stays true: the merged model gives the vectors of the adapted one, up to rounding. Base weights change in `merge` only.

What it does not know: trainer, checkpoints, where the model is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from negatron.errors import MissingExtra, SettingError, nearest
from negatron.settings import Settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NAME = "default"
"""Of the adapter, as peft and sentence-transformers call an only one."""


class LoraSettings(Settings):
    """W' = W + alpha/rank B A. Source: LoRA, Hu et al. 2021 (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B: the size of an adapter."""
    alpha: int = Field(default=32, ge=1)
    """The adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is set to 0 in training."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the linear layers that get one, or the ends of them, such as "query" or "0.attention.self.query"; "off" = those that peft
    knows for the kind of model (query and value projections), or all but the pooler's where it knows none."""


def add_lora(model: SentenceTransformer, settings: LoraSettings) -> None:
    """Puts an adapter beside each layer asked for; from then on only the adapters are trained.

    A is drawn from torch's generator, so the same seed gives the same adapters; B is 0.

    Raises MissingExtra without peft, SettingError when the model has no transformer or already adapters, or a target is no linear layer.
    """
    require_peft()
    from peft import LoraConfig

    transformers = transformers_of(model)
    if not transformers:
        raise SettingError("LoRA needs a transformer, and this model has none; train it without")
    if any(adapted_layers(transformer) for transformer in transformers):
        raise SettingError("this model has adapters already; merge them first")
    for transformer in transformers:
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=layers_to_adapt(transformer, settings.targets),
        )
        transformer.add_adapter(config, adapter_name=NAME)
    only_adapters_train(model)


def require_peft() -> None:
    """Raises MissingExtra where it is not installed."""
    try:
        import peft  # noqa: F401 - only asked for
    except ImportError as error:
        raise MissingExtra("peft", "lora") from error


def transformers_of(model: SentenceTransformer) -> list[Any]:
    """The transformers inside, each once: usually one, two where queries and documents have an encoder each."""
    from transformers import PreTrainedModel

    found = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    inner = {id(part) for module in found for part in module.modules() if part is not module}
    return [module for module in found if id(module) not in inner]


def layers_to_adapt(transformer: Any, targets: tuple[str, ...] | None) -> list[str]:
    """Full names of the linear layers that the targets mean, sorted. Raises SettingError for a target that means none."""
    linear = linear_layers(transformer)
    chosen = targets if targets is not None else known_targets(transformer.config.model_type, linear)
    for target in chosen:
        if not any(meant(layer, target) for layer in linear):
            raise SettingError(f"targets: no linear layer is called {target!r}{nearest(target, {n.rpartition('.')[2] for n in linear})}")
    return [layer for layer in linear if any(meant(layer, target) for target in chosen)]


def linear_layers(transformer: Any) -> list[str]:
    """Full names of the linear layers, sorted; without the pooler's, which no sentence vector passes through."""
    from torch import nn

    names = (name for name, module in transformer.named_modules() if isinstance(module, nn.Linear))
    return sorted(name for name in names if "pooler" not in name.split("."))


def known_targets(model_type: str, linear: list[str]) -> tuple[str, ...]:
    """The targets of peft's table for this kind of model; all linear layers where it has none that fit."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE

    known = TABLE.get(model_type, [])  # one entry of the table is a pattern, a str, for a model of images and text
    fits = not isinstance(known, str) and known and all(any(meant(layer, target) for layer in linear) for target in known)
    return tuple(known) if fits else tuple(linear)


def meant(layer: str, target: str) -> bool:
    """Whether a target means a layer: it is its name or the end of it, at a dot.

    >>> meant("layer.0.query", "query"), meant("layer.0.query", "0.query"), meant("layer.10.query", "0.query")
    (True, True, False)
    """
    return layer == target or layer.endswith(f".{target}")


def adapted_layers(transformer: Any) -> dict[str, Any]:
    """Name -> layer, of those with an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in transformer.named_modules() if isinstance(module, BaseTunerLayer)}


def only_adapters_train(model: SentenceTransformer) -> None:
    """Freezes all parameters but those of the adapters, in every part of the model: peft itself freezes those of the transformer only."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_A." in name or ".lora_B." in name)


def merge(model: SentenceTransformer) -> None:
    """Adds the adapters into the weights and takes them out: the model is then one like any other, and all of it would be trained.

    Raises MissingExtra without peft, SettingError when there are no adapters, ValueError from peft when a merged weight is not finite.
    """
    require_peft()
    transformers = [transformer for transformer in transformers_of(model) if adapted_layers(transformer)]
    if not transformers:
        raise SettingError("there are no adapters to merge; call add_lora first")
    for transformer in transformers:
        for name, layer in adapted_layers(transformer).items():
            layer.merge(safe_merge=True)
            transformer.set_submodule(name, layer.get_base_layer())
        transformer.delete_adapter(NAME)  # no layer has it any more; this makes the transformer forget it, or it would be saved as adapted
    model.requires_grad_(True)

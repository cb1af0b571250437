"""The verb that filters: stored candidates judged again with other limits, from their stored scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from negatron import store
from negatron.errors import SettingError
from negatron.identity import stream
from negatron.negatives.filters import chain, judge_again
from negatron.negatives.records import KIND as NEGATIVES
from negatron.negatives.records import Negatives, write_negatives
from negatron.negatives.selection import SelectionSettings, choose
from negatron.negatives.summary import Sieve
from negatron.verbs.common import place, settings_of, versions
from negatron.verbs.mining import PROBABILITY


class RefilterSettings(SelectionSettings):
    """Settings of `filter`."""


def filter_negatives(
    negatives: Negatives | Path | str,
    /,  # a setting has the same name
    *,
    out: Path | str | None = None,
    settings: RefilterSettings | None = None,
    seed: int = 0,
    **changes: Any,
) -> Negatives:
    """Stored candidates judged again with other limits, from their stored scores: no model is asked, nothing is mined again.

    What is not given stays as it was when the folder was made.
    """
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    settings = as_made(source, settings_of(RefilterSettings, settings, changes))
    refuse_what_is_not_on_file(source, settings)
    inputs = {"negatives": source.fingerprint, "settings": settings.as_json(), "seed": seed}
    with store.begin(place(out, NEGATIVES, inputs), kind=NEGATIVES, inputs=inputs) as work:
        if work.finished is None:
            rules = chain(settings)
            sieve = Sieve(rules, settings, seed)
            again = judge_again(source, rules, trust_texts="mix" not in source.manifest.facts)
            chosen = (choose(item, settings, stream(seed, "select", item.query.id)) for item in again)
            summary = write_negatives(work.path, sieve.watch(chosen))
            kept_facts = {name: fact for name, fact in source.manifest.facts.items() if name != "mix"}  # the mixture's choice is gone
            work.finish(**{**kept_facts, "summary": summary.as_json(), "sieve": sieve.as_json(), "versions": versions()})
        return Negatives.open(work.out)


def refuse_what_is_not_on_file(source: Negatives, settings: RefilterSettings) -> None:
    """Raises SettingError where the folder's scores cannot be compared, are no probabilities, or the reserve was never asked."""
    facts = source.manifest.facts
    if settings.needs_teacher and len(facts.get("teachers", ())) > 1:
        raise SettingError(
            f"{source.path} mixes scores of several encoders, which no margin can compare; filter its parts before they are mixed, "
            "or turn the margins off"
        )
    if settings.negative_below is not None and facts.get("teacher_scale") != PROBABILITY:
        raise SettingError(
            f"negative_below = {settings.negative_below} is a probability, and {source.path} holds no scores of a cross-encoder; "
            "mine with --cross-encoder, or use max_score"
        )
    if settings.reserve is not None and settings.reserve not in source.summary["candidates"]:
        raise SettingError(
            f"when_short = {settings.when_short!r}: {source.path} holds no candidates of {settings.reserve}; mine with it, "
            "or take keep or drop"
        )


def as_made(source: Negatives, given: RefilterSettings) -> RefilterSettings:
    """The settings given, completed by those that the folder was made with, and only then by the defaults.

    What the folder was made with and nothing reads any more gives way; what is given and nothing reads is refused as everywhere.
    """
    made_with = dict(source.manifest.inputs.get("settings", {}))
    if "ratio" in made_with:  # a mix: its when_short is about the kinds of negatives, and has words of its own
        made_with.pop("when_short", None)
    stored = {key: value for key, value in made_with.items() if key in RefilterSettings.model_fields}
    wanted = {**stored, **given.model_dump(exclude_unset=True)}
    unread = RefilterSettings.model_construct(**wanted).without_effect().keys() - given.model_fields_set
    return RefilterSettings.checked({key: value for key, value in wanted.items() if key not in unread})

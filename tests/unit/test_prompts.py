"""Prompt files are whole or refused; replies are parsed, never run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from negatron.errors import SettingError
from negatron.identity import stream
from negatron.negatives.prompts.files import ATTRIBUTES, PLACEHOLDERS, Prompt, load, parse, shipped
from negatron.negatives.prompts.parsers import NEGATIVES, ParseFailure, Written

DRAWN = {"domain": "Virology", "difficulty": "Foundational", "length": "nearly the same as"}

GOOD = """
name = "mine"
version = 3
parser = "hard_negatives.v1"
origin = "mine"
[[part]]
name = "all"
constraint = "context"
text = "Query {query}, positive {positive}, write {count}, reply {shape}."
"""


def filled(prompt: Prompt, query: str = "why", positive: str = "because") -> str:
    return prompt.fill(query=query, positive=positive, count=2, attributes=DRAWN)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_prompt_is_whole_and_filled_in_completely(name: str) -> None:
    prompt = load(name)
    text = filled(prompt)
    assert prompt.title == name and "why" in text and "because" in text
    assert not any(f"{{{placeholder}}}" in text for placeholder in PLACEHOLDERS)


def test_the_parts_of_syneg_stand_in_the_papers_order() -> None:
    headings = ["expert in Virology", "User query: why", "[Task", "[Reasoning", "[Hard Negatives", "[Attributes", "[Format"]
    places = [filled(load("syneg.v1")).index(heading) for heading in headings]
    assert places == sorted(places)
    assert "Foundational" in filled(load("syneg.v1")) and "nearly the same as the positive document" in filled(load("syneg.v1"))


@pytest.mark.parametrize("name", ["syneg.v1", "syneg-compact.v1"])
def test_leaving_out_attributes_and_reflection_leaves_the_rest(name: str) -> None:
    whole, without = load(name), load(name).without(["attributes", "reflection"])
    assert "Virology" in filled(whole) and '"reasoning"' in filled(whole)
    text = filled(without)
    assert not any(value in text for value in DRAWN.values()) and "reasoning" not in text.casefold()
    assert "why" in text and "because" in text and NEGATIVES in text
    assert set(without.schema(2)["properties"]) == {NEGATIVES} and set(whole.schema(2)["properties"]) == {"reasoning", NEGATIVES}


def test_scifacts_values_are_the_papers() -> None:
    values = load("syneg.v1").values("scifact")
    assert len(values["domain"]) == 9 and values["domain"][0] == "Epidemiology" and values["domain"][-1] == "Pharmacology"
    assert values["length"] == ("approximately the same as", "nearly the same as")


def test_braces_in_texts_mean_nothing() -> None:
    text = filled(load("drg.v1"), query='what is {count} and {"a": 1}', positive="{shape} {unknown}")
    assert 'what is {count} and {"a": 1}' in text and "{shape} {unknown}" in text


def test_a_changed_wording_is_another_prompt(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    (tmp_path / "other.toml").write_text(GOOD.replace("write", "please write"))
    one, other = load(str(tmp_path / "mine.toml")), load(str(tmp_path / "other.toml"))
    assert one.title == other.title == "mine.v3" and one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{query}", "{qurey}", r"part 1 \(all\).*no placeholder {qurey}; did you mean 'query'"),
        ("{positive}", "it", "no part has the placeholder {positive}"),
        ("version = 3", "", "version = None"),
        ("version = 3", 'version = "3"', "version = '3'"),
        ("hard_negatives.v1", "hard_negatives.v9", "did you mean 'hard_negatives.v1'"),
        ('constraint = "context"', 'constraint = "contxt"', "did you mean 'context'"),
        ("write {count}", "write {count} on {domain}", r"asks for {domain}, but \[attributes.general\]"),
        ('origin = "mine"', 'orgin = "mine"', "did you mean 'origin'"),
        ('origin = "mine"', 'origin = "mine"\n[attributes.general]\ndomain = "one"', "expected a list of texts"),
        ("name = ", "name ", "not TOML"),
    ],
)
def test_a_broken_prompt_file_is_refused_by_name(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    load(str(path))
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SettingError, match=words) as raised:
        load(str(path))
    assert str(path) in str(raised.value)


def test_unknown_prompts_parts_and_presets_name_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"did you mean 'syneg.v1'"):
        load("sineg.v1")
    with pytest.raises(SettingError, match="did you mean 'attributes'"):
        load("syneg.v1").without(["attribute"])
    with pytest.raises(SettingError, match="did you mean 'scifact'"):
        load("syneg.v1").values("scifacts")
    with pytest.raises(SettingError, match="no longer tells the model its shape"):
        load("syneg.v1").without(["format"])


def test_leaving_out_a_part_does_not_change_what_the_others_say() -> None:
    whole = load("syneg.v1")
    for seed in range(20):
        full = whole.draw(whole.values("general"), stream(seed, "draw"))
        assert set(full) == set(ATTRIBUTES)
        assert whole.without(["domain"]).draw(whole.values("general"), stream(seed, "draw")) == {
            name: value for name, value in full.items() if name != "domain"
        }


def reply(*texts: object, **more: object) -> str:
    return json.dumps({**more, NEGATIVES: [{"text": text} for text in texts]})


def test_what_stands_around_the_object_does_not_matter() -> None:
    expected = (Written("One text.", "Thought."), Written("Two text.", "Thought."))
    plain = reply("One text.", " Two text. ", reasoning="Thought.")
    fenced = f"Here you are:\n```json\n{plain}\n```\nAnything else?"
    thinking = f"<think>\nMaybe {{this}} or {reply('No.')}?\n</think>\n{plain}"
    braces = f"The set {{a, b}} and [1, 2] first. {plain} Done."
    for text in (plain, fenced, thinking, braces, json.dumps({"note": 1}) + plain):
        assert parse(load("syneg.v1"), text, 2) == expected


def test_more_than_asked_for_is_cut_and_fewer_is_taken() -> None:
    assert parse(load("drg.v1"), reply("a", "b", "c"), 2) == (Written("a"), Written("b"))
    assert parse(load("drg.v1"), reply("a"), 2) == (Written("a"),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object"),
        ("I cannot write that.", "no JSON object"),
        ("__import__('os').system('true')", "no JSON object"),
        ("{'hard_negatives': [{'text': 'single quotes'}]}", "no JSON object"),
        (reply("a", "b")[:-5], "JSON does not end (cut off at max_tokens?)"),
        (reply("a long text")[:-10], "JSON does not end (cut off at max_tokens?)"),
        ('{"negatives": ["a"]}', 'no key "hard_negatives"'),
        ('{"hard_negatives": []}', '"hard_negatives" is no list with entries'),
        ('{"hard_negatives": {"text": "a"}}', '"hard_negatives" is no list with entries'),
        ('{"hard_negatives": ["a"]}', 'an entry has no "text"'),
        (reply(3), 'an entry has no "text"'),
        (reply("a", reasoning=3), '"reasoning" is no text'),
        (reply("a") + reply("b"), "several JSON objects"),
        ('{"hard_negatives": [{"text": "a\\ud800"}]}', "a text is not whole Unicode"),
        ('{"a": ' + "[" * 100_000, "JSON is nested too deeply"),
    ],
)
def test_a_reply_that_cannot_be_used_says_why(text: str, reason: str) -> None:
    failure = parse(load("syneg.v1"), text, 2)
    assert isinstance(failure, ParseFailure) and failure.reason == reason

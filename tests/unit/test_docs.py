"""The documentation is true where a program can tell: settings, links, commands, and the example of docs/extending.md."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from negatron import cli
from negatron.cli import app

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ANY_COMMAND = typer.main.get_command(app)


def load_script() -> ModuleType:
    """docs/make_settings.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- settings ------------------------------------------------------------------------------------------------------------------------


def settings_read_by_the_cli() -> dict[str, str]:
    """Verb -> name of the class whose `read` its function calls."""
    found = {}
    for function in ast.parse(Path(cli.__file__).read_text(encoding="utf-8")).body:
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr == "read" and isinstance(node.value, ast.Name):
                found[getattr(function, "name", "").rstrip("_").replace("_", "-")] = node.value.id
    return found


def test_the_page_of_settings_is_up_to_date() -> None:
    made = load_script().page()
    assert made == (DOCS / "settings.md").read_text(encoding="utf-8"), "run: python docs/make_settings.py"


def test_the_page_of_settings_has_every_verb_with_the_class_that_it_reads() -> None:
    read = settings_read_by_the_cli()
    assert "mine" in read
    assert {verb: settings.__name__ for verb, settings in load_script().VERBS.items()} == read


# ---- links ---------------------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings.

    >>> anchors("# What is R?")
    {'what-is-r'}
    """
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](missing.md) [y](#a-b) [z](#c) [u](page.md#d) ![p](missing.png) [w](https://example.org)", encoding="utf-8")
    assert broken_links(page, page.read_text(encoding="utf-8")) == ["missing.md", "#c", "page.md#d", "missing.png"]


# ---- commands ------------------------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Every command line that begins with `negatron`, in code blocks (a `\\` joins lines) and between backticks."""
    blocks = [body for kind, body in FENCE.findall(text) if kind in ("", "sh", "console")]
    lines = [line.strip().removeprefix("$ ") for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    for code in [*lines, *INLINE.findall(FENCE.sub("", text))]:
        if code.startswith("negatron "):
            yield code


def wrong(command: str) -> str:
    """What a command names that does not exist, "" where all of it does: the verb, its options, its settings."""
    words = shlex.split(command.split(" | ")[0], comments=True)[1:]
    found = ANY_COMMAND
    while words and hasattr(found, "commands"):
        if words[0] not in found.commands:
            return words[0]
        found = found.commands[words.pop(0)]
    options = {option for parameter in found.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("-") and word not in options:
            return word
    settings = load_script().VERBS.get(found.name or "")
    keys = [value.partition("=")[0] for option, value in pairwise(words) if option == "--set"]
    return next((key for key in keys if key != "key" and (settings is None or key not in settings.model_fields)), "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_names_verbs_options_and_settings_that_exist(page: Path) -> None:
    assert {command: name for command in commands(page.read_text(encoding="utf-8")) if (name := wrong(command))} == {}


def test_the_examples_of_the_help_exist() -> None:
    examples = re.findall(r"Example: (negatron .+?)\.?$", Path(cli.__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(examples) >= len(ANY_COMMAND.commands)
    assert [example for example in examples if wrong(example.removesuffix('."""').rstrip('"'))] == []


def test_the_readme_shows_commands() -> None:
    assert len(list(commands((ROOT / "README.md").read_text(encoding="utf-8")))) > 5


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("negatron mien scifact", "mien"),
        ("negatron data chekc x", "chekc"),
        ("negatron mine x --depht 3", "--depht"),
        ("negatron mine x --set depht=3", "depht"),
        ("negatron mine x --set depth=3", ""),
        ("negatron", ""),
    ],
)
def test_a_wrong_command_would_be_seen(command: str, name: str) -> None:
    assert wrong(command) == name


# ---- the example of docs/extending.md --------------------------------------------------------------------------------------------------


def test_the_example_of_extending_runs(tmp_path: Path) -> None:
    parts = [body for kind, body in FENCE.findall((DOCS / "extending.md").read_text(encoding="utf-8")) if kind == "python"]
    assert parts
    run = subprocess.run([sys.executable, "-c", "\n".join(parts)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shown = [body for kind, body in FENCE.findall((DOCS / "extending.md").read_text(encoding="utf-8")) if kind == "text"]
    assert run.stdout.strip() == shown[-1].strip()

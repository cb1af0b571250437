"""The code-search set: which functions become pairs, how their lines are cut, that every Python makes the same."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import negatron
from negatron.data.catalog import entries
from negatron.data.code_search import build, functions_of_file, split_of
from negatron.errors import DataError, NegatronError
from negatron.wheels import fetch_wheel

SOURCE = '''\
import os


@cached
def first(a, b):
    """Give the larger of two numbers.

    More about it.
    """
    # compare
    if a > b:
        return a
    return b + 0 * a + 0 * b + 1 - 1 if b else b


class Box:
    def put(self, thing, place=None):
        """Put a thing into the box; it must fit."""
        self.things = [*self.things, thing]
        self.places = {**self.places, thing: place or self.default}

        def inner(x):
            """An inner function is left out here."""
            return x + 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9
        return inner(thing)

    @property
    def size(self):
        """How many things there are in it."""
        return len(self.things) + len(self.places) - len(self.places) + 0 + 0 + 0

    @size.setter
    def size(self, value):
        """Set how many things there are allowed."""
        self.limit = value if value is not None else self.limit + 0 + 0 + 0


def one_line(x): "Ünïcode stands before the code here."; return x + 1 + 2 + 3 + 4 + 5 + 6 + 7


def short(x):
    """This one is far too short to be kept."""
    return x


def few(x):
    """Too few words."""
    return [x + 1, x + 2, x + 3, x + 4, x + 5, x + 6, x + 7, x + 8]


def example(x):
    """>>> example(1) gives 2 and so on"""
    return [x + 1, x + 2, x + 3, x + 4, x + 5, x + 6, x + 7, x + 8]
'''


def wheel_of(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "w.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return folder / "w.whl"


def test_functions_and_methods_with_a_sentence_and_enough_source_become_pairs() -> None:
    pairs = {pair.place: pair for pair in functions_of_file("p/m.py", SOURCE)}
    assert {place: pair.question for place, pair in pairs.items()} == {
        "p/m.py:first": "Give the larger of two numbers.",
        "p/m.py:Box.put": "Put a thing into the box; it must fit.",
        "p/m.py:Box.size": "How many things there are in it.",
        "p/m.py:Box.size#2": "Set how many things there are allowed.",
        "p/m.py:one_line": "Ünïcode stands before the code here.",
    }


def test_the_source_is_cut_from_the_file_without_the_docstring() -> None:
    pairs = {pair.place: pair.source for pair in functions_of_file("p/m.py", SOURCE)}
    assert pairs["p/m.py:first"].split("\n") == [
        "@cached",
        "def first(a, b):",
        "    # compare",
        "    if a > b:",
        "        return a",
        "    return b + 0 * a + 0 * b + 1 - 1 if b else b",
    ]
    assert pairs["p/m.py:one_line"] == "def one_line(x): return x + 1 + 2 + 3 + 4 + 5 + 6 + 7"
    assert pairs["p/m.py:Box.size"].startswith("@property\ndef size(self):\n    return len(")


def test_no_document_holds_its_own_query() -> None:
    pairs = list(functions_of_file("p/m.py", SOURCE))
    assert pairs
    assert not [pair for pair in pairs if pair.question in pair.source]


def test_tests_are_left_out_and_repeated_queries_or_documents_dropped(tmp_path: Path) -> None:
    body = "    return [x + 1, x + 2, x + 3, x + 4, x + 5, x + 6]\n"
    one = f'def one(x):\n    """Count up from the number."""\n{body}'
    same_question = f'def two(x):\n    """count  up from THE number."""\n{body}'
    same_source = f'def one(x):\n    """Something else is asked here."""\n{body}'
    files = {"p/a.py": one, "p/b.py": same_question, "p/c.py": same_source, "p/tests/test_d.py": one, "p/test_e.py": one, "p/x.txt": "no"}
    collection = build([wheel_of(tmp_path, files)])
    assert list(collection.documents) == ["p/a.py:one"]
    assert list(collection.queries) == ["query:p/a.py:one"]
    (row,) = collection.judgements[split_of("p/a.py")]
    assert (row.query_id, row.document_id, row.grade) == ("query:p/a.py:one", "p/a.py:one", 1)


def test_no_file_is_in_two_splits() -> None:
    files = [f"p/{number}.py" for number in range(1000)]
    shares = {split: sum(split_of(file) == split for file in files) / 1000 for split in ("train", "dev", "test")}
    assert shares == {"train": pytest.approx(0.8, abs=0.04), "dev": pytest.approx(0.1, abs=0.03), "test": pytest.approx(0.1, abs=0.03)}


def test_a_file_that_is_no_python_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p/a\.py:2: not Python"):
        build([wheel_of(tmp_path, {"p/a.py": "x = 1\ndef ("})])


def test_the_builder_needs_only_the_standard_library(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, {"p/m.py": SOURCE})
    code = "import sys, pathlib; from negatron.data.code_search import build; print(build([pathlib.Path(sys.argv[1])]).fingerprint)"
    # -S leaves site-packages out
    command = [sys.executable, "-S", "-c", code, str(wheel)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(Path(negatron.__file__).parent.parent)}, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == build([wheel]).fingerprint, done.stderr


def test_the_real_set_is_what_the_catalogue_says() -> None:
    entry = entries()["code-search"]
    try:
        wheels = [fetch_wheel(wheel.name, wheel.version, wheel.sha256, only="cache") for wheel in entry.wheels]
    except NegatronError:
        pytest.skip("needs the wheels of the code-search set in the cache: negatron data fetch code-search")
    collection = build(wheels)
    assert len(collection.documents) == len(collection.queries) == entry.documents
    assert {split: len(rows) for split, rows in collection.judgements.items()} == entry.judgements
    assert collection.fingerprint == entry.fingerprint
    assert collection.queries["query:networkx/linalg/laplacianmatrix.py:_transition_matrix"].text == "Returns the transition matrix of G."

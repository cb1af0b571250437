"""The code-search data set: questions about two libraries, answered by their functions. Made from wheels, on any Python the same.

What comes in: the wheels of `networkx` and `sympy`, fixed by checksum. What goes out: a Collection in which

- a query is the first sentence of a function's docstring, 4 to 40 words,
- its one positive is the function's source lines without that docstring, at least 12 words,
- tests, functions inside functions (their text would stand twice), and pairs whose query or document occurred before are left out,
- a file belongs to train (80 %), dev (10 %) or test (10 %) by a hash of its path, so that no file is in two splits.

Source lines are cut, never printed from the syntax tree: `ast.unparse` differs between Python versions. Only the standard library is
used, so that any Python can be asked whether it makes the same set. What it does not know: how wheels are fetched and folders written.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from negatron.data.collection import Collection
from negatron.errors import DataError
from negatron.identity import same_words
from negatron.types import Document, Judgement, Query

NAME = "code-search"
QUERY_WORDS = (4, 40)
DOCUMENT_WORDS = 12
SPLITS = (("train", 80), ("dev", 90), ("test", 100))
"""Upper end of each split, in percent of the files."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Pair:
    """A function: its place (`package/file.py:Class.method`), the first sentence of its docstring, its source without the docstring."""

    place: str
    path: str
    question: str
    source: str


def build(wheels: Sequence[Path]) -> Collection:
    """The data set made from the Python files of the wheels. Raises DataError for a file that is no Python."""
    documents, queries = {}, {}
    rows: dict[str, list[Judgement]] = {split: [] for split, _ in SPLITS}
    for pair in distinct(pair for wheel in wheels for pair in functions_of_wheel(wheel)):
        query = Query(f"query:{pair.place}", pair.question)  # unlike the document's id: BEIR's tools drop results with the query's own id
        queries[query.id] = query
        documents[pair.place] = Document(pair.place, pair.source)
        rows[split_of(pair.path)].append(Judgement(query.id, pair.place, 1))
    return Collection(NAME, documents, queries, {split: tuple(found) for split, found in rows.items() if found})


def functions_of_wheel(wheel: Path) -> Iterator[Pair]:
    """All usable functions of a wheel, by path and then by line."""
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted(archive.namelist()):
            if path.endswith(".py") and not is_test(path):
                yield from functions_of_file(path, archive.read(path).decode("utf-8-sig"))


def is_test(path: str) -> bool:
    """True for files of a test folder and for files that a test runner collects.

    >>> is_test("sympy/core/tests/test_add.py"), is_test("sympy/core/add.py")
    (True, False)
    """
    parts = PurePosixPath(path).parts
    return "tests" in parts or parts[-1].startswith("test_") or parts[-1] == "conftest.py"


def functions_of_file(path: str, source: str) -> Iterator[Pair]:
    """The functions and methods of one file whose docstring and source are long enough."""
    source = source.replace("\r\n", "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old docstrings: each Python version says so in another way
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise DataError(f"not Python: {error.msg}", path, error.lineno) from error
    lines = source.split("\n")
    seen: dict[str, int] = {}
    for name, function in functions_in(tree.body):
        seen[name] = seen.get(name, 0) + 1  # a name may be defined twice: a property and its setter
        docstring = docstring_of(function)
        if docstring is None:
            continue
        question, text = first_sentence(str(docstring.value)), without_docstring(lines, function, docstring)
        if is_question(question) and len(text.split()) >= DOCUMENT_WORDS:
            place = f"{path}:{name}" if seen[name] == 1 else f"{path}:{name}#{seen[name]}"
            yield Pair(place, path, question, text)


def functions_in(body: Iterable[ast.AST], prefix: str = "") -> Iterator[tuple[str, Function]]:
    """(qualified name, node) of functions and methods in the order of the file, under `if` and `try` too, never inside functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions_in(node.body, f"{prefix}{node.name}.")
        else:
            for part in ("body", "handlers", "orelse", "finalbody"):
                inner = getattr(node, part, None)
                if isinstance(inner, list):
                    yield from functions_in(inner, prefix)


def docstring_of(function: Function) -> ast.Constant | None:
    """The docstring's node; None where there is none, or nothing after it."""
    first = function.body[0]
    if (
        len(function.body) > 1
        and isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return first.value
    return None


def first_sentence(docstring: str) -> str:
    r"""The first sentence of the first paragraph, white space made single.

    >>> first_sentence(" Add two\n    numbers. Slow.\n \n    See also: sub.")
    'Add two numbers.'
    """
    paragraph: list[str] = []
    for line in docstring.strip().split("\n"):
        if not line.strip():
            break
        paragraph.append(line)
    return SENTENCE_END.split(" ".join(" ".join(paragraph).split()))[0]


def is_question(sentence: str) -> bool:
    """True for 4 to 40 words that are not an interactive example."""
    return QUERY_WORDS[0] <= len(sentence.split()) <= QUERY_WORDS[1] and not sentence.startswith(">>>")


def without_docstring(lines: Sequence[str], function: Function, docstring: ast.Constant) -> str:
    """The function's lines, decorators included, without the docstring's, moved to the left margin. Columns of `ast` are UTF-8 bytes."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    opening, closing = docstring.lineno, docstring.end_lineno or docstring.lineno
    before = lines[opening - 1].encode()[: docstring.col_offset].decode()
    after = lines[closing - 1].encode()[docstring.end_col_offset :].decode().lstrip("; ")
    rest = lines[closing : function.end_lineno]
    if before.strip() or (after and not after.startswith("#")):  # code on the docstring's own lines
        rest = [before + after, *rest]
    kept = [*lines[first - 1 : opening - 1], *rest]
    indent = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
    return "\n".join(line.removeprefix(indent).rstrip() for line in kept if line.strip())


def distinct(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs without those whose question or source occurred before: one text under two ids would be its own false negative."""
    questions: set[str] = set()
    sources: set[str] = set()
    for pair in pairs:
        question, source = same_words(pair.question), same_words(pair.source)
        if question not in questions and source not in sources:
            questions.add(question)
            sources.add(source)
            yield pair


def split_of(path: str) -> str:
    """The split of a file, by a hash of its path.

    >>> split_of("networkx/algorithms/dag.py")
    'train'
    """
    share = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 100
    return next(split for split, end in SPLITS if share < end)

"""The shape of the house: rooms import the ground and not each other; no cycles; light rooms work without torch; the public face."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import negatron

SOURCE = Path(negatron.__file__).parent
GROUND = {"errors", "identity", "types", "seams", "store", "settings", "progress", "wheels"}
ROOMS = {"data", "models", "negatives", "training", "evaluation"}
MODULES = sorted(".".join(p.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__") for p in SOURCE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Modules of negatron that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "negatron":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "negatron"}
    return found


def wrong_arrows(room: str, imported: set[str]) -> set[str]:
    """Imports that lead neither to the ground nor into the own room."""
    tops = {name: name.split(".")[1] if "." in name else "" for name in imported}
    return {name for name, top in tops.items() if top not in GROUND and top != room}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_the_ground_and_not_each_other(room: str) -> None:
    files = sorted((SOURCE / room).rglob("*.py"))
    assert files
    assert {str(path): wrong for path in files if (wrong := wrong_arrows(room, imports_of(path)))} == {}


def test_a_wrong_arrow_would_be_seen() -> None:
    assert wrong_arrows("negatives", {"negatron.models.bm25.BM25Searcher", "negatron.types.Query"}) == {"negatron.models.bm25.BM25Searcher"}


def test_the_ground_imports_only_the_ground() -> None:
    for name in GROUND:
        assert not {i for i in imports_of(SOURCE / f"{name}.py") if i.split(".")[1] not in GROUND}, name


def test_no_import_cycles() -> None:
    arrows = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        targets = {i if i in MODULES else i.rpartition(".")[0] for i in imports_of(path)}
        arrows[name] = {t for t in targets if t in MODULES and t != name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


LIGHT = [
    "negatron",
    "negatron.cli",
    "negatron.conformance",
    "negatron.data.catalog",
    "negatron.data.formats",
    "negatron.models.bm25",
    "negatron.models.catalog",
    "negatron.models.language_model",
    "negatron.negatives.filters",
    "negatron.negatives.mixing",
    "negatron.negatives.synthesis",
    "negatron.evaluation.measures",
    "negatron.evaluation.significance",
    "negatron.verbs.negatives",
    "negatron.verbs.evaluation",
]


def test_light_rooms_work_without_torch() -> None:
    heavy = ("torch", "transformers", "scipy", "plotly", "datasets", "openai")
    code = f"import sys, importlib\nfor name in {LIGHT!r}: importlib.import_module(name)\nprint([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_public_names_are_the_namespace() -> None:
    assert negatron.__all__ == sorted(negatron.__all__)
    for name in negatron.__all__:
        assert getattr(negatron, name) is not None


def test_importing_negatron_leaves_the_global_random_state_alone() -> None:
    code = "import random; a = random.getstate(); import negatron, negatron.cli; print(a == random.getstate())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True"

"""Breaks the code on purpose, one mutation at a time, in a copy, and expects the test that guards it to fail.

    python tests/mutate.py [name ...]

Reads tests/invariants/mutations_*.toml: name, file, old (occurs once), new, tests (a pytest node id, or several separated by spaces),
why. A mutation whose test stays green is a test that cannot fail: exit code 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent


def mutations() -> list[dict[str, str]]:
    files = sorted((ROOT / "tests" / "invariants").glob("mutations_*.toml"))
    return [entry for file in files for entry in tomllib.loads(file.read_text(encoding="utf-8"))["mutation"]]


def run(entry: dict[str, str], mutate: bool) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutate:
            target = copy / entry["file"]
            text = target.read_text(encoding="utf-8")
            if text.count(entry["old"]) != 1:
                sys.exit(f"{entry['name']}: {entry['old']!r} occurs {text.count(entry['old'])} times in {entry['file']}, expected once")
            target.write_text(text.replace(entry["old"], entry["new"]), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *entry["tests"].split()]
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)


def verdict(entry: dict[str, str]) -> tuple[dict[str, str], str]:
    broken = run(entry, mutate=True)
    if broken.returncode == 1:
        return entry, "red"
    return (
        entry,
        "GREEN"
        if broken.returncode == 0
        else f"NOT RUN (pytest ended with {broken.returncode}): {broken.stdout[-300:]}{broken.stderr[-300:]}",
    )


def main() -> None:
    chosen = [entry for entry in mutations() if not sys.argv[1:] or entry["name"] in sys.argv[1:]]
    nodes = " ".join(dict.fromkeys(node for entry in chosen for node in entry["tests"].split()))
    unbroken = run({"tests": nodes, "file": "", "old": "", "new": "", "name": ""}, mutate=False)
    if unbroken.returncode:
        sys.exit(f"the tests fail without any mutation:\n{unbroken.stdout[-3000:]}")
    print(f"{len(chosen)} mutations; their tests pass on the unbroken code", flush=True)
    survivors = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for entry, result in pool.map(verdict, chosen):
            survivors += result != "red"
            print(f"{result:<6} {entry['name']:<44} {entry['why']}", flush=True)
    sys.exit(f"{survivors} of {len(chosen)} mutations were not seen") if survivors else print(f"all {len(chosen)} seen")


if __name__ == "__main__":
    main()

"""Resume = never stopped (invariant 4) for a search and for a lexical index: SIGKILL in the middle, then the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("faiss", reason="needs negatron[train]")

SEARCH = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from negatron.conformance import TableEncoder
    from negatron.identity import stream
    from negatron.models import dense_index
    from negatron.models.dense_index import DenseSearcher
    from negatron.models.topk import FaissEngine
    from negatron.models.vectors import VectorStore
    from negatron.types import Document, Query
    folder, die, dense_index.QUERIES_AT_A_TIME = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    draw = stream(0, "killed")
    table = {str(n): [draw.gauss(0, 1) for _ in range(8)] for n in range(200)}
    class Mortal(FaissEngine):
        calls = 0
        def best(self, queries, block, k):
            self.calls += 1
            if self.calls == die:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().best(queries, block, k)
    documents = [Document(str(n), str(n % 150)) for n in range(200)]
    searcher = DenseSearcher(TableEncoder(table), documents, VectorStore(folder), "c", engine=Mortal())
    found = list(searcher.search_rows([str(n) for n in range(95)], 12))
    print(b"".join(rows.tobytes() + scores.tobytes() for rows, scores in found).hex())
"""

WORDS = """
    import os, signal, sys
    from pathlib import Path
    from negatron.models import bm25, words
    from negatron.models.bm25 import BM25Searcher
    from negatron.types import Document
    folder, die = Path(sys.argv[1]), int(sys.argv[2])
    plain, calls = words.Words.count, 0
    def mortal(self, texts):
        global calls
        calls += 1
        if calls == die:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, texts)
    words.Words.count = mortal
    bm25.count_parts = lambda own, texts, place: words.count_parts(own, texts, place, characters=int(sys.argv[3]))
    documents = [Document(f"{n:03d}", f"number {n} of {n % 7} cells divides {n % 13} times") for n in range(100)]
    searcher = BM25Searcher(documents, "c", folder=folder)
    searcher.index
    print(calls, "".join(path.read_bytes().hex() for path in sorted((folder / searcher.fingerprint).glob("*.*y"))))
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))


def test_a_killed_search_goes_on_and_ends_with_the_same_bytes_whatever_its_blocks(tmp_path: Path) -> None:
    whole = run(SEARCH, tmp_path / "whole", 0, 10)
    assert whole.returncode == 0 and len(whole.stdout) > 1000, whole.stderr
    assert run(SEARCH, tmp_path / "killed", 5, 10).returncode == -signal.SIGKILL
    resumed = run(SEARCH, tmp_path / "killed", 0, 17)
    assert "40 of 95 queries are already there" in resumed.stderr
    assert resumed.stdout == whole.stdout
    assert run(SEARCH, tmp_path / "few", 0, 4096).stdout == whole.stdout, "a search in memory finds the same"


def test_a_killed_index_of_words_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run(WORDS, tmp_path / "whole", 0, 500)
    assert whole.returncode == 0 and len(whole.stdout) > 1000, whole.stderr
    assert run(WORDS, tmp_path / "killed", 4, 500).returncode == -signal.SIGKILL
    resumed = run(WORDS, tmp_path / "killed", 0, 500)
    (made, files), (made_whole, files_whole) = resumed.stdout.split(), whole.stdout.split()
    assert files == files_whole and int(made) == int(made_whole) - 3

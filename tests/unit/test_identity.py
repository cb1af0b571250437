"""What a thing is: fingerprints by contents, random streams by names, texts that count as the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from negatron.identity import file_sha256, fingerprint, fingerprint_texts, same_words, stream


def test_a_fingerprint_is_the_first_half_of_sha256_over_canonical_json() -> None:
    assert fingerprint("a", {"b": 1, "a": [None, 0.5]}) == hashlib.sha256(b'["a",{"a":[null,0.5],"b":1}]').hexdigest()[:16]


def test_the_order_of_keys_does_not_matter_and_everything_else_does() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    different = [("ab",), ("a", "b"), (["a", "b"],), ({"a": "b"},), ("a",), (), (1,), ("1",), (True,), (1.5,), (None,), ("A",), ("ä",)]
    assert len({fingerprint(*parts) for parts in different}) == len(different)


@pytest.mark.parametrize("part", [{1, 2}, object(), float("nan"), b"bytes", Path("x")])
def test_what_has_no_canonical_form_has_no_fingerprint(part: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        fingerprint(part)


def test_texts_are_told_apart_wherever_they_are_cut() -> None:
    different = [["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"], ["abc", ""], ["", "abc"], [], [""], ["c", "ab"]]
    assert len({fingerprint_texts(texts) for texts in different}) == len(different)
    assert fingerprint_texts(iter(["ab", "c"])) == fingerprint_texts(["ab", "c"])
    assert fingerprint_texts(["\ud800"]) != fingerprint_texts(["\ud801"]), "half a surrogate pair is a text too"


def test_a_stream_depends_on_seed_and_names_and_on_nothing_drawn_before() -> None:
    first = [stream(1, "mix", "q1").random() for _ in range(3)]
    stream(1, "mix", "q2").random()
    assert [stream(1, "mix", "q1").random() for _ in range(3)] == first == [first[0]] * 3
    others = [(2, "mix", "q1"), (1, "mix", "q2"), (1, "select", "q1"), (1, "mixq1"), (1, "mix"), (1, "q1", "mix"), (1, "mix", 1)]
    assert len({stream(*names).random() for names in [(1, "mix", "q1"), *others]}) == 1 + len(others)


def test_another_process_with_other_hashes_draws_and_names_the_same() -> None:
    code = "from negatron.identity import *; print(fingerprint({'b': 1, 'a': ['x']}), stream(3, 'a', 7).random(), fingerprint_texts(['a']))"
    printed = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    here = f"{fingerprint({'a': ['x'], 'b': 1})} {stream(3, 'a', 7).random()} {fingerprint_texts(['a'])}\n"
    assert printed == {here.encode()}


def test_texts_that_differ_in_case_and_white_space_are_the_same() -> None:
    assert same_words(" STRASSE\n  eins\u00a0") == same_words("straße EINS")
    assert same_words("a b") != same_words("ab") != same_words("a-b")


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()

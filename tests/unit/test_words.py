"""What a word is in a language, and how words are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from negatron.errors import SettingError
from negatron.models.words import CHINESE, ENGLISH_STOP_WORDS, PLAIN, Counted, Words, count_parts, detect_language, parts_of

TEXTS = ["Cells divide; the cell divided.", "", "to be or not to be", "A star shines on stars."]


def counts_of(counted: Counted) -> dict[str, dict[int, int]]:
    """word -> text -> how often."""
    return {
        term: dict(zip(counted.rows[own].tolist(), counted.counts[own].tolist(), strict=True))
        for number, term in enumerate(counted.terms)
        for own in [slice(counted.starts[number], counted.starts[number + 1])]
    }


def test_words_are_counted_by_stem_and_stop_words_are_left_out() -> None:
    counted = Words("en").count(TEXTS)
    assert counts_of(counted) == {"cell": {0: 2}, "divid": {0: 2}, "star": {3: 2}, "shine": {3: 1}}
    assert counted.lengths.tolist() == [4, 0, 0, 3]


def test_counting_many_texts_finds_the_words_of_each_alone() -> None:
    for language in ("en", "german", PLAIN):
        words = Words(language)
        for row, text in enumerate(TEXTS):
            own = {term: rows[row] for term, rows in counts_of(words.count(TEXTS)).items() if row in rows}
            assert own == {word: words.of(text).count(word) for word in words.of(text)}


def test_the_english_stop_words_are_those_of_bm25s() -> None:
    from bm25s.stopwords import STOPWORDS_EN

    assert frozenset(STOPWORDS_EN) == ENGLISH_STOP_WORDS


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the cause of the tides in the sea", "en"),
        ("def add(a, b): return a + b  # x86", "en"),
        ("Wie kommt es, dass die Zellen sich teilen und nicht vergehen", "german"),
        ("Comment est-ce que les cellules se divisent dans le corps", "french"),
        ("Почему звёзды светят на небе, а не гаснут", "russian"),
        ("深度学习模型训练方法", CHINESE),
        ("なぜ星は輝くのですか", PLAIN),
        ("ทำไมดวงดาวจึงส่องแสง", PLAIN),
        ("Žluťoučký kůň pěl ďábelské ódy", PLAIN),
        ("", PLAIN),
    ],
)
def test_the_language_is_told_by_characters_and_stop_words(text: str, language: str) -> None:
    assert detect_language([text]) == language


def test_scripts_without_spaces_become_pairs_of_characters_and_marks_do_not_cut_words() -> None:
    words = Words(PLAIN)
    assert words.of("日本語の本 x ดาว หิน Straße") == ["日本", "本語", "語の", "の本", "ดา", "าว", "หิ", "ิน", "straße"]
    assert words.of("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


def test_an_unknown_language_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SettingError, match="did you mean 'german'"):
        Words("germn")


def test_parts_cover_the_texts_in_order_and_depend_on_the_texts_alone() -> None:
    assert [list(part) for part in parts_of(TEXTS, characters=20)] == [[0], [1, 2, 3]]
    assert parts_of([]) == [] and parts_of(["", ""]) == [range(0, 2)]


def test_two_processes_write_the_bytes_that_one_writes(tmp_path: Path) -> None:
    texts = [f"number {n} of the {n % 7} cells divides {'often ' * (n % 5)}" for n in range(60)]
    written = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        found = sorted(count_parts(Words("en"), texts, folder, processes=processes, characters=300), key=lambda part: part[0].start)
        assert len(found) > 5 and [row for own, _ in found for row in own] == list(range(60))
        written[processes] = [path.read_bytes() for _, path in found]
    assert written[1] == written[2]


def test_a_part_that_is_there_is_not_counted_again(tmp_path: Path) -> None:
    words = Words("en")
    first = dict(count_parts(words, TEXTS, tmp_path, characters=20))
    stamps = {path: path.stat().st_mtime_ns for path in first.values()}
    next(path for own, path in first.items() if own.start == 1).unlink()
    again = dict(count_parts(words, TEXTS, tmp_path, characters=20))
    assert again == first
    assert [path.stat().st_mtime_ns == stamps[path] for own, path in sorted(again.items(), key=lambda part: part[0].start)] == [True, False]

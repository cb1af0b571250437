"""What several verbs need: loading, places of results, versions, and the searchers of a data set."""

from __future__ import annotations

from collections.abc import Collection as Container
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from negatron.data import catalog as data_catalog
from negatron.data.candidate_files import read_candidates
from negatron.data.collection import Collection
from negatron.errors import SettingError
from negatron.identity import fingerprint
from negatron.models import catalog as model_catalog
from negatron.models.bm25 import BM25Searcher, BM25Settings
from negatron.models.dense_index import SearchSettings
from negatron.negatives.selection import SelectionSettings
from negatron.negatives.sources import FileSource, RandomSource, SearchSource
from negatron.progress import say
from negatron.seams import NegativeSource, Searcher
from negatron.settings import Settings
from negatron.types import Query
from negatron.wheels import cache_folder

if TYPE_CHECKING:
    from negatron.models.cross_encoder import StoredScores
    from negatron.models.dense_index import DenseSearcher, EncoderScorer
    from negatron.models.encoder import SentenceEncoder
    from negatron.models.vectors import VectorStore

Data = Collection | str | Path
DEFAULT_MODEL = "minilm"
SOURCES = ("bm25", "dense")
"""The sources of `mine` unless told otherwise, and those that are searchers."""
RANDOM, CROSS_ENCODER, FILE = "random", "cross-encoder", "file:"
EVERY_SOURCE = (*SOURCES, RANDOM, CROSS_ENCODER, f"{FILE}PATH")


def versions() -> dict[str, str]:
    """Versions of what results depend on, as far as installed."""
    found = {}
    for name in ("negatron", "torch", "transformers", "sentence-transformers", "bm25s", "faiss-cpu", "pytrec_eval-terrier", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load(data: Data) -> Collection:
    """A data set: a Collection as it is, a BEIR folder, a catalogue name, or a Hugging Face data set."""
    return data if isinstance(data, Collection) else data_catalog.load(data)


S = TypeVar("S", bound=Settings)


def settings_of(kind: type[S], settings: S | None, changes: Mapping[str, Any]) -> S:
    """The settings, changed by keywords. Raises SettingError for an unknown keyword."""
    if not changes:
        return settings or kind()
    return kind.checked({**(settings.model_dump(exclude_unset=True) if settings is not None else {}), **changes}, place="keywords")


def refuse_unused(settings: Settings, names: Container[str], why: str) -> None:
    """Raises SettingError when one of `names` was given (in a file, by --set, as a keyword) though nothing reads it: `why`, in words."""
    for name in type(settings).model_fields:
        if name in names and name in settings.model_fields_set:
            raise SettingError(f"{name} = {getattr(settings, name)!r} has no effect here: {why}; leave it out")


def place(out: Path | str | None, kind: str, inputs: Mapping[str, Any]) -> Path:
    """Where a result goes: `out`, or a folder of the cache named by its inputs."""
    return Path(out) if out is not None else cache_folder() / "results" / f"{kind}-{fingerprint(inputs)}"


def vector_store() -> VectorStore:
    """The store of encoded texts in the cache."""
    from negatron.models.vectors import VectorStore

    return VectorStore(cache_folder() / "vectors")


class EncodingSettings(Settings):
    """How texts become vectors."""

    max_length: int | None = Field(default=None, ge=8)
    """Tokens at which a text is cut; "off" = the model's own length."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What vectors are computed in; scores are always fp32."""


SEARCH = frozenset(SearchSettings.model_fields)
ENCODING = frozenset(EncodingSettings.model_fields)
LEXICAL = frozenset({"bm25_k1", "bm25_b", "bm25_language"})


class MiningSettings(EncodingSettings, SearchSettings, SelectionSettings):
    """Settings of `mine`."""

    depth: int = Field(default=50, ge=1)
    """Candidates per query and source, known positives not counted."""
    teacher: Literal["auto", "encoder", "cross-encoder"] = "auto"
    """Whose scores filters and choices trust: "auto" is the cross-encoder where one is given, else the encoder where one is needed."""
    pair_length: int | None = Field(default=None, ge=8)
    """Tokens at which a (query, document) pair is cut for the cross-encoder; "off" = the model's own length."""
    pairs: int | None = Field(default=None, ge=1)
    """Training pairs to mine for, taken by a hash of their ids; "off" = all."""
    bm25_k1: float = Field(default=0.9, ge=0)
    """How slowly a word's weight saturates with its count."""
    bm25_b: float = Field(default=0.4, ge=0, le=1)
    """How much long documents are held back, 0..1."""
    bm25_language: str = "auto"
    """auto, en, zh, plain, or a Snowball language by its English name."""

    @model_validator(mode="after")
    def the_search_reaches_the_window(self) -> Self:
        """Refuses ranks that no search goes down to."""
        if self.rank_from is not None and self.rank_from > self.depth:
            raise ValueError(f"rank_from = {self.rank_from} lies below depth = {self.depth}: nothing is searched there; set depth higher")
        return self

    def without_effect(self) -> dict[str, str]:
        """As in FilterSettings."""
        return super().without_effect() | ({"probes": "index = 'exact' compares with everything"} if self.index == "exact" else {})

    @property
    def search(self) -> SearchSettings:
        """How vectors are searched."""
        return SearchSettings(index=self.index, probes=self.probes)

    @property
    def bm25(self) -> BM25Settings:
        """The settings of the lexical index."""
        return BM25Settings(k1=self.bm25_k1, b=self.bm25_b, language=self.bm25_language)


@dataclass
class Workshop:
    """The searchers of one data set, made when first asked for, shared by the verbs that run in one process."""

    collection: Collection
    model: str
    max_length: int | None
    precision: str
    bm25_settings: BM25Settings
    search_settings: SearchSettings = field(default_factory=SearchSettings)
    cross_encoder: str | None = None
    pair_length: int | None = None
    round: int = 0
    seed: int = 0

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The bi-encoder."""
        from negatron.models.encoder import SentenceEncoder

        return SentenceEncoder(model_catalog.resolve_model(self.model), max_length=self.max_length, precision=self.precision)

    @cached_property
    def dense(self) -> DenseSearcher:
        """Search over the encoder's vectors."""
        from negatron.models.dense_index import DenseSearcher

        documents = list(self.collection.documents.values())
        found = self.collection.corpus_fingerprint
        return DenseSearcher(self.encoder, documents, vector_store(), found, settings=self.search_settings)

    @cached_property
    def bm25(self) -> BM25Searcher:
        """Lexical search."""
        documents = list(self.collection.documents.values())
        return BM25Searcher(documents, self.collection.corpus_fingerprint, self.bm25_settings, cache_folder() / "bm25")

    @cached_property
    def teacher(self) -> EncoderScorer:
        """The bi-encoder as a scorer of pairs."""
        from negatron.models.dense_index import EncoderScorer

        return EncoderScorer(self.encoder, vector_store(), self.dense)

    @property
    def text_teacher(self) -> EncoderScorer:
        """The same for texts that are not of the corpus, which then need not be encoded."""
        from negatron.models.dense_index import EncoderScorer

        return EncoderScorer(self.encoder, vector_store())

    def teacher_of(self, queries: Sequence[Query]) -> EncoderScorer:
        """The same for some of these queries at a time, whose vectors are at hand."""
        from negatron.models.dense_index import EncoderScorer
        from negatron.models.known_queries import KnownQueries

        return EncoderScorer(self.encoder, KnownQueries(vector_store(), self.encoder, [query.text for query in queries]), self.dense)

    @cached_property
    def scorer(self) -> StoredScores:
        """The cross-encoder, with what it has scored before."""
        from negatron.models.cross_encoder import CrossEncoderScorer, StoredScores

        assert self.cross_encoder is not None
        model = model_catalog.resolve_model(self.cross_encoder)
        scorer = CrossEncoderScorer(model, max_length=self.pair_length, precision=self.precision)
        return StoredScores(scorer, cache_folder() / "pair-scores", quiet=True)

    def searcher(self, name: str) -> Searcher:
        """The searcher called "bm25" or "dense"."""
        if name not in SOURCES:
            raise SettingError(f"there is no source {name!r}; known: {', '.join(SOURCES)}")
        return self.bm25 if name == "bm25" else self.dense

    def source(self, name: str) -> NegativeSource:
        """The source of that name: a searcher, chance, or a file."""
        documents = self.collection.documents
        if name == RANDOM:
            return RandomSource(documents, self.collection.corpus_fingerprint, self.seed, self.round)
        if not name.startswith(FILE):
            return SearchSource(name, self.searcher(name), documents, self.round)
        path = Path(name.removeprefix(FILE)).expanduser()
        listed = read_candidates(path, self.collection)
        if listed.unknown_queries:
            say(f"{path}: {listed.unknown_queries:,} of its queries are not in {self.collection.name}; they are left out")
        return FileSource(f"{FILE}{path.name}", listed.documents, documents, fingerprint("file.v1", listed.sha256), self.round)


def workshop(collection: Collection, model: str | Path, settings: EncodingSettings, bm25: BM25Settings | None = None) -> Workshop:
    """The searchers of a data set under the settings."""
    return Workshop(collection, str(model), settings.max_length, settings.precision, bm25 or BM25Settings())

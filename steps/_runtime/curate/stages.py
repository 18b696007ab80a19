"""The stages that a unit of rows passes: NeMo Curator's filters, each of which also counts what it removed.

A batch holds a row's line number and text, never the row: rows reach the output untouched, in the second pass.
"""

from __future__ import annotations

import hashlib
import unicodedata
from ast import literal_eval
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.text.filters import DocumentFilter, Filter, ScoreFilter
from nemo_curator.stages.text.filters.fasttext import FastTextLangId
from nemo_curator.tasks import DocumentBatch, Task

from _runtime.curate.options import Fuzzy
from _runtime.curate.rows import Unit, lines, parse, text_of
from _runtime.payload import PayloadError

EXAMPLES, EXAMPLE_CHARS = 3, 200


def shown(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARS else text[: EXAMPLE_CHARS - 1] + "…"


@dataclass
class UnitTask(Task[Unit]):
    """A unit that is not read yet."""

    @property
    def num_items(self) -> int:
        return 1

    def validate(self) -> bool:
        return True


@dataclass
class ReadRows(ProcessingStage[UnitTask, DocumentBatch]):
    """Read and check every row of a unit. Bad input travels as metadata: an exception would lose its fields in Ray."""

    text_field: str = "text"
    name: str = "read_rows"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["line", "text"]

    def process(self, task: UnitTask) -> DocumentBatch:
        unit = task.data
        numbers, texts, error = [], [], None
        try:
            for number, line in lines(unit):
                row = parse(line, unit.path, number)
                texts.append(text_of(row, self.text_field, unit.path, number))
                numbers.append(number)
        except PayloadError as e:
            numbers, texts, error = [], [], (e.name, e.message, e.recovery)
        data = pd.DataFrame({"line": np.array(numbers, dtype=np.int64), "text": pd.Series(texts, dtype=object)})
        about = {"unit": unit.index, "path": unit.path, "rows": len(numbers), "error": error, "removed": []}
        return DocumentBatch(dataset_name=task.dataset_name, data=data, _metadata=about)


def counted(before: DocumentBatch, after: DocumentBatch, name: str) -> DocumentBatch:
    """``after`` with a note of the rows that ``before`` had and it has not."""
    rows: pd.DataFrame = before.to_pandas()
    gone = rows[~rows["line"].isin(after.to_pandas()["line"])]
    path = before._metadata["path"]
    examples = [
        {"row": f"{path}:{line}", "text": shown(text)}
        for line, text in zip(gone["line"][:EXAMPLES], gone["text"][:EXAMPLES], strict=True)
    ]
    note = {"name": name, "removed": len(gone), "examples": examples}
    after._metadata = {**after._metadata, "removed": [*after._metadata["removed"], note]}
    return after


@dataclass
class CountedScoreFilter(ScoreFilter):
    """Curator's ScoreFilter that notes what it removed under ``label``."""

    label: str = ""

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        return counted(batch, super().process(batch), self.label)


@dataclass
class CountedFilter(Filter):
    """Curator's Filter that notes what it removed under ``label``."""

    label: str = ""

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        return counted(batch, super().process(batch), self.label)


class HasText(DocumentFilter):
    """Rows without text: several of Curator's heuristics divide by their length."""

    def __init__(self) -> None:
        super().__init__()
        self._name = "empty_text"

    def score_document(self, text: str) -> bool:
        return bool(text.strip())

    def keep_document(self, score: bool) -> bool:
        return score


class Languages(FastTextLangId):
    """Curator's FastText language filter for several codes; case does not matter, a script is optional."""

    def __init__(self, model_path: str, min_langid_score: float, codes: list[str]) -> None:
        super().__init__(model_path=model_path, min_langid_score=min_langid_score)
        self._codes = {code.casefold() for code in codes}

    def keep_document(self, score: float | str) -> bool:
        if not super().keep_document(score):
            return False
        label = str(literal_eval(str(score))[1]).casefold()
        return label in self._codes or label.split("_", 1)[0] in self._codes


@dataclass
class Fingerprint(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Replace the text, which nobody needs any more, with what deduplication needs of it."""

    exact: bool = False
    fuzzy: Fuzzy | None = None
    name: str = "fingerprint"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["line", "text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["line"]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        data = batch.to_pandas()
        texts = [normalised(t) for t in data["text"]] if self.exact or self.fuzzy else []
        data = data.drop(columns="text")
        if self.exact:
            data["digest"] = pd.Series([digest(t) for t in texts], index=data.index, dtype=object)
        if self.fuzzy:
            data["minhash"] = pd.Series([minhash(t, self.fuzzy) for t in texts], index=data.index, dtype=object)
        return DocumentBatch(dataset_name=batch.dataset_name, data=data, _metadata=batch._metadata)


def normalised(text: str) -> str:
    """Composed Unicode with single spaces: differences that no reader sees do not make two texts distinct."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def minhash(text: str, fuzzy: Fuzzy) -> bytes:
    """The MinHash signature of the text's character n-grams, as packed uint32."""
    from rensa import RMinHash

    signature = RMinHash(num_perm=fuzzy.num_perm, seed=fuzzy.seed)
    last = max(1, len(text) - fuzzy.ngram + 1)
    signature.update(sorted({text[i : i + fuzzy.ngram] for i in range(last)}))
    return np.array(signature.digest(), dtype=np.uint32).tobytes()


def language_columns(scores: Any) -> dict[str, list[Any]]:
    """Curator's packed ``[score, code]`` strings as the two annotations that rows carry."""
    pairs = [literal_eval(s) for s in scores]
    return {"language": [p[1] for p in pairs], "language_score": [round(float(p[0]), 4) for p in pairs]}

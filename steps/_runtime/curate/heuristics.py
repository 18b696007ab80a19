"""NeMo Curator's heuristic filters by name, as ``heuristics`` in the configuration spells them."""

from __future__ import annotations

import inspect
import re
from typing import Any

from nemo_curator.stages.text.filters import DocumentFilter, heuristic
from nemo_curator.stages.text.filters.heuristic import repetition

from _runtime.curate.options import bad, check_keys, nearest

ELSEWHERE = {"word_count": "set quality_filters.min_words and max_words"}


def known() -> dict[str, type[DocumentFilter]]:
    """Snake-case name -> Curator's class: ``non_alpha_numeric`` is ``NonAlphaNumericFilter``."""
    classes: dict[str, type[DocumentFilter]] = {}
    for module in (heuristic, repetition):
        for name in dir(module):
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, DocumentFilter) and value is not DocumentFilter:
                spelled = name.removesuffix("Filter").replace("NGrams", "Ngrams")
                classes[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", spelled).lower()] = value
    return {name: value for name, value in sorted(classes.items()) if name not in ELSEWHERE}


def make(name: str, settings: dict[str, Any]) -> DocumentFilter:
    """The filter of that name with those settings.

    Raises:
        PayloadError: an unknown name or setting, or one that the filter refuses.
    """
    if name in ELSEWHERE:
        raise bad(f"heuristics.{name}: {ELSEWHERE[name]}")
    classes = known()
    if name not in classes:
        raise bad(f"heuristics.{name}: unknown filter; {nearest(name, classes)}")
    parameters = inspect.signature(classes[name].__init__).parameters
    check_keys(settings, [p for p in parameters if p != "self"], f"heuristics.{name}.")
    try:
        return classes[name](**settings)
    except ModuleNotFoundError as e:
        recovery = "Use another lang, or an environment that has it."
        raise bad(f"heuristics.{name}: its word splitter needs the package {e.name!r}", recovery) from None
    except (TypeError, ValueError) as e:
        raise bad(f"heuristics.{name}: {e}") from None

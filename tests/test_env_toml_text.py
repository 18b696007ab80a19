"""How env/env_toml renders its sections, and what it refuses to."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
from helpers import REPO, load_module
from hypothesis import given
from hypothesis import strategies as st

STEP_MODULE = load_module(REPO / "steps/env/env_toml/step.py")
PayloadError = STEP_MODULE.payload.PayloadError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def holds_null(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, list) and None in value) or any(holds_null(v) for v in items)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), VALUES, max_size=5), min_size=1, max_size=5))
def test_what_is_parsed_is_what_was_rendered(tables: dict[str, Any]) -> None:
    if holds_null(tables):
        with pytest.raises(PayloadError, match="null in a list"):
            STEP_MODULE.render(tables)
        return
    parsed = tomllib.loads(STEP_MODULE.render(tables))
    assert parsed == without_nulls(tables)
    assert repr(parsed) == repr({k: parsed[k] for k in tables})  # sections in order


def test_numbers_that_equal_nothing_are_written_too() -> None:
    parsed = tomllib.loads(STEP_MODULE.render({"a": {"n": math.nan, "i": [-math.inf]}}))
    assert math.isnan(parsed["a"]["n"]) and parsed["a"]["i"] == [-math.inf]


@pytest.mark.parametrize(
    ("tables", "preamble", "message"),
    [
        (None, "", "sections: must be a mapping of at least one section"),
        ({}, "", "sections: must be a mapping"),
        ([1], "", "sections: must be a mapping"),
        ({"a": 5}, "", r"sections\.a: is 5, no mapping"),
        ({"a": {"b": [1, None]}}, "", r"sections\.a\.b\[1\]: is null in a list"),
        ({"a": {"b": {"c": b"x"}}}, "", r"sections\.a\.b\.c: is of type bytes"),
        ({"a": {"b": 2**63}}, "", r"sections\.a\.b: 9223372036854775808 is beyond the 64 bits"),
        ({"a": {True: 1}}, "", r"sections\.a: key True is of type bool"),
        ({"a": {"b": "\ud800"}}, "", r"sections\.a\.b: holds half a character"),
        ({"\ud800": {}}, "", "sections: holds half a character"),
        ({"a": {}}, "no comment", "preamble: is no TOML ahead of the sections"),
        ({"a": {}}, "[a]", "preamble: is no TOML ahead of the sections"),
        ({"a": {}}, "# bell \a", "preamble: is no TOML ahead of the sections"),
        ({"a": {}}, ["x"], r"preamble: is \['x'\], no text"),
    ],
)
def test_what_toml_cannot_hold_is_refused_by_its_key(tables: Any, preamble: Any, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        STEP_MODULE.render(tables, preamble)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({"alpha": {}, "b": {"extends": "alhpa"}}, "'b' extends missing profile 'alhpa'. Did you mean alpha?"),
        ({"a": {"extends": 5}}, "'a': extends is 5, not the name of one profile"),
        ({"a": {"extends": ["b"]}, "b": {}}, r"'a': extends is \['b'\]"),
        ({"a": {"extends": "a"}}, "in a circle: a -> a"),
        ({"x": {"extends": "a"}, "a": {"extends": "b"}, "b": {"extends": "a"}}, "in a circle: a -> b -> a"),
        ({"a": {"extends": "wandb"}}, "'a' extends missing profile 'wandb'"),
    ],
)
def test_parents_that_lead_nowhere_are_refused(profiles: dict[str, Any], message: str) -> None:
    with pytest.raises(PayloadError, match=message) as told:
        STEP_MODULE.check_parents(profiles)
    assert told.value.name == "missing_parent_profile"


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"required_profiles": ["alpha", "aplha"]}, r"missing required profile\(s\): aplha Did you mean alpha\?"),
        ({"required_profiles": "alpha"}, "is 'alpha', no list"),
        ({"required_profile": []}, r"required_profile: is no check\. Did you mean required_profiles\?"),
        ({"recommended_min_nodes": {"alpha": "x"}}, r"recommended_min_nodes\.alpha: is 'x', no number"),
        ({"recommended_min_nodes": [1]}, r"is \[1\], no mapping"),
        ([1], r"checks: is \[1\], no mapping"),
    ],
)
def test_checks_that_fail_or_are_malformed_are_named(checks: Any, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        STEP_MODULE.check_wanted({"alpha": {}}, checks)

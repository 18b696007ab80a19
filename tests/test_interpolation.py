"""Interpolations: the same grammar and values as OmegaConf, references that stay, circles and bombs named."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemotron_dagster.config.grammar import GrammarError, escape, parse, unescape
from nemotron_dagster.config.interpolation import Reference, Resolution, Unresolved, keep
from nemotron_dagster.config.oc_resolvers import BUILTIN
from nemotron_dagster.config.resolvers import Variables, mul

ENVIRON = {"WORD": "seen", "NUMBER": "12", "LIST": "[1, a]", "BRACED": "${oops}", "EMPTY": ""}
BASE = {
    "a": {"b": 1, "c": None, "d": [10, {"e": "deep"}], "text": "t"},
    "x.y": "dotted",
    "run": {"wandb": {"project": "p", "entity": None}},
}


def ours(value: Any, **more: Any) -> Any:
    resolvers = {**BUILTIN, "oc.env": Variables(ENVIRON).resolver(), "mul": mul}
    found = Resolution({**BASE, **more, "v": value}, resolvers).value(("v",))
    return unescape(found) if isinstance(found, str) else found


def theirs(value: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for k, v in ENVIRON.items():
        monkeypatch.setenv(k, v)
    return OmegaConf.to_container(OmegaConf.create({**BASE, "v": value}), resolve=True)["v"]  # type: ignore[call-overload,index]


@pytest.mark.parametrize(
    "text",
    [
        "${a.b}",
        "x-${a.b}-${a.text}",
        "${a}",
        "${a.d[1].e}",
        "${a.d.0}",
        "${a[d][1][e]}",
        "${.a.b}",
        "${ a.b }",
        "${oc.env:WORD}",
        "${oc.env:WORD}/x/${oc.env:NUMBER}",
        "${oc.env:SURELY_UNSET,null}",
        "${oc.env:SURELY_UNSET,4}",
        "${oc.env:SURELY_UNSET,''}",
        "${oc.env:SURELY_UNSET,'a, \\'b\\' }'}",
        '${oc.env:SURELY_UNSET,"q"}',
        "${oc.env:SURELY_UNSET,/a/b c.d-e}",
        "${oc.env:SURELY_UNSET,${oc.env:WORD}/x}",
        "${oc.env:SURELY_UNSET,'${oc.env:WORD}'}",
        "${oc.env:BRACED}",
        "${oc.env:EMPTY,full}",
        "${oc.decode:${oc.env:NUMBER}}",
        "${oc.decode:${oc.env:LIST}}",
        "${oc.decode:'{a: 1, b: [x, 2.5, true, null]}'}",
        "${oc.decode:null}",
        "${oc.decode:'1e-5'}",
        "${oc.decode:'1_000'}",
        "${oc.decode:'+.5'}",
        "${oc.decode:'-inf'}",
        "${oc.decode:'True'}",
        "${oc.decode:'1.2.3'}",
        "${oc.decode:'a:b'}",
        "${oc.decode:'04:00:00'}",
        "${oc.select:a.b,9}",
        "${oc.select:a.nope,9}",
        "${oc.select:a.nope}",
        "${oc.select:a.c,9}",
        "${oc.select:.a.b,9}",
        "${oc.select:a.nope,${oc.env:WORD,null}}",
        "${oc.dict.keys:a}",
        "${oc.dict.values:run.wandb}",
        "${oc.create:{k: [1, 2]}}",
        "${oc.coerce:int,'3'}",
        r"\${a.b}",
        r"\\${a.b}",
        r"\\\${a.b}",
        r"c:\x\${a.b}\y",
        "$a $ {b} 100$",
        "${a.${oc.env:SURELY_UNSET,b}}",
        "${oc.select:a.${oc.decode:'b'}}",
        "${a.text}${a.c}",
        "${oc.select:nope,: }",
        "${oc.select:nope,[a:\t , \\: ,: : ]}",
    ],
)
def test_a_value_is_what_omegaconf_makes_of_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ours(text) == theirs(text, monkeypatch)


@pytest.mark.parametrize(
    "text",
    ["${", "${a", "${}", "${a b}", "${a.}", "${a..b}", "${oc.env:A,[1}", "${f:{a}}", "${f:'x}", "${a.b]}"],
)
def test_what_is_malformed_is_malformed_in_omegaconf_too(text: str) -> None:
    with pytest.raises(GrammarError):
        parse(text)
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.create({"v": text})


_WORDS = st.sampled_from(["a", "b1", "-", ".", "/", " ", "4", "1e-5", "null", "true", "%", "x-y", "\\,", ":", "é"])
_PLAIN = st.lists(_WORDS, min_size=1, max_size=4).map("".join)
_QUOTED = st.lists(st.sampled_from(["a", ",", "}", "\\'", " ", "[", "\\", "$"]), max_size=5).map(
    lambda p: f"'{''.join(p)}'"
)
_ELEMENT = st.recursive(
    _PLAIN | _QUOTED | st.just("${a.b}"),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda x: f"[{','.join(x)}]")
        | st.lists(inner, min_size=1, max_size=2).map(
            lambda x: "{" + ",".join(f"k{i}:{e}" for i, e in enumerate(x)) + "}"
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    before=st.sampled_from(["", "x", "\\", "\\\\", "$"]), element=_ELEMENT, after=st.sampled_from(["", "/y", "}", "\\"])
)
def test_whatever_omegaconf_reads_reads_the_same_here(before: str, element: str, after: str) -> None:
    text = f"{before}${{oc.select:nope,{element}}}{after}"
    try:
        want = OmegaConf.to_container(OmegaConf.create({**BASE, "v": text}), resolve=True)["v"]  # type: ignore[call-overload,index]
    except OmegaConfBaseException:
        return
    got = ours(text)
    assert got == want or (isinstance(want, float) and math.isnan(want) and math.isnan(got))


@given(st.text(alphabet="a$\\{}'", max_size=12))
def test_escaped_text_means_itself(text: str) -> None:
    assert unescape(escape(text)) == text
    assert ours("${w}", w=escape(text)) == text


def test_a_default_is_looked_at_only_where_it_is_needed() -> None:
    assert ours("${oc.env:WORD,${oc.env:SURELY_UNSET}}") == "seen"
    assert ours("${oc.select:a.b,${nope}}") == 1


def test_null_of_the_jobs_own_run_leaves_nothing_inside_text() -> None:
    assert ours("<${run.wandb.entity}>") == "<>"
    assert ours("${run.wandb.entity}") is None


@pytest.mark.parametrize(
    ("value", "more", "message"),
    [
        ("${w}", {"w": "${v}"}, "in a circle: v -> w -> v"),
        ("${v}", {}, "in a circle: v -> v"),
        ({"x": "${v}"}, {}, r"in a circle: v\.x -> v\.x"),
        ("${oc.select:v}", {}, "in a circle"),
        ("${nothing.here}", {}, "the config has no key nothing.here"),
        ("${a.bb}", {}, r"no key a\.bb"),
        ("${oc.en:X}", {}, "there is no resolver 'oc.en'"),
        ("${oc.env:SURELY_UNSET}", {}, "environment variable SURELY_UNSET is not set"),
        ("${oc.decode:'[1'}", {}, "oc.decode cannot read"),
        ("${oc.dict.keys:a.b}", {}, "a.b is not a section"),
        ("${....a}", {}, "leads out of the config"),
        ("${w}", {"w": "???"}, "w must be given"),
        ("${a", {}, "malformed"),
    ],
)
def test_what_cannot_be_resolved_is_named(value: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(Unresolved, match=message):
        ours(value, **more)


def test_the_closest_resolver_is_offered() -> None:
    with pytest.raises(Unresolved) as e:
        ours("${oc.selct:a}")
    assert "oc.select" in e.value.fix


def test_a_secret_variable_stays_a_reference_wherever_it_stands() -> None:
    assert ours("${oc.env:MY_API_KEY}") == "${oc.env:MY_API_KEY}"
    assert ours("Bearer ${oc.env:MY_API_KEY} of ${oc.env:WORD}") == "Bearer ${oc.env:MY_API_KEY} of seen"
    assert ours("${w}", w="${oc.env:MY_API_KEY,none}") == "${oc.env:MY_API_KEY,none}"
    assert ours("${oc.select:nope,${oc.env:MY_API_KEY}}") == "${oc.env:MY_API_KEY}"
    assert ours("${oc.decode:${oc.env:MY_API_KEY}}") == "${oc.decode:${oc.env:MY_API_KEY}}"
    assert ours("${mul:${a.b},2}") == "${mul:1,2}"


def test_a_kept_call_spells_its_arguments_so_that_they_read_the_same() -> None:
    values = [
        1,
        2.5,
        None,
        True,
        "plain",
        "4",
        "null",
        "a, b",
        "it's",
        "back\\",
        "\\'",
        "${x}",
        "",
        [1, "a b"],
        {"k": "v w"},
    ]
    text = str(keep("probe", tuple(values)))
    seen: list[Any] = []
    resolvers = {"probe": lambda resolution, path, args: seen.extend(args)}
    Resolution({"v": text}, resolvers).value(("v",))
    assert seen == values
    OmegaConf.register_resolver("probe_of_test", lambda *args: list(args))
    got = OmegaConf.to_container(OmegaConf.create({"v": text.replace("probe", "probe_of_test", 1)}), resolve=True)
    assert got["v"] == values  # type: ignore[call-overload,index]
    OmegaConf.clear_resolver("probe_of_test")


def test_a_section_that_is_named_twice_is_two_sections() -> None:
    found = Resolution({**BASE, "v": ["${a}", "${a}"]}, {}).value(("v",))
    assert found[0] == found[1] and found[0] is not found[1]


@pytest.mark.parametrize(
    "bomb",
    [
        {f"b{i}": f"${{b{i + 1}}}${{b{i + 1}}}" for i in range(30)} | {"b30": "x" * 100},
        {f"b{i}": [f"${{b{i + 1}}}"] * 8 for i in range(12)} | {"b12": [1]},
        {f"b{i}": f"${{b{i + 1}}}" for i in range(5000)} | {"b5000": 1},
    ],
)
def test_interpolations_that_expand_without_end_are_refused_at_once(bomb: dict[str, Any]) -> None:
    with pytest.raises(Unresolved, match=r"beyond|without end|in a chain"):
        Resolution(bomb, {}).value(("b0",))


def test_passes_in_threads_see_nothing_of_each_other() -> None:
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        env = Variables({"WHO": str(i)}).resolver()
        for _ in range(200):
            results[i] = Resolution({"v": "${oc.env:WHO}-${w}", "w": "${oc.env:WHO}"}, {"oc.env": env}).value(("v",))
            assert results[i] == f"{i}-{i}"

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {i: f"{i}-{i}" for i in range(4)}


def test_nothing_is_registered_with_omegaconf() -> None:
    ours("${mul:1,2}")
    for name in ("mul", "art", "manifest", "auto_mount"):
        assert not OmegaConf.has_resolver(name)


def test_a_reference_is_text_for_whoever_writes_it() -> None:
    assert isinstance(Reference("x"), str)

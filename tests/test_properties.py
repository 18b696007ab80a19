"""Properties of config sources and of composition, on generated data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemotron_dagster.config.compose import load_yaml
from nemotron_dagster.config.overrides import parse_dotlist, split_tokens, to_dotlist
from nemotron_dagster.config.secrets import HIDDEN, is_secret, redact
from nemotron_dagster.config.source import read_toml, read_value, read_yaml, toml_position, yaml_position
from nemotron_dagster.errors import ConfigError, NemotronError

quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

#: Not what OmegaConf gives a meaning of its own, nor numbers that YAML 1.1 readers take for text.
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda t: "${" not in t and "???" not in t and not re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", t)
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    plain_text,
    st.sampled_from(
        ["yes", "null", "1", "1.5", "0x1f", "2020-01-01", "a: b", "# x", " padded ", "[", "é", "\U0001f600"]
    ),
)
keys = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(lambda k: k != "defaults")
data = st.dictionaries(
    keys,
    st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=8),
    max_size=4,
)


def exact(value: Any) -> str:
    """Text that differs where type, value or order of keys does."""
    return repr(value)


def container(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@quick
@given(data)
def test_a_dotlist_gives_back_the_data_it_was_made_from(values: dict[str, Any]) -> None:
    loaded = OmegaConf.create({})
    for key, value in parse_dotlist(to_dotlist(values)):
        OmegaConf.update(loaded, key, value)
    assert OmegaConf.to_container(loaded) == values


@quick
@given(data, st.booleans())
def test_a_dumped_file_reads_as_omegaconf_reads_it(tmp_path: Path, values: dict[str, Any], flow: bool) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True, default_flow_style=flow, sort_keys=False))
    assert exact(read_yaml(file)) == exact(OmegaConf.to_container(OmegaConf.load(file)))
    for key in values:
        position = yaml_position(file, key)
        assert position is not None
        line = re.split("\r\n|[\r\n\x85\u2028\u2029]", file.read_text())[position.line - 1]
        assert key in line  # YAML counts more line breaks than an editor does


SYNTAX = [
    "a", "b: ", ": ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "!", "!!int ", "!!str ", "'", '"', "\\", "\n", "  ",
    "|\n", ">-\n", "? ", "#", "%", "@", "<<: ", "1e5", "0o7", "~", "null", "\t", "\x00", "é", "---\n", "...\n",
    "\u2028",
]  # fmt: skip
syntax = st.lists(st.sampled_from(SYNTAX) | st.text(max_size=3), max_size=14).map("".join)
#: What is refused here although OmegaConf takes it, for the reason that the message gives.
STRICTER = re.compile("duplicate key|is not supported here|is not allowed|defined twice|is no !!|null key")


@settings(quick, max_examples=250)
@given(syntax)
def test_any_text_reads_as_omegaconf_reads_it_or_is_refused_by_name(text: str) -> None:
    try:
        expected = exact(OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]))["v"])
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, KeyError, IndexError):
        expected = None
    try:
        found = exact(read_value(text, "v"))
    except ConfigError as e:
        assert expected is None or STRICTER.search(str(e)), f"{text!r}: {e}, but OmegaConf reads {expected}"
    else:
        assert expected in (None, found), f"{text!r}: {found}, but OmegaConf reads {expected}"


@settings(quick, max_examples=120)
@given(syntax | st.text(), syntax)
def test_any_token_is_parsed_or_refused_with_a_short_named_error(token: str, value: str) -> None:
    for tokens in ([token], [f"key.sub={value}"], [f"{token}={value}"]):
        split = split_tokens(tokens)
        assert len(split.dotlist) + len(split.passthrough) <= 1
        try:
            pairs = parse_dotlist(tokens)
        except NemotronError as e:
            assert len(str(e)) < 1000
        else:
            assert len(pairs) == 1


@settings(quick, max_examples=120)
@given(st.binary(max_size=80) | syntax.map(lambda t: t.encode("utf-8", "surrogatepass")), st.text(max_size=10))
def test_any_bytes_in_a_file_are_data_or_one_named_error(tmp_path: Path, content: bytes, key: str) -> None:
    file = tmp_path / "c"
    file.write_bytes(content)
    for read in (read_yaml, read_toml):
        try:
            read(file)
        except ConfigError as e:
            assert str(e).startswith(str(file)) and str(e).endswith(".")
    for position in (yaml_position(file, key), toml_position(file, key)):
        assert position is None or position.file == file


def composed(folder: Path, **files: dict[str, Any]) -> Any:
    """The config ``top`` of files that name their bases under ``defaults``."""
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return container(load_yaml(folder / "top.yaml"))


@quick
@given(data, data, data)
def test_a_chain_of_defaults_merges_as_omegaconf_does_however_it_is_grouped(
    tmp_path: Path, a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    try:
        expected = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(layer) for layer in (a, b, c))))
    except (TypeError, OmegaConfBaseException):  # a list over a mapping
        reject()
    flat = composed(tmp_path, a=a, b=b, top={"defaults": ["a", "b", "_self_"], **c})
    left = composed(tmp_path, a=a, b={"defaults": "a", **b}, top={"defaults": ["b"], **c})
    right = composed(tmp_path, a=a, b=b, mid={"defaults": "b", **c}, top={"defaults": ["a", "mid"]})
    assert flat == left == right == expected


@quick
@given(data, keys, scalars, scalars)
def test_the_later_layer_wins(tmp_path: Path, base: dict[str, Any], key: str, first: Any, second: Any) -> None:
    top = {"defaults": "base", key: second}
    assert composed(tmp_path, base={**base, key: first}, top=top)[key] == second
    pairs = parse_dotlist([f"{key}={json.dumps(1)}", f"{key}={json.dumps(2)}"])
    assert [v for _, v in pairs] == [1, 2]


secret_names = st.sampled_from(
    ["HF_TOKEN", "token", "api_key", "apiKey", "clientSecret", "db-password", "WANDB_API_KEY", "NGC_KEY", "a.b.passwd"]
)
ordinary = st.sampled_from(
    ["tokenizer", "tokenizer_path", "max_new_tokens", "token_count", "keyboard", "num_keys", "passwords_file", "author"]
)


@quick
@given(data, st.lists(st.one_of(secret_names, ordinary), max_size=3), secret_names)
def test_redaction_never_shows_a_planted_secret_and_never_hides_ordinary_keys(
    values: dict[str, Any], above: list[str], name: str
) -> None:
    planted = {**values, "tokenizer": "kept", "max_new_tokens": 5, name: "hunter2"}
    node: Any = planted
    for part in above:
        node = {part: [node, {"tokenizer_path": "kept"}]}
    shown = json.dumps(redact(node))
    assert "hunter2" not in shown
    if not any(is_secret(p) for p in above):
        flat = redact(planted)
        assert flat["tokenizer"] == "kept" and flat["max_new_tokens"] == 5 and flat[name] == HIDDEN
        assert shown.count("kept") == 1 + len(above)
    assert planted[name] == "hunter2", "redaction is a copy"


@quick
@given(ordinary)
def test_ordinary_names_are_no_secrets(name: str) -> None:
    assert not is_secret(name) and redact({name: "x"}) == {name: "x"}

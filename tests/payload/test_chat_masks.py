"""Chat templates and what of a conversation the model learns: text, borders, and rows that are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_slowly import learned, parts, shifted, stretches
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreters import STEPS

sys.path.insert(0, str(STEPS))

from _runtime.data_prep import chat, chat_probes, chat_template, chat_tokens, packed
from _runtime.data_prep.chat_template import END, START, ChatTemplate
from _runtime.data_prep.packing import pack
from _runtime.payload import PayloadError

NANO3 = chat_template.load("nano3", None)
LIGHTNING35 = chat_template.load("lightning35", None)
#: The same text, but nothing says what the model writes: it has to be found.
UNMARKED = ChatTemplate(
    "unmarked", NANO3.text.replace("{%- generation -%}", "{#- -#}").replace("{%- endgeneration -%}", "{#- -#}")
)
PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": " Adds. ",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "one", "minimum": 0}, "b": {"enum": ["x", "é"]}},
            "required": ["a"],
        },
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, thought: str | None = None, **arguments: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": "add", "arguments": arguments}}] if arguments else None
    return {"role": "assistant", "content": text, "reasoning_content": thought, "tool_calls": calls}


def told(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


def plain(template: ChatTemplate, messages: list[dict[str, Any]], tools: Any = None) -> str:
    return template.render(messages, tools).replace(START, "").replace(END, "")


def pieces(row: dict[str, Any], template: ChatTemplate = NANO3) -> list[list[tuple[str, bool]]]:
    return chat.sequences(chat.read(row, chat.RowFields()), template)


def test_nano3_writes_tools_calls_and_results_as_the_model_reads_them() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("2 and 3?"),
        answer("", None, a=2, b=["x"]),
        told("5"),
        told("!"),
        answer("Five. "),
    ]
    text = plain(NANO3, messages, [TOOL])
    head, _, rest = text.partition("</tools>")
    assert head == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n"
        "<function>\n<name>add</name>\n<description>Adds.</description>\n<parameters>\n<parameter>\n<name>a</name>\n"
        "<type>integer</type>\n<description>one</description>\n<minimum>0</minimum>\n</parameter>\n<parameter>\n"
        '<name>b</name>\n<enum>["x", "é"]</enum>\n</parameter>\n<required>["a"]</required>\n'
        "</parameters>\n</function>\n"
    )
    assert rest.endswith(
        "</IMPORTANT><|im_end|>\n<|im_start|>user\n2 and 3?<|im_end|>\n<|im_start|>assistant\n<think></think>\n"
        "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n"
        '<parameter=b>\n["x"]\n</parameter>\n</function>\n</tool_call>\n<|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n5\n</tool_response>\n<tool_response>\n!\n</tool_response>\n<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>Five.<|im_end|>\n"
    )


def test_nano3_keeps_the_last_thought_and_drops_those_before_the_last_user_turn() -> None:
    messages = [user("a"), answer("b", "first"), user("c"), answer("d", "then")]
    assert plain(NANO3, messages) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\nthen\n</think>\nd<|im_end|>\n"
    )
    for thinking, prompt in ((True, "<think>\n"), (False, "<think></think>")):
        text = NANO3.render([user("a")], add_generation_prompt=True, enable_thinking=thinking)
        assert text.endswith("<|im_start|>assistant\n" + prompt)


def test_lightning35_closes_a_thought_before_the_answer_and_asks_for_little_reasoning_on_request() -> None:
    messages = [user("a"), answer(" b ", "first", a=1), told("2"), user("c"), answer(" d ", "then")]
    call = "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>\n"
    assert plain(LIGHTNING35, messages) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        f"<|im_start|>assistant\n<think></think> b \n{call}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\nthen</think> d<|im_end|>\n"
    )
    sparing = chat_template.load("lightning35", None, {"medium_effort": True})
    assert plain(sparing, messages[:4]).count("{reasoning effort: efficient}") == 1
    assert plain(sparing, messages[:4]).endswith("c\n\n{reasoning effort: efficient}<|im_end|>\n")
    kept = chat_template.load("lightning35", None, {"truncate_history_thinking": False})
    assert "<think>\nfirst</think> b\n<tool_call>" in plain(kept, messages)
    for thinking, prompt in ((True, "<think>\n"), (False, "<think></think>")):
        text = LIGHTNING35.render([user("a")], add_generation_prompt=True, enable_thinking=thinking)
        assert text.endswith("<|im_start|>assistant\n" + prompt)
    assert not chat_probes.same_output(LIGHTNING35, NANO3)


TEXT = st.text("ab \n.é\u2028👍\"'{", max_size=12)
THOUGHT = st.none() | st.sampled_from(["why", " \n", "so\nso ", ""])


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if draw(st.booleans()):
        found.append({"role": "system", "content": draw(TEXT)})
    for _ in range(draw(st.integers(1, 3))):
        found.append(user(draw(TEXT)))
        if draw(st.booleans()):
            # strip: of an earlier turn the template strips what stands before a call, so prefixes would differ
            found.append(answer(draw(TEXT).strip(), draw(THOUGHT), a=draw(st.integers(0, 9)), b=draw(TEXT)))
            found += [told(draw(TEXT)) for _ in range(draw(st.integers(1, 2)))]
        found.append(answer(draw(TEXT), draw(THOUGHT)))
    return found


@pytest.mark.parametrize("template", [NANO3, LIGHTNING35], ids=lambda t: t.name)
@settings(deadline=None)
@given(messages=conversations(), tools=st.booleans())
def test_only_what_follows_the_generation_prompt_up_to_the_end_of_the_turn_is_learned(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: bool
) -> None:
    given_tools = [TOOL] if tools else None
    clean = chat.read({"messages": messages, "tools": given_tools}, chat.RowFields()).messages
    expected = [
        stretches(*learned(some, first, lambda m: plain(template, m, given_tools))) for some, first in parts(clean)
    ]
    assert pieces({"messages": messages, "tools": given_tools}, template) == expected


@settings(deadline=None)
@given(conversations())
def test_without_generation_blocks_the_same_is_found_by_rendering(messages: list[dict[str, Any]]) -> None:
    assert not UNMARKED.marks_answers and NANO3.marks_answers
    assert pieces({"messages": messages}, UNMARKED) == pieces({"messages": messages})


def test_a_template_of_any_layout_is_learned_from_after_its_prompt() -> None:
    template = ChatTemplate("plain", PLAIN, {"bos_token": "<s>"})
    row = {"messages": [user("a"), answer("b"), user("c"), answer("d")]}
    assert pieces(row, template) == [
        [("<s><user>a</s><assistant>", False), ("b</s>", True), ("<user>c</s><assistant>", False), ("d</s>", True)]
    ]


def test_thoughts_within_the_content_are_learned_where_they_are_written() -> None:
    row = {"messages": [user("a"), answer("<think>\nwhy</think>b"), user("c"), answer("d")]}
    assert pieces(row)[0][-1] == ("why</think>b<|im_end|>\n", True)
    assert pieces(row)[1][-1] == ("d<|im_end|>\n", True) and "why" not in "".join(t for t, _ in pieces(row)[1])


def test_a_sharegpt_row_and_content_in_parts_are_the_same_conversation() -> None:
    row = {"messages": [user("a"), answer("b")]}
    other = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    third = {"messages": [user([{"type": "text", "text": "a"}]), answer("b")]}  # type: ignore[arg-type]
    assert pieces(row) == pieces(other) == pieces(third)


def test_arguments_may_be_json_text_and_nulls_that_parquet_fills_in_are_not_written() -> None:
    row = {"messages": [user("a"), answer("", None, a=1), told("1"), answer("b")]}
    text = {"messages": [user("a"), answer("", None, a=1), told("1"), answer("b")]}
    text["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"a": 1}'
    filled = {"messages": [user("a"), answer("", None, a=1, b=None), told("1"), answer("b")], "tools": None}
    assert pieces(row) == pieces(text) == pieces(chat.without_nulls(filled))


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({}, "no_messages", "the row has nothing"),
    "another field": ({"text": "x"}, "no_messages", "text"),
    "empty": ({"messages": []}, "no_messages", "is empty"),
    "a string": ({"messages": "x"}, "no_messages", "str"),
    "a message that is none": ({"messages": ["x"]}, "bad_message", "message 0"),
    "no role": ({"messages": [{"content": "x"}]}, "bad_message", "role is None"),
    "no content": ({"messages": [{"role": "user"}]}, "bad_message", "content is missing"),
    "an image": ({"messages": [user([{"type": "image"}])]}, "bad_message", "no text"),  # type: ignore[arg-type]
    "arguments cut off": (
        {"messages": [user("a"), {**answer(""), "tool_calls": [{"function": {"name": "f", "arguments": '{"a'}}]}]},
        "bad_tool_call", "arguments of 'f'",
    ),
    "arguments that are a list": (
        {"messages": [user("a"), {**answer(""), "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
        "bad_tool_call", "no object",
    ),
    "a call of nothing": (
        {"messages": [user("a"), {**answer(""), "tool_calls": [{}]}]}, "bad_tool_call", "no function",
    ),
    "tools in words": ({"messages": [user("a"), answer("b")], "tools": "add"}, "bad_tools", "not JSON"),
    "a call as text": ({"messages": [user("a"), answer("<tool_call>")]}, "tool_call_without_tools", "# Tools"),
    "nobody answers": ({"messages": [user("a")]}, "no_trainable_turn", "user"),
    "only a thought about nothing": (
        {"messages": [answer("a", "b"), user("c")]}, "no_trainable_turn", "assistant, user",
    ),
    "characters that mark answers": ({"messages": [user("a" + START), answer("b")]}, "template_mismatch", "FDD0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_cannot_be_learned_from_is_refused_with_its_reason(case: str) -> None:
    row, reason, part = REFUSED[case]
    with pytest.raises(chat.Rejected, match=part) as told_:
        pieces(row)
    assert told_.value.reason == reason and reason in chat.REASONS


@pytest.mark.parametrize(
    ("text", "reason", "part"),
    [
        ("{{ raise_exception('roles must alternate') }}", "template_error", "roles must alternate"),
        ("{{ messages[9].content.x }}", "template_error", "UndefinedError"),
        ("{{ messages | length }}{{ messages[-1].content }}", "template_mismatch", "otherwise once"),
    ],
)
def test_a_template_that_does_not_take_a_row_refuses_the_row(text: str, reason: str, part: str) -> None:
    with pytest.raises(chat.Rejected, match=part) as told_:
        pieces({"messages": [user("a"), answer("b"), user("c"), answer("d")]}, ChatTemplate("t", text))
    assert told_.value.reason == reason


@pytest.mark.parametrize(
    ("value", "kept"), [("a", True), (["b", "a"], True), ("b, a", True), ("ab", False), (None, False)]
)
def test_used_in_keeps_rows_of_the_stage(value: Any, kept: bool) -> None:
    row = {"messages": [user("a"), answer("b")], "used_in": value}
    fields = chat.RowFields(used_in_filter="a")
    if kept:
        assert len(chat.read(row, fields).messages) == 2
    else:
        with pytest.raises(chat.Rejected) as told_:
            chat.read(row, fields)
        assert told_.value.reason == "used_in_filter"


def test_a_template_is_a_name_a_file_a_text_or_the_tokenizers_own(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(PLAIN)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "{{ bos_token }}!"}]}'
    )
    assert chat_template.load(str(tmp_path / "t.jinja"), None).text == chat_template.load(PLAIN, None).text == PLAIN
    own = chat_template.load("tokenizer", tmp_path)
    assert own.render([user("a")]) == "<s>!"
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    assert chat_template.load("tokenizer", tmp_path).text == "{{ 1 }}"


@pytest.mark.parametrize(
    ("spec", "name", "part"),
    [
        ("nano4", "chat_template_missing", "nano4"),
        ("tokenizer", "chat_template_missing", "no chat template"),
        ("{% if %}", "chat_template_invalid", "line 1"),
    ],
)
def test_a_template_that_is_none_is_refused(spec: str, name: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(PayloadError) as told_:
        chat_template.load(spec, tmp_path)
    assert told_.value.name == name and part in told_.value.message and told_.value.recovery


def test_the_date_is_the_runs_not_the_clocks() -> None:
    template = chat_template.load("{{ strftime_now('%d %b %Y') }}", None, today="2024-02-29")
    assert template.tells_time and template.render([user("a")]) == "29 Feb 2024"


def test_templates_that_write_the_same_are_known_to_and_others_are_not() -> None:
    assert chat_probes.same_output(NANO3, UNMARKED)
    changed = ChatTemplate("changed", NANO3.text.replace("'\\n</think>\\n'", "'</think>'"))
    assert changed.text != NANO3.text and not chat_probes.same_output(NANO3, changed)


TOKENS = st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1)), min_size=1, max_size=20), max_size=12)


def tokens(sequences: list[list[tuple[int, int]]]) -> chat_tokens.Tokens:
    flat = [t for s in sequences for t in s]
    return chat_tokens.Tokens(
        np.array([t for t, _ in flat], np.int32),
        np.array([m for _, m in flat], np.uint8),
        np.array([len(s) for s in sequences], np.int64),
    )


def lists(found: chat_tokens.Tokens) -> list[list[tuple[int, int]]]:
    return [
        list(zip(found.ids[a : a + n].tolist(), found.mask[a : a + n].tolist(), strict=True))
        for a, n in zip(found.starts, found.lengths, strict=True)
    ]


@settings(deadline=None)
@given(TOKENS, st.integers(1, 25))
def test_what_is_too_long_is_cut_dropped_or_split_and_counted(
    sequences: list[list[tuple[int, int]]], limit: int
) -> None:
    expected = {
        "truncate": [s[:limit] for s in sequences],
        "drop": [s for s in sequences if len(s) <= limit],
        "split": [s[i : i + limit] for s in sequences for i in range(0, len(s), limit)],
    }
    for choice, wanted in expected.items():
        found, over = chat_tokens.fit(tokens(sequences), limit, choice)
        assert lists(found) == wanted
        assert over == sum(len(s) > limit for s in sequences)


@settings(deadline=None)
@given(TOKENS)
def test_the_mask_tells_of_the_next_token_and_what_teaches_nothing_is_left_out(
    sequences: list[list[tuple[int, int]]],
) -> None:
    wanted = [
        list(zip([t for t, _ in s], shifted([t for t, _ in s], [m for _, m in s]), strict=True)) for s in sequences
    ]
    found, lost = chat_tokens.trained(chat_tokens.shifted(tokens(sequences)))
    assert lists(found) == [s for s in wanted if any(m for _, m in s)]
    assert lost == len(wanted) - len(lists(found))


@settings(deadline=None)
@given(TOKENS.filter(bool), st.integers(1, 8), st.integers(20, 40), st.integers(1, 3))
def test_padding_makes_each_sequence_a_multiple_and_the_file_gives_every_token_back(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[list[tuple[int, int]]],
    multiple: int,
    pack_size: int,
    group: int,
) -> None:
    import pyarrow.parquet as pq

    limit = packed.longest(pack_size, multiple)
    some, _ = chat_tokens.fit(tokens(sequences), limit, "truncate")
    takes = packed.padded(some.lengths, multiple)
    assert (takes >= some.lengths).all() and takes.max() <= pack_size
    bins = pack(takes, pack_size, "best_fit_decreasing", 1)
    file = tmp_path_factory.mktemp("packed") / "shard.parquet"
    packed.write(file, some, bins, pad_id=7, multiple=multiple, row_group_size=group)
    found: list[list[tuple[int, int]]] = []
    for row in pq.read_table(file).to_pylist():
        ends = [*row["seq_start_id"][1:], len(row["input_ids"])]
        assert len(row["input_ids"]) <= pack_size
        for start, end in zip(row["seq_start_id"], ends, strict=True):
            assert multiple == 1 or (end - start - 1) % multiple == 0
            found.append(list(zip(row["input_ids"][start:end], row["loss_mask"][start:end], strict=True)))
    for number, sequence in zip(bins.order, found, strict=True):
        wanted = lists(some)[number]
        assert sequence == wanted + [(7, 0)] * (len(sequence) - len(wanted))
    assert len(found) == len(some)
    assert [p.name for p in file.parent.iterdir()] == ["shard.parquet"]

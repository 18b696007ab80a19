"""Do two chat templates write the same? Told by conversations that have everything a template may treat in its own way.

A bundled template and a model's own one may be spelled differently and still write the same text; what was packed with
the one then fits a model that has the other.
"""

from __future__ import annotations

from typing import Any

from _runtime.data_prep.chat_template import END, START, ChatTemplate, TemplateFault

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": " Tells the weather. ",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where"},
                    "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
_CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn", "days": [1, 2]}}}
_SYSTEM = {"role": "system", "content": "Be brief.\n"}
_ASKED = {"role": "user", "content": ' What now? \u2028"<b>"'}
_SAID = {"role": "assistant", "content": "This.\n"}
_THOUGHT = {"role": "assistant", "content": "That.", "reasoning_content": "Because.\n"}
_CALLED = {"role": "assistant", "content": "", "tool_calls": [_CALL, _CALL]}
_CALLED_THINKING = {**_CALLED, "content": "Let me look.", "reasoning_content": "It is asked for."}
_TOLD = {"role": "tool", "content": '{"sky": "clear"}', "tool_call_id": "1"}

PROBES: tuple[tuple[list[dict[str, Any]], Any], ...] = (
    ([_ASKED], None),
    ([_ASKED, _SAID], None),
    ([_SYSTEM, _ASKED, _SAID, _ASKED, _SAID], None),
    ([_SYSTEM, _ASKED, _THOUGHT, _ASKED, _THOUGHT], None),
    ([_ASKED, _CALLED, _TOLD, _TOLD, _SAID], _TOOLS),
    ([_SYSTEM, _ASKED, _CALLED_THINKING, _TOLD, _TOLD, _THOUGHT, _ASKED, _CALLED_THINKING], _TOOLS),
)


def same_output(one: ChatTemplate, other: ChatTemplate) -> bool:
    """Whether both write the same text for every probe, with and without a generation prompt."""
    return all(
        _text(one, messages, tools, prompt, thinking) == _text(other, messages, tools, prompt, thinking)
        for messages, tools in PROBES
        for prompt in (False, True)
        for thinking in (False, True)
    )


def _text(template: ChatTemplate, messages: list[dict[str, Any]], tools: Any, prompt: bool, thinking: bool) -> str:
    try:
        text = template.render(messages, tools, add_generation_prompt=prompt, enable_thinking=thinking)
    except TemplateFault:
        return "refused"
    return text.replace(START, "").replace(END, "")

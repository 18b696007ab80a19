"""Chat templates: found by name, in a file or beside a tokenizer, and rendered as Hugging Face renders them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from _runtime.payload import PayloadError

#: Bundled, by name.
NAMES = ("nano3", "lightning35")
#: Around what a generation block holds. Noncharacters: Unicode keeps them for use inside a program.
START, END = "\ufdd0", "\ufdd1"

_FOLDER = Path(__file__).resolve().parent / "chat_templates"


class TemplateFault(Exception):
    """A template does not render a conversation; the message says why."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text and what else it is rendered with.

    Attributes:
        name: what the config called it.
        special_tokens: ``bos_token`` and the like, as the tokenizer's configuration has them.
        kwargs: what the config hands to the template.
        today: what ``strftime_now`` tells, so that a run that is continued tomorrow writes what it wrote today.
    """

    name: str
    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    today: str = ""

    @property
    def fingerprint(self) -> str:
        """sha256 of the text, in hex; the engine compares it with that of a checkpoint's template."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def marks_answers(self) -> bool:
        """Does the template say itself, by generation blocks, what the model writes?"""
        return "generation" in self._compiled.environment.used  # type: ignore[attr-defined]

    @property
    def tells_time(self) -> bool:
        """Does the text depend on the day it is rendered on?"""
        return "strftime_now" in self.text

    @cached_property
    def _compiled(self) -> Any:
        return _compile(self.text, self.today, trusted=self.name in NAMES)

    def check(self) -> None:
        """Compile the template.

        Raises:
            PayloadError: it is not a Jinja template.
        """
        from jinja2 import TemplateError

        try:
            _ = self._compiled
        except TemplateError as e:
            line = getattr(e, "lineno", None)
            place = f", line {line}" if line else ""
            raise PayloadError(
                "chat_template_invalid",
                f"chat_template {self.name}{place}: {e}",
                "Mend the template, or give the name of a bundled one, a file, or `tokenizer`.",
            ) from None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, **kwargs: Any) -> str:
        """The text of a conversation, what generation blocks hold between ``START`` and ``END``.

        Args:
            kwargs: ``add_generation_prompt``, ``enable_thinking``; templates also see them in ``chat_template_kwargs``.

        Raises:
            TemplateFault: whatever goes wrong in the template.
        """
        prompt = kwargs.pop("add_generation_prompt", False)
        given = {**self.kwargs, **kwargs}
        try:
            return str(
                self._compiled.render(
                    messages=messages,
                    tools=tools,
                    documents=None,
                    add_generation_prompt=prompt,
                    chat_template_kwargs=given,
                    **{**self.special_tokens, **given},
                )
            )
        except Exception as e:  # a template may do anything; the row is counted, with this text
            text = " ".join(str(e).split())[:200].encode(errors="backslashreplace").decode()
            raise TemplateFault(f"{type(e).__name__}: {text}") from None


def load(
    spec: str,
    tokenizer_folder: Path | None,
    kwargs: Mapping[str, Any] | None = None,
    today: str | None = None,
) -> ChatTemplate:
    """The template that the config means by ``spec``: a bundled name, ``tokenizer``, a file, or the text itself.

    Args:
        tokenizer_folder: where tokenizer_config.json and chat_template.jinja may lie.
        today: ``YYYY-MM-DD`` for templates that write the date; today's date where it is None.

    Raises:
        PayloadError: nothing that is a template.
    """
    settings = _json(tokenizer_folder / "tokenizer_config.json") if tokenizer_folder else {}
    if spec in NAMES:
        text = (_FOLDER / f"{spec}.jinja").read_text(encoding="utf-8")
    elif spec == "tokenizer":
        text = own_template(tokenizer_folder)
        if not text:
            raise PayloadError(
                "chat_template_missing",
                f"{tokenizer_folder}: the tokenizer has no chat template",
                "Set chat_template=nano3, or to a template file.",
            )
    elif "{" in spec:
        text = spec
    else:
        path = Path(spec).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise PayloadError(
                "chat_template_missing",
                f"chat_template={spec}: neither {', '.join(NAMES)} nor tokenizer, and no template file ({e})",
                "Give a bundled name, `tokenizer`, a file, or the template itself.",
            ) from None
    found = ChatTemplate(
        spec if len(spec) < 100 else "given in the config",
        text,
        _special_tokens(settings),
        dict(kwargs or {}),
        today or date.today().isoformat(),
    )
    found.check()
    return found


def own_template(folder: Path | None) -> str | None:
    """The default template beside a tokenizer, where there is one."""
    if folder is None:
        return None
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8") or None
    found = _json(folder / "tokenizer_config.json").get("chat_template")
    if found is None:
        found = _json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # [{"name": .., "template": ..}]
        named = {t.get("name"): t.get("template") for t in reversed(found) if isinstance(t, dict)}
        found = named.get("default") or next(reversed(named.values()), None)
    return found if isinstance(found, str) and found else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PayloadError("tokenizer_invalid", f"{path}: {e}", "Save the tokenizer again.") from None
    return data if isinstance(data, dict) else {}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        value = settings.get(key)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            found[key] = value
    return found


def _compile(text: str, today: str, trusted: bool) -> Any:
    """Compile with the environment that Hugging Face's ``apply_chat_template`` has.

    Args:
        trusted: the template is ours and needs no sandbox, which takes a third of the time.
    """
    from jinja2 import Environment, TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    used: set[str] = set()

    class Generation(Extension):
        """``{% generation %}``: the block's text, between two marks."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            used.add("generation")
            mark = [nodes.Output([nodes.TemplateData(m)]).set_lineno(line) for m in (START, END)]
            return [mark[0], nodes.Scope(body).set_lineno(line), mark[1]]

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.combine(date.fromisoformat(today), time()).strftime(pattern)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    kind = Environment if trusted else ImmutableSandboxedEnvironment
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    environment.used = used  # type: ignore[attr-defined]
    return environment.from_string(text)

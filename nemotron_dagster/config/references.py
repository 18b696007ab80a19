"""Interpolations in profiles: resolved one value at a time, while secrets stay references until a job is submitted.

``${oc.env:HF_TOKEN}`` in a profile names a secret; the resolved profile is printed, hashed and handed around, so it
keeps the reference. ``reveal`` turns it into the value at the moment of submission.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_dagster.config.grammar import unescape
from nemotron_dagster.config.interpolation import Path, Resolution, Resolver, Unresolved, keep, settled
from nemotron_dagster.config.keys import leaves
from nemotron_dagster.config.oc_resolvers import BUILTIN
from nemotron_dagster.config.resolvers import Variables
from nemotron_dagster.errors import ProfileError

_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_]\w*)\s*(,)?")


class _Profile(Resolution):
    no_key = "the profile has no key {!r}"
    no_resolver = "profiles know ${{oc.env:NAME}} and ${{key}}, not ${{{}:...}}"


def resolve(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Path, Unresolved]]:
    """The data with its interpolations resolved, and the values that could not be: left as written, with the reason.

    What comes out is a config again: secrets and ``${auto_mount:...}`` are references in it, a literal ``${`` is
    escaped.
    """
    failed: dict[Path, Unresolved] = {}
    if not any(isinstance(v, str) and "${" in v for _, v in leaves(data)):
        return settled(data), failed
    # only a target can carry an auto_mount out
    mount: Resolver = lambda resolution, path, args: keep("auto_mount", args)  # noqa: E731
    resolution = _Profile(data, {**BUILTIN, "oc.env": Variables(os.environ).resolver(), "auto_mount": mount})

    def read(node: Any, path: Path) -> Any:
        if isinstance(node, Mapping):
            return {k: read(v, (*path, k)) for k, v in node.items()}
        if isinstance(node, list):
            return [read(v, (*path, i)) for i, v in enumerate(node)]
        try:
            return resolution.value(path)
        except Unresolved as e:
            failed[path] = e
            return node

    return settled(read(data, ())), failed


def unset_secrets(value: Any, environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """``(path, variable)`` of every kept reference whose variable is not set and has no default."""
    for path, leaf in leaves(value):
        for match in _VARIABLE.finditer(leaf if isinstance(leaf, str) else ""):
            if not match[2] and match[1] not in environ:
                yield path, match[1]


def holds_reference(text: str) -> bool:
    """Whether a resolved value refers to a variable whose value is not known yet; the shell's own ``${X}`` is none."""
    return bool(_VARIABLE.search(text))


def reveal(text: str) -> str:
    """The value of a string that may hold references to environment variables; for the moment of submission only.

    Raises:
        ProfileError: a variable is not set and has no default; the message names it, never a value.
    """
    variables = Variables(os.environ, revealed=True)
    try:
        found = Resolution({"text": text}, {**BUILTIN, "oc.env": variables.resolver()}).value(("text",))
    except Unresolved as e:
        what = f"{e.variable} is not set" if e.variable else f"{text} cannot be resolved: {e.reason}"
        fix = f"Export {e.variable}" if e.variable else "Use ${oc.env:NAME}"
        raise ProfileError(f"{what}, and the profile passes it to the job. {fix}, then submit again.") from None
    return unescape(str(found))

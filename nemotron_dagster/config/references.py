"""Interpolations in profiles: resolved one value at a time, while secrets stay references until a job is submitted.

``${oc.env:HF_TOKEN}`` in a profile names a secret; the resolved profile is printed, hashed and handed around, so it
keeps the reference. ``reveal`` turns it into the value at the moment of submission.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.config.secrets import is_secret

Path = tuple[str | int, ...]

_OPEN = re.compile(r"\$\{\s*(oc\.env|auto_mount)\s*:\s*([A-Za-z_]\w*)?")
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_]\w*)\s*(,)?")
#: An identifier, so that it may stand inside another interpolation; random, so that no file can hold it by chance.
_MARK = f"kept{secrets.token_hex(6)}x"


@dataclass(frozen=True)
class Unresolved:
    """A value that cannot be resolved.

    Attributes:
        variable: the environment variable that is not set, or None where the reference itself is wrong.
    """

    text: str
    reason: str
    variable: str | None = None


def shield(value: Any, kept: list[str], key: str = "") -> Any:
    """A copy in which references that must stay are marks; ``kept`` collects them.

    Those are variables that are secret by their own name or by the key that they fill, and ``${auto_mount:...}``,
    which only a target can carry out.
    """
    if isinstance(value, Mapping):
        return {k: shield(v, kept, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [shield(v, kept, key) for v in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    parts, at = [], 0
    while match := _OPEN.search(value, at):
        end = _closing(value, match.start())
        if end is None:
            break
        stays = match[1] == "auto_mount" or is_secret(match[2] or "") or is_secret(key)
        upto = end if stays else match.end()  # what is nested in the others is looked at in its turn
        parts.append(value[at : match.start()])
        if stays:
            parts.append(f"{_MARK}{len(kept)}x")
            kept.append(value[match.start() : end])
        else:
            parts.append(value[match.start() : upto])
        at = upto
    return "".join([*parts, value[at:]])


def unshield(value: Any, kept: list[str]) -> Any:
    """The same data with the references back in place of their marks."""
    if isinstance(value, Mapping):
        return {k: unshield(v, kept) for k, v in value.items()}
    if isinstance(value, list):
        return [unshield(v, kept) for v in value]
    if isinstance(value, str) and _MARK in value:
        return re.sub(rf"{_MARK}(\d+)x", lambda m: kept[int(m[1])], value)
    return value


def resolve(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Path, Unresolved]]:
    """The data with its interpolations resolved, and the values that could not be: left as written, with the reason."""
    if not any("${" in text for text in _texts(data)):
        return _plain(data), {}
    from omegaconf import OmegaConf

    kept: list[str] = []
    shielded = shield(data, kept)
    failed: dict[Path, Unresolved] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ${oc.env:NAME,} is an empty default, as people write it
        values = _walk(OmegaConf.create(_well_formed(shielded, (), failed)), (), failed)
    found = {p: Unresolved(unshield(u.text, kept), unshield(u.reason, kept), u.variable) for p, u in failed.items()}
    return unshield(values, kept), found


def unset_secrets(value: Any, environ: Mapping[str, str], path: Path = ()) -> Iterator[tuple[Path, str]]:
    """``(path, variable)`` of every kept reference whose variable is not set and has no default."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from unset_secrets(inner, environ, (*path, key))
    if isinstance(value, str):
        for match in _VARIABLE.finditer(value):
            if not match[2] and match[1] not in environ:
                yield path, match[1]


def reveal(text: str) -> str:
    """The value of a string that may hold references to environment variables; for the moment of submission only.

    Raises:
        ProfileError: a variable is not set and has no default; the message names it, never a value.
    """
    if "${" not in text:
        return text
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from nemotron_dagster.errors import ProfileError

    try:
        return str(OmegaConf.create({"v": text})["v"])
    except OmegaConfBaseException:
        missing = [name for _, name in unset_secrets(text, _environ())]
        what = f"{', '.join(missing)} is not set" if missing else f"{text} cannot be resolved"
        fix = f"Export {missing[0]}" if missing else "Use ${oc.env:NAME}"
        raise ProfileError(f"{what}, and the profile passes it to the job. {fix}, then submit again.") from None


def _environ() -> Mapping[str, str]:
    import os

    return os.environ


def _closing(text: str, start: int) -> int | None:
    depth = 0
    for i in range(start, len(text)):
        if text.startswith("${", i):
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i + 1
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _well_formed(value: Any, path: Path, failed: dict[Path, Unresolved]) -> Any:
    """The data without the strings that are no interpolation by their grammar: OmegaConf refuses the whole for one."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(value, Mapping):
        return {k: _well_formed(v, (*path, k), failed) for k, v in value.items()}
    if isinstance(value, list):
        return [_well_formed(v, (*path, i), failed) for i, v in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        try:
            OmegaConf.create({"v": value})
        except OmegaConfBaseException:
            failed[path] = Unresolved(value, "a ${...} in it is malformed")
            return None
    return value


def _walk(node: Any, path: Path, failed: dict[Path, Unresolved]) -> Any:
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    written: Any = OmegaConf.to_container(node, resolve=False)
    keys: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    out: list[tuple[Any, Any]] = []
    for key in keys:
        here = (*path, key)
        if here in failed:
            out.append((key, failed[here].text))
            continue
        text = str(written[key])
        try:
            value = node[key]
            if isinstance(value, (DictConfig, ListConfig)) and OmegaConf.is_interpolation(node, key):
                value = OmegaConf.to_container(value, resolve=True)
        except InterpolationToMissingValueError:
            failed[here] = Unresolved(text, "it refers to a value that is ???")
            value = text
        except RecursionError:
            failed[here] = Unresolved(text, "it refers to itself")
            value = text
        except OmegaConfBaseException as e:
            failed[here] = _reason(text, e)
            value = text
        out.append((key, _walk(value, here, failed) if isinstance(value, (DictConfig, ListConfig)) else value))
    return dict(out) if isinstance(node, DictConfig) else [v for _, v in out]


def _reason(text: str, error: Exception) -> Unresolved:
    said = str(getattr(error, "msg", None) or error).splitlines()[0].strip()
    missing = re.search(r"Environment variable '([^']+)' not found", said)
    if missing:
        return Unresolved(text, f"variable {missing[1]} is not set", missing[1])
    key = re.search(r"Interpolation key '([^']+)' not found", said)
    if key:
        return Unresolved(text, f"the profile has no key {key[1]!r}")
    resolver = re.search(r"[Uu]nsupported interpolation type (\S+)", said)
    if resolver:
        return Unresolved(text, f"profiles know ${{oc.env:NAME}} and ${{key}}, not ${{{resolver[1]}:...}}")
    return Unresolved(text, said.rstrip("."))

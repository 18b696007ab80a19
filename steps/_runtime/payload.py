"""The contract between a payload and whoever started it.

A payload is started as ``python step.py --config FILE``. It reads one YAML file,
writes its output below the path that the file names, and reports through
JSON lines appended to the file named by ``NEMOTRON_MESSAGES``:

    {"v": 1, "type": "progress", "time": float, "step": int|null, "total": int|null, "metrics": {str: float}}
    {"v": 1, "type": "result",   "time": float, "facts": {str: json}}
    {"v": 1, "type": "error",    "time": float, "name": str, "message": str, "recovery": str}

Without ``NEMOTRON_MESSAGES`` the same messages are printed for a person. The
exit status is the truth: 0 done, ``BAD_INPUT`` for input that a person must
mend, ``NOT_BUILT`` for a step without a payload, anything else a crash.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROTOCOL_VERSION = 1
BAD_INPUT = 3
NOT_BUILT = 9

SPLIT_KEYS = ("train", "val", "test")  # of a data step's manifest.json: paths, relative to it or absolute
_MAX_NODES = 250_000  # of a config, its interpolations resolved; OmegaConf alone stops at 10,000
_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")  # to YAML 1.1 some of these are text


class PayloadError(Exception):
    """Something the person who started the run can mend.

    Args:
        name: an error name from the step's manifest where one fits.
        message: what is wrong, naming the file, line, key or value.
        recovery: the next action.
    """

    def __init__(self, name: str, message: str, recovery: str = "") -> None:
        super().__init__(message)
        self.name, self.message, self.recovery = name, message, recovery


def _send(kind: str, **fields: Any) -> bool:
    if int(os.environ.get("RANK", "0")) != 0:
        return True  # one rank speaks for all
    path = os.environ.get("NEMOTRON_MESSAGES")
    if not path:
        return False
    line = json.dumps({"v": PROTOCOL_VERSION, "type": kind, "time": time.time(), **fields}, default=str)
    with open(path, "a", encoding="utf-8") as out:
        out.write(line + "\n")  # one write of one line: readers see whole lines
    return True


def progress(step: int | None = None, total: int | None = None, **metrics: float) -> None:
    """Say how far the work is: ``step`` of ``total``, with current metrics (loss, lr, tokens_per_second, rows ...)."""
    if not _send("progress", step=step, total=total, metrics=metrics):
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items())
        print(f"[{step}/{total}] {shown}" if step is not None else shown, flush=True)


def result(**facts: Any) -> None:
    """Record facts about the finished work (counts, settings actually used); they land in the artifact's manifest."""
    if not _send("result", facts=facts):
        print(json.dumps(facts, indent=2, default=str), flush=True)


def load_config(default: Path, argv: list[str] | None = None, literal: Sequence[str] = ()) -> dict[str, Any]:
    """Read ``--config FILE`` (default: ``default``), resolve its interpolations and return plain data.

    Those below the root keys ``literal`` stay as they are written.

    ``${oc.env:NEMOTRON_STEP_DIR}`` names the step's own folder, whoever started it.

    Raises:
        PayloadError: the file is missing, is not a mapping, or has a value that does not resolve.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, default=default)
    args, _ = parser.parse_known_args(argv)
    os.environ.setdefault("OMEGACONF_MAX_YAML_EXPANDED_NODES", str(_MAX_NODES))
    from omegaconf import OmegaConf  # heavy, and absent where only the protocol is needed
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OmegaConf 2.4 renamed it to what in 2.3 is another function
        for name, resolver in {"manifest": _manifest, "mul": _product}.items():
            OmegaConf.register_new_resolver(name, resolver, replace=True)
    os.environ.setdefault("NEMOTRON_STEP_DIR", str(default.resolve().parent.parent))
    if not args.config.is_file():
        raise PayloadError("config_missing", f"{args.config}: no such file", "Pass --config FILE.")
    try:
        written = args.config.read_text(encoding="utf-8")
        if "${" in written:
            loaded = OmegaConf.to_container(OmegaConf.load(args.config), resolve=False)
            if isinstance(loaded, dict):
                kept = {k: loaded.pop(k) for k in literal if k in loaded}
                loaded = {**OmegaConf.to_container(OmegaConf.create(loaded), resolve=True), **kept}
        else:
            loaded = {} if (found := _plain(written)) is None else found
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as e:
        if isinstance(e.__cause__, PayloadError):
            raise e.__cause__ from e
        text = " ".join(str(e).split())
        raise PayloadError(
            "config_invalid", f"{args.config}: {text}", "Give that key a value, or mend the file."
        ) from e
    if not isinstance(loaded, dict):
        raise PayloadError("config_invalid", f"{args.config}: not a mapping", "Write `key: value` lines.")
    return {str(k): v for k, v in loaded.items() if k != "run"}


def _plain(text: str) -> Any:
    """A config without interpolations, read as OmegaConf reads YAML; it would take many seconds for many values."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if str(key.value) in seen and key.tag != f"{_TAG}merge":
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
                seen.add(str(key.value))
            return dict(super().construct_mapping(node, deep=deep))

    known = {c: [r for r in rs if r[0] != f"{_TAG}timestamp"] for c, rs in base.yaml_implicit_resolvers.items()}
    Loader.yaml_implicit_resolvers = known
    Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789"))
    return yaml.load(text, Loader=Loader)


def _manifest(directory: str, key: str) -> str:
    """``${manifest:DIR,KEY}``: a value of the ``manifest.json`` that a data step wrote to DIR.

    A relative path of a split's files counts from DIR.

    Raises:
        PayloadError: no such file, or it has no such key.
    """
    file = Path(directory).expanduser() / "manifest.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PayloadError("config_invalid", f"{file}: {e}", "Run the data step, or give the path itself.") from e
    if not isinstance(data, dict) or key not in data:
        has = ", ".join(data) if isinstance(data, dict) else ""
        raise PayloadError("config_invalid", f"{file}: has no key {key!r}; it has: {has or 'nothing'}", "Mend the key.")
    value = str(data[key])
    return str(file.parent / value) if key in SPLIT_KEYS and value else value


def _product(*factors: float) -> float:
    """``${mul:a,b}`` of NeMo-RL."""
    return math.prod(factors)


def run(main: Callable[[dict[str, Any]], None], default_config: Path, literal: Sequence[str] = ()) -> NoReturn:
    """Run ``main(config)`` and exit with the contract's status; a ``PayloadError`` is told without a traceback."""
    try:
        main(load_config(default_config, literal=literal))
    except PayloadError as e:
        _send("error", name=e.name, message=e.message, recovery=e.recovery)
        print(f"error: {e.message}" + (f"\n{e.recovery}" if e.recovery else ""), file=sys.stderr, flush=True)
        sys.exit(BAD_INPUT)
    sys.exit(0)


def not_built(step_id: str) -> NoReturn:
    """For a step whose manifest is here and whose payload is not."""
    message = f"{step_id} is in the catalog, but its payload is not built yet; nothing was run."
    _send("error", name="payload_not_built", message=message, recovery="See `nemotron steps show` for its contract.")
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(NOT_BUILT)

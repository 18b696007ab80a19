"""Preflight rules about paths: what is not there, what lies in what, what is of the wrong kind."""

from __future__ import annotations

from pathlib import Path

from nemotron_dagster.config.guardrail_case import strings
from nemotron_dagster.jobs.inputs import is_elsewhere
from nemotron_dagster.jobs.preflight_case import Case, directory, is_path

#: Keys of models that no port stands for.
_SOURCES = ("args.student_hf_path", "hf_model_path", "base_hf_path", "policy.model_name")
_OUTPUTS = ("args.hf_export_path", "output_megatron_path")
_MADE_ON_THE_SPOT = "tiny_llama"  # the untrained model of the tiny configs


def given(case: Case, port: str) -> str:
    """A required input that nobody gives, a placeholder, or a path at which nothing is."""
    found = case.port(port)
    if not found.bind or port in case.spec.bound:
        return ""
    value = case.value(found.bind)
    if value in (None, "", []):
        making = _MADE_ON_THE_SPOT in strings(case.spec.train)
        return "" if making or not found.required else f"{found.bind} is not given."
    if not isinstance(value, str) or is_elsewhere(case.spec.external.get(port, value)):
        return ""
    if value.startswith("/path/to/"):
        return f"{found.bind}={value} is a placeholder."
    here = Path(case.spec.external.get(port, value)).expanduser()
    local = port in case.spec.external or case.spec.profile in (None, "local")
    exists = any(here.parent.glob(here.name)) if "*" in here.name else here.exists()
    return (
        f"{found.bind}={value}: nothing is there." if local and here.is_absolute() and not _above(exists, here) else ""
    )


def apart(case: Case) -> str:
    """An output in an input or around it; links are followed."""
    step = case.spec.step
    outputs = {p.bind: str(case.value(p.bind) or "") for p in step.produces[1:] if p.bind}
    outputs |= {k: str(case.value(k) or "") for k in _OUTPUTS}
    first = step.produces[0].bind
    if first and case.spec.explicit_output is not None:
        outputs[first] = str(case.spec.explicit_output)
    sources = [p.bind for p in step.consumes if p.bind] + list(_SOURCES)
    for source in dict.fromkeys(sources):
        text = case.value(source)
        if not isinstance(text, str) or not is_path(text):
            continue
        there = directory(text)
        for key, output in outputs.items():
            if not output or key == source:
                continue
            place = Path(output).expanduser().absolute().resolve()
            if place == there or there in place.parents or place in there.parents:
                return f"{key}={output} and {source}={text} overlap."
    return ""


def no_parquet(case: Case) -> str:
    """Packed shards where AutoModel wants the rows that were packed."""
    port = case.spec.step.consumes[0]
    text = case.value(port.bind or "")
    if not isinstance(text, str) or not text:
        return ""
    path = Path(case.spec.external.get(port.name, text)).expanduser()
    packed = path.suffix == ".parquet" or (
        path.is_dir() and any(path.rglob("*.parquet")) and not any(path.rglob("*.jsonl*"))
    )
    return f"{port.bind}={text} is Parquet; AutoModel reads JSONL and tokenizes by itself." if packed else ""


def hf_source(case: Case) -> str:
    """The architecture of an export, which a Megatron checkpoint may name itself."""
    name = case.value("hf_model_id")
    if isinstance(name, str) and name:
        lacks = (
            is_path(name)
            and case.spec.profile in (None, "local")
            and not (Path(name).expanduser() / "config.json").is_file()
        )
        return f"hf_model_id={name} has no config.json." if lacks else ""
    path = case.value("megatron_path")
    file = Path(path) / "run_config.yaml" if isinstance(path, str) else None
    named = file is not None and (
        not file.is_file() or "hf_model_id" in file.read_text(encoding="utf-8", errors="replace")
    )
    return "" if named else "hf_model_id is not given, and the checkpoint names no model."


def judge_apart(case: Case) -> str:
    """A policy that judges itself."""
    judge = next((p for p in case.spec.step.consumes if p.type == "checkpoint_hf" and "genrm" in (p.bind or "")), None)
    if judge is None or judge.name not in (*case.spec.bound, *case.spec.external):
        return ""
    names = [case.value("policy.model_name"), case.value(judge.bind or "")]
    places = [str(Path(n).expanduser().resolve()) if isinstance(n, str) and is_path(n) else n for n in names]
    return f"policy.model_name and {judge.bind} are both {names[0]}." if places[0] == places[1] else ""


def _above(exists: bool, path: Path) -> bool:
    """Whether something is there: of a glob in a directory, whether the directory is."""
    return exists or ("*" in str(path) and directory(str(path)).is_dir())

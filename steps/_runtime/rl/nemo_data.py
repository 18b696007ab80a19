"""Hands rows over to NeMo-RL: its dataset classes read one file per split, by keys that follow from the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _runtime import chat_data
from _runtime.payload import PayloadError
from _runtime.rl import layouts, rewards
from _runtime.rl.data import GIVE, TRAIN, VALIDATION, Source
from _runtime.rl.settings import at, drop, put

#: NeMo-RL's classes that read files; others download rows of their own and ignore paths.
READS_FILES = {
    "dpo": ("BinaryPreferenceDataset", "PreferenceDataset"),
    "grpo": ("ResponseDataset",),
    "gym": ("NemoGymDataset",),
}
OURS = ("data.manifest_path", "data.allow_train_as_validation", "data.default_agent_ref", "data.normalized_data_dir")


def hand_over(cfg: dict[str, Any], source: Source | None, kind: str, folder: Path) -> dict[str, Any]:
    """Make ``data`` of the config what NeMo-RL reads (``kind``: dpo, grpo or gym); returns the facts of it.

    Files that have to be joined or completed are written below ``folder``.

    Raises:
        PayloadError: rows of another layout, or none where they are needed.
    """
    agent = _default_agent(cfg)
    for key in OURS:
        drop(cfg, key)
    if source is None:
        if kind == "gym":
            raise PayloadError("dataset_missing", f"{TRAIN} is not set", GIVE)
        for key in (TRAIN, VALIDATION):
            if not chat_data.given(at(cfg, key)):
                drop(cfg, key)
        return {"dataset": at(cfg, "data.train.dataset_name") or at(cfg, "data.default.dataset_name")}
    reader = _reader(cfg, source, kind)
    rows = {}
    for split, files in (("train", source.train), ("validation", source.validation)):
        if not files:
            continue
        target = folder / f"{split}.jsonl"
        path = _one_file(files, target, agent) if kind == "gym" else _joined(files, target)
        rows[split] = _check([path], f"data.{split}.data_path", kind, reader)
        drop(cfg, f"data.{split}.split")  # a file has no splits, so that asking for one would fail
        for key, value in {"data_path": str(path), **reader}.items():
            put(cfg, f"data.{split}.{key}", value)
    if not source.validation:
        put(cfg, "data.validation", None)
        section = "dpo" if kind == "dpo" else "grpo"
        for key, value in {"val_period": 0, "val_at_start": False, "val_at_end": False}.items():
            put(cfg, f"{section}.{key}", value)
        print("no validation rows: validation is off", flush=True)
    print(f"NeMo-RL reads {rows} rows with {reader}", flush=True)
    return {"dataset": reader["dataset_name"], "rows": rows["train"], "validation_rows": rows.get("validation", 0)}


def _reader(cfg: Mapping[str, Any], source: Source, kind: str) -> dict[str, str]:
    """The keys by which NeMo-RL reads the rows: the config's where its class reads files, else what suits them."""
    name = str(at(cfg, "data.train.dataset_name") or at(cfg, "data.default.dataset_name") or "")
    fitting = READS_FILES[kind]
    made_for = source.reader.get("dataset_name")
    if made_for and made_for not in fitting:
        raise PayloadError(
            "mixed_nemo_gym_and_upstream_config" if kind != "dpo" else "dataset_invalid",
            f"{source.manifest}: its rows are for {made_for}; this config reads {' or '.join(fitting)}",
            "Take data and env of the config that fits: nemo_gym with env.should_use_nemo_gym=true for NeMo-Gym rows.",
        )
    if name in fitting or "." in name:
        named = {k: v for k in ("input_key", "output_key") if (v := at(cfg, f"data.default.{k}"))}
        return {**({} if "." in name else dict(source.reader)), **named, "dataset_name": name}
    if name:
        print(f"data.default.dataset_name={name} downloads rows of its own; yours are read instead", flush=True)
    return dict(source.reader) if made_for else _guess(source.train, kind)


def _guess(files: tuple[Path, ...], kind: str) -> dict[str, str]:
    first = next((row for file in files for _, row in chat_data.rows(file) if isinstance(row, dict)), {})
    if kind == "gym":
        return {"dataset_name": "NemoGymDataset"}
    if kind == "dpo":
        return {"dataset_name": "PreferenceDataset" if "completions" in first else "BinaryPreferenceDataset"}
    asked = next((k for k in layouts.PROMPTS if first.get(k)), "prompt")
    answer = next((k for k in rewards.ANSWERS if first.get(k)), "expected_answer")
    return {"dataset_name": "ResponseDataset", "input_key": asked, "output_key": answer}


def _check(files: list[Path], key: str, kind: str, reader: Mapping[str, str]) -> int:
    """The number of rows, all of which the dataset class can read."""
    if "." in reader["dataset_name"]:
        return sum(1 for file in files for _ in chat_data.rows(file))

    def row(row: Mapping[str, Any]) -> None:
        if kind == "dpo":
            layouts.preference(row)
            ranked = reader["dataset_name"] == "PreferenceDataset"
            if ranked != ("completions" in row) or not (ranked or isinstance(row["chosen"], str)):
                raise layouts.Fault("dataset_invalid", f"not in the layout that {reader['dataset_name']} reads")
        elif kind == "gym":
            layouts.prompt(row)
        else:
            asked, answer = reader.get("input_key", "input"), reader.get("output_key", "output")
            for name in (asked, answer):
                if "messages" not in row and not isinstance(row.get(name), str):
                    raise layouts.Fault("missing_verifier_fields", f"no text {name!r}; it has {', '.join(row)[:200]}")

    return len(layouts.read(files, key, row))


def _joined(files: tuple[Path, ...], target: Path) -> Path:
    if len(files) == 1:
        return files[0]
    return _written(target, (row for file in files for _, row in chat_data.rows(file)))


def _one_file(files: tuple[Path, ...], target: Path, agent: Mapping[str, str] | None) -> Path:
    """The rows as NeMo-Gym tasks: with ``responses_create_params`` and ``agent_ref``."""
    changed = len(files) > 1

    def complete() -> Iterator[dict[str, Any]]:
        nonlocal changed
        for file in files:
            for place, row in chat_data.rows(file):
                try:
                    made = task(row, agent)
                except layouts.Fault as e:
                    raise PayloadError(e.name, f"{place}: {e}", "Prepare the rows with data_prep/rl_prep.") from None
                changed = changed or made != row
                yield made

    path = _written(target, complete())
    if changed:
        return path
    path.unlink()
    return files[0]


def task(row: Any, agent: Mapping[str, str] | None) -> dict[str, Any]:
    """A row as a NeMo-Gym task; ``agent`` answers where it names none.

    Raises:
        Fault: it asks nothing, or no agent is named.
    """
    if not isinstance(row, dict):
        raise layouts.Fault("dataset_invalid", f"a {type(row).__name__}, not an object")
    made = dict(row)
    extra = row.get("extra_env_info")
    if not isinstance(row.get("responses_create_params"), dict):
        inner = extra.get("responses_create_params") if isinstance(extra, dict) else None
        tools = {"tools": row["tools"]} if row.get("tools") else {}
        made["responses_create_params"] = inner if isinstance(inner, dict) else {"input": layouts.prompt(row), **tools}
    ref = row.get("agent_ref")
    if not (isinstance(ref, dict) and ref.get("type") and ref.get("name")):
        if agent is None:
            raise layouts.Fault("missing_verifier_fields", "no `agent_ref`, and data.default_agent_ref is not set")
        made["agent_ref"] = dict(agent)
    return made


def _default_agent(cfg: Mapping[str, Any]) -> dict[str, str] | None:
    said = at(cfg, "data.default_agent_ref")
    if isinstance(said, dict) and said.get("type") and said.get("name"):
        return {"type": str(said["type"]), "name": str(said["name"])}
    named = said if isinstance(said, str) else None
    if named is None and at(cfg, "env.use_genrm_compare"):
        named = str((at(cfg, "env.genrm_agent_names") or ["genrm_simple_agent"])[0])
    return {"type": "responses_api_agents", "name": named} if named else None


def _written(target: Path, rows: Iterator[Any]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return partial.replace(target)

"""The config of eval/model_eval, checked before anything heavy is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from _runtime.payload import PayloadError

BACKENDS = ("lm_eval", "nemo_evaluator")
PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. ``key`` never leaves the process."""

    url: str
    model_id: str
    type: str
    key_name: str | None = None
    key: str | None = field(default=None, repr=False)
    tokenizer: str | None = None
    parallelism: int = 1
    max_retries: int = 5
    request_timeout: int = 300


@dataclass(frozen=True)
class Settings:
    """What one lm-evaluation-harness run needs."""

    output_dir: Path
    tasks: list[str]
    tasks_dir: Path | None
    endpoint: Endpoint | None
    checkpoint: Path | None
    adapter: Path | None
    untrained: Path | None
    baseline: Path | None
    num_fewshot: int | None
    limit: float | None
    batch_size: int | str
    apply_chat_template: bool
    seed: int
    device: str
    dtype: str


def backend(cfg: dict[str, Any]) -> str:
    """Which backend a config is for: what ``backend`` says, else the Launcher's if the config has its shape."""
    named = cfg.get("backend")
    if named is None:
        launcher = any(isinstance(cfg.get(k), dict) for k in ("evaluation", "execution", "deployment"))
        return "nemo_evaluator" if launcher else "lm_eval"
    return _one_of("backend", named, BACKENDS)


def read(cfg: dict[str, Any]) -> Settings:
    """Check a config of the lm_eval backend.

    Raises:
        PayloadError: the first thing a person has to mend.
    """
    target = _section(cfg, "target")
    endpoint = _endpoint(_section(target, "api_endpoint"))
    checkpoint, adapter = _path(target, "checkpoint"), _path(target, "adapter")
    untrained = _path(target, "untrained")
    if endpoint and checkpoint:
        raise PayloadError(
            "two_targets",
            f"target.checkpoint ({checkpoint}) and target.api_endpoint.url ({endpoint.url}) are both set.",
            "Evaluate one model per run: set one of them to null.",
        )
    if not (endpoint or checkpoint or untrained):
        raise PayloadError(
            "no_target",
            "Nothing to evaluate: target.checkpoint and target.api_endpoint.url are both empty.",
            "Set target.checkpoint=DIR (a Hugging Face model directory) or target.api_endpoint.{url,model_id,type}.",
        )
    if adapter and not checkpoint:
        raise PayloadError(
            "bad_hf_checkpoint",
            f"target.adapter ({adapter}) needs its base model.",
            "Set target.checkpoint to the adapter's base model.",
        )
    if checkpoint:
        check_checkpoint(checkpoint)
    if adapter:
        _require(adapter, "target.adapter", ["adapter_config.json"], ["adapter_model.safetensors", "adapter_model.bin"])
    limit = _number(cfg, "limit", None)
    if limit is not None and limit <= 0:
        raise PayloadError(
            "no_samples",
            f"limit={limit:g} leaves no samples.",
            "Use limit=null for all samples, a count of at least 1, or a fraction below 1.",
        )
    return Settings(
        output_dir=Path(_text(cfg, "output_dir", "./results")),
        tasks=_tasks(cfg),
        tasks_dir=_path(cfg, "tasks_dir"),
        endpoint=endpoint,
        checkpoint=checkpoint,
        adapter=adapter,
        untrained=None if endpoint or checkpoint else untrained,
        baseline=_path(cfg, "baseline"),
        num_fewshot=_whole(cfg, "num_fewshot", None, 0),
        limit=limit,
        batch_size=_batch_size(cfg.get("batch_size", 1)),
        apply_chat_template=_flag(cfg, "apply_chat_template", False),
        seed=_whole(cfg, "seed", 1234, 0) or 0,
        device=_one_of("device", cfg.get("device", "auto"), ("cpu", "auto")),
        dtype=_one_of("dtype", cfg.get("dtype", "auto"), ("auto", "float32", "bfloat16", "float16")),
    )


def check_checkpoint(directory: Path) -> None:
    """Refuse a directory that is not a whole Hugging Face model."""
    if not directory.is_dir():
        raise PayloadError(
            "bad_hf_checkpoint",
            f"target.checkpoint: {directory}: no such directory.",
            "Give a Hugging Face model directory (config.json, safetensors, tokenizer).",
        )
    if any(directory.glob("iter_*")) or (directory / "run_config.yaml").is_file():
        raise PayloadError(
            "bad_hf_checkpoint",
            f"target.checkpoint: {directory} is a Megatron checkpoint, not a Hugging Face one.",
            "Convert it with convert/megatron_to_hf first, or use -c default with deployment.checkpoint_path.",
        )
    _require(directory, "target.checkpoint", ["config.json"], ["*.safetensors", "pytorch_model*.bin"], TOKENIZER)


TOKENIZER = ["tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"]


def _require(directory: Path, key: str, *alternatives: list[str]) -> None:
    for names in alternatives:
        if not any(path.stat().st_size for name in names for path in directory.glob(name)):
            raise PayloadError(
                "bad_hf_checkpoint",
                f"{key}: {directory} holds no {' or '.join(names)}.",
                "Point at the directory that the training step names as its artifact; copy the missing files there.",
            )


def _endpoint(section: dict[str, Any]) -> Endpoint | None:
    where = "target.api_endpoint"
    url = _text(section, "url", "", where)
    if not url:
        if section.get("model_id"):
            raise PayloadError("no_target", f"{where}.model_id is set, {where}.url is not.", f"Set {where}.url.")
        return None
    kind = _one_of(f"{where}.type", section.get("type", "completions"), tuple(PATHS))
    model_id = _text(section, "model_id", "", where)
    if not model_id:
        raise PayloadError(
            "no_model_id",
            f"{where}.url is set, {where}.model_id is not.",
            "Give the exact id that the endpoint's /v1/models lists.",
        )
    key_name = _text(section, "api_key_name", "", where) or None
    key = os.environ.get(key_name) if key_name else None
    if key_name and not key:
        raise PayloadError(
            "missing_api_key",
            f"{where}.api_key_name: the environment variable {key_name} is not set.",
            f"export {key_name}=... or set {where}.api_key_name=null for an endpoint without a key.",
        )
    return Endpoint(
        url=_full_url(url, kind),
        model_id=model_id,
        type=kind,
        key_name=key_name,
        key=key,
        tokenizer=_text(section, "tokenizer", "", where) or None,
        parallelism=_whole(section, "parallelism", 1, 1, where) or 1,
        max_retries=_whole(section, "max_retries", 5, 1, where) or 1,
        request_timeout=_whole(section, "request_timeout", 300, 1, where) or 1,
    )


def _full_url(url: str, kind: str) -> str:
    parts = urlsplit(url)
    key = "target.api_endpoint.url"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PayloadError("endpoint_unreachable", f"{key}: not an http(s) address.", "Write http://host:port/v1.")
    if parts.username or parts.password:
        raise PayloadError(
            "missing_api_key",
            f"{key} holds a user name or password.",
            "Keep secrets out of configs: name the variable that holds the key in target.api_endpoint.api_key_name.",
        )
    path = parts.path.rstrip("/")
    chat = path.endswith(PATHS["chat"])
    if chat != (kind == "chat") and (chat or path.endswith(PATHS["completions"])):
        raise PayloadError(
            "wrong_endpoint_type",
            f"target.api_endpoint.type is {kind}, but the url ends with {path.rsplit('/v1', 1)[-1]}.",
            "Make type (chat | completions) and url agree.",
        )
    if not path.endswith(PATHS[kind]):
        path += PATHS[kind]
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _tasks(cfg: dict[str, Any]) -> list[str]:
    tasks = cfg.get("tasks")
    tasks = [tasks] if isinstance(tasks, str) else tasks
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) and t for t in tasks):
        raise PayloadError("unknown_task", f"tasks={tasks!r}: not a list of task names.", "Write tasks: [name, ...].")
    return list(dict.fromkeys(tasks))


def _batch_size(value: Any) -> int | str:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value  # type: ignore[no-any-return]
    raise _wrong("batch_size", value, "a whole number of at least 1, or auto")


def _section(cfg: dict[str, Any], key: str) -> dict[str, Any]:
    value = cfg.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(key, value, "a mapping")
    return value


def _text(cfg: dict[str, Any], key: str, default: str, where: str = "") -> str:
    value = cfg.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong(f"{where}.{key}" if where else key, value, "text")
    return value


def _path(cfg: dict[str, Any], key: str) -> Path | None:
    value = _text(cfg, key, "")
    return Path(value).expanduser().resolve() if value else None


def _number(cfg: dict[str, Any], key: str, default: float | None) -> float | None:
    value = cfg.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise _wrong(key, value, "a number or null")
    return value


def _whole(cfg: dict[str, Any], key: str, default: int | None, least: int, where: str = "") -> int | None:
    value = cfg.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(f"{where}.{key}" if where else key, value, f"a whole number of at least {least}")
    return value


def _flag(cfg: dict[str, Any], key: str, default: bool) -> bool:
    value = cfg.get(key, default)
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise _wrong(key, value, " or ".join(allowed))
    return str(value)


def _wrong(key: str, value: Any, wanted: str) -> PayloadError:
    return PayloadError("config_invalid", f"{key}={value!r}: must be {wanted}.", f"Set {key} to {wanted}.")

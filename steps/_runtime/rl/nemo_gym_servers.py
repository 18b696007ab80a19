"""The servers of NeMo-Gym as one mapping: its own config files, our settings over them, and the policy's URLs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _runtime.payload import PayloadError
from _runtime.rl.settings import at

#: The policy again, told not to think aloud: for servers that ask for it by this name.
WITHOUT_REASONING = "policy_model_reasoning_off"


def settled(said: Mapping[str, Any], model: str, urls: Any) -> dict[str, Any]:
    """``env.nemo_gym`` with its ``config_paths`` read, one implementation per model server, and the policy's alias.

    Raises:
        PayloadError: a config file of NeMo-Gym is not there.
    """
    servers = _with_files(said)
    for name, server in list(servers.items()):
        _one_implementation(servers, name, server)
    if WITHOUT_REASONING not in servers and _refers_to(servers, WITHOUT_REASONING):
        servers[WITHOUT_REASONING] = {
            "responses_api_models": {
                "vllm_model": {
                    "entrypoint": "app.py",
                    "base_url": urls,
                    "api_key": "dummy_key",
                    "model": model,
                    "return_token_id_information": True,
                    "uses_reasoning_parser": False,
                    "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
                }
            }
        }
    return servers


def _with_files(said: Mapping[str, Any]) -> dict[str, Any]:
    """Later files, and last our own settings, win."""
    from omegaconf import OmegaConf

    names = list(said.get("config_paths") or [])
    parts = []
    for name in names:  # grows while it is walked: files may name further ones
        part = OmegaConf.load(_file(str(name)))
        parts.append(part)
        names += [n for n in part.get("config_paths") or [] if n not in names]
    merged = OmegaConf.to_container(OmegaConf.merge(*parts, OmegaConf.create(dict(said))), resolve=False)
    assert isinstance(merged, dict)
    merged.pop("config_paths", None)
    return {str(k): v for k, v in merged.items()}


def _file(name: str) -> Path:
    folders = [Path.cwd()]
    spec = importlib.util.find_spec("nemo_gym")
    if spec and spec.origin:
        folders.append(Path(spec.origin).resolve().parent.parent)
    folders.append(Path("3rdparty/Gym-workspace/Gym").resolve())
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise PayloadError(
        "gym_config_missing",
        f"env.nemo_gym.config_paths: {name} is in none of {', '.join(map(str, folders))}",
        "Name a config file of the image's NeMo-Gym, or give an absolute path.",
    )


def _one_implementation(servers: dict[str, Any], name: str, server: Any) -> None:
    """NeMo-Gym takes one per server; where a file and our settings name two, the one with the server's name stays."""
    models = server.get("responses_api_models") if isinstance(server, dict) else None
    found = [k for k, v in models.items() if isinstance(v, dict)] if isinstance(models, dict) else []
    if not isinstance(models, dict) or not found:
        return
    kept = next((k for k in (name, "genrm_model", "vllm_model") if k in found), found[0])
    if len(models) > 1:
        print(f"{name}: {kept} serves it, not {', '.join(sorted(set(models) - {kept}))}", flush=True)
        for other in set(models) - {kept}:
            del models[other]
    text = str(models[kept].get("model") or "")
    if text.startswith("${") and text.endswith("}") and ":" not in text and at(servers, text[2:-1]) is not None:
        models[kept]["model"] = at(servers, text[2:-1])
    if models[kept].get("model"):
        servers.setdefault(f"{name}_name", models[kept]["model"])


def _refers_to(value: Any, name: str) -> bool:
    if isinstance(value, dict):
        here = value.get("type") == "responses_api_models" and value.get("name") == name
        return here or any(_refers_to(v, name) for v in value.values())
    return isinstance(value, list) and any(_refers_to(v, name) for v in value)

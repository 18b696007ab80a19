"""The scores once more as ``results.yml``, the form in which NeMo Evaluator writes them and its exporters read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

NAME = "results.yml"


def write(made: dict[str, Any], file: Path) -> None:
    """Write what a summary says. NeMo Evaluator names a filtered metric ``exact_match__strict-match``."""
    results: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    for score in made["scores"]:
        plain = score["filter"] in ("", "none")
        metric = score["metric"] if plain else f"{score['metric']}__{score['filter']}"
        stats = {name: score[key] for name, key in (("count", "n"), ("stderr", "stderr")) if score[key] is not None}
        task = results["groups" if score["group"] else "tasks"].setdefault(score["task"], {"metrics": {}})
        task["metrics"][metric] = {"scores": {metric: {"value": score["value"], "stats": stats}}}
    names = [*results["groups"], *results["tasks"]]
    content = {
        "config": {"type": ",".join(names)},
        "target": {"api_endpoint": {"model_id": made["model"]["name"], "url": made["model"]["endpoint"]}},
        "results": results,
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")

"""A Megatron checkpoint's parent directory feeds a step that wants one iteration: it gets the latest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT, add_step
from model_files import megatron

Nemotron = Callable[..., subprocess.CompletedProcess[str]]
HEAD, BODY = COUNT.split("def main(cfg):")
TRAIN = (
    HEAD
    + """def main(cfg):
    shutil.copytree(cfg["source"], cfg["output_dir"], dirs_exist_ok=True)


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
"""
)
EXPORT = (
    HEAD.replace("import shutil", "import json, shutil")
    + """def main(cfg):
    row = {"text": Path(cfg["path"]).name, "files": sorted(p.name for p in Path(cfg["path"]).iterdir())}
    (Path(cfg["output_dir"]) / "rows.jsonl").write_text(json.dumps(row) + "\\n")


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
"""
)
TRAIN_TOML = """
[step]
id = "demo/train"
name = "Train"
category = "demo"
description = "Copies a checkpoint."
[[produces]]
type = "checkpoint_megatron"
bind = "output_dir"
"""
EXPORT_TOML = """
[step]
id = "demo/{name}"
name = "Export"
category = "demo"
description = "Looks at an iteration."
[[consumes]]
type = "checkpoint_megatron"
bind = "path"
from = "demo/train"
locks = ["megatron_iteration"]
{more}
[[produces]]
type = "raw_jsonl"
bind = "output_dir"
"""


@pytest.fixture
def trained(project: Path, nemotron: Nemotron) -> Path:
    """A project whose demo/train published a parent directory; demo/export takes the latest, demo/plain does not."""
    config = "path: null\noutput_dir: ./out\n"
    add_step(project, "demo/train", TRAIN_TOML, TRAIN, default="source: null\noutput_dir: ./out\n")
    for name, more in (("export", "latest_iteration = true"), ("plain", "")):
        toml = EXPORT_TOML.format(name=name, more=more)
        add_step(project, f"demo/{name}", toml, EXPORT, default=config)
    megatron(project / "saved", iterations=(5, 10))
    (project / "saved/iter_0000020").mkdir()  # a save that was interrupted
    done = nemotron("steps", "run", "demo/train", f"source={project}/saved", cwd=project)
    assert done.returncode == 0, done.stderr
    return project


def artifact(project: Path, step: str) -> tuple[Path, dict[str, Any]]:
    folder = project / ".nemotron/artifacts" / step
    version = folder / json.loads((folder / "latest.json").read_text())["uri"]
    return version, json.loads((version / "artifact.json").read_text())


def test_the_step_gets_the_tracked_iteration_and_the_artifact_says_which_checkpoint(
    trained: Path, nemotron: Nemotron
) -> None:
    preview = nemotron("steps", "run", "demo/export", "-d", cwd=trained)
    checkpoint, manifest = artifact(trained, "demo/train")
    assert f"path: {checkpoint}/iter_0000010" in preview.stdout, preview.stdout + preview.stderr
    done = nemotron("steps", "run", "demo/export", cwd=trained)
    assert done.returncode == 0, done.stderr
    version, about = artifact(trained, "demo/export")
    row = json.loads((version / "rows.jsonl").read_text())
    assert row["text"] == "iter_0000010" and ".metadata" in row["files"]
    (used,) = about["inputs"]
    assert used["content"] == manifest["content"] and used["asset"] == ["demo", "train"]


def test_the_newest_iteration_on_disk_is_not_taken_where_the_tracker_names_another(
    trained: Path, nemotron: Nemotron
) -> None:
    (trained / "saved/latest_checkpointed_iteration.txt").write_text("5")
    assert nemotron("steps", "run", "demo/train", f"source={trained}/saved", cwd=trained).returncode == 0
    done = nemotron("steps", "run", "demo/export", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert json.loads((artifact(trained, "demo/export")[0] / "rows.jsonl").read_text())["text"] == "iter_0000005"


def test_without_it_the_lock_refuses_the_parent_and_names_the_iteration(trained: Path, nemotron: Nemotron) -> None:
    checkpoint, _ = artifact(trained, "demo/train")
    refused = nemotron("steps", "run", "demo/plain", cwd=trained)
    assert refused.returncode == 5 and f"Give path={checkpoint}/iter_0000010" in refused.stderr
    given = nemotron("steps", "run", "demo/plain", f"path={checkpoint}/iter_0000005", cwd=trained)
    assert given.returncode == 0, given.stderr


@pytest.mark.parametrize("step", ["convert/megatron_to_hf", "eval/model_eval"])
def test_the_steps_that_want_an_iteration_take_a_parent(trained: Path, nemotron: Nemotron, step: str) -> None:
    fits = nemotron("artifacts", "check", "demo/train", "--for", step, cwd=trained)
    assert fits.returncode == 0, fits.stdout + fits.stderr
    assert "iter_0000010 is one iteration" in fits.stdout


def test_a_parent_that_the_user_names_is_still_refused(trained: Path, nemotron: Nemotron) -> None:
    refused = nemotron("steps", "run", "demo/export", f"path={trained}/saved", cwd=trained)
    assert refused.returncode == 5 and f"Give path={trained}/saved/iter_0000010" in refused.stderr

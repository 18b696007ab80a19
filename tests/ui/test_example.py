"""The main job: examples/teach_a_skill really teaches."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO
from interpreters import payload_python
from ui_support import SHOTS, free_port, start_ui, stop_ui


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example after its pipeline ran."""
    for family in ("data", "train", "eval"):
        payload_python(family)
    folder = tmp_path_factory.mktemp("example") / "teach_a_skill"
    shutil.copytree(REPO / "examples/teach_a_skill", folder, ignore=shutil.ignore_patterns(".nemotron", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "nemotron_dagster.cli.main", "pipelines", "run", "teach_a_skill"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("NEMOTRON_", "DAGSTER_"))},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def artifact(folder: Path, node: str) -> Path:
    pointer = folder / ".nemotron/artifacts/teach_a_skill" / node / "latest.json"
    return pointer.parent / json.loads(pointer.read_text())["uri"]


def scores(folder: Path, node: str) -> dict[str, float]:
    summary = json.loads((artifact(folder, node) / "summary.json").read_text())
    return {s["task"]: s["value"] for s in summary["scores"]}


def test_the_model_is_near_chance_before_and_above_90_percent_after(taught: Path) -> None:
    before, after = scores(taught, "before"), scores(taught, "after")
    assert before["roman_numerals"] < 0.05 and abs(before["roman_numerals_choice"] - 0.25) < 0.1
    assert after["roman_numerals"] > 0.9 and after["roman_numerals_choice"] > 0.9


def test_the_command_prints_both_accuracies_and_where_everything_lies(taught: Path) -> None:
    text = (taught / "output.txt").read_text()
    assert re.search(r"roman_numerals exact_match before: 0\.\d+\n +roman_numerals exact_match: (0\.9|1\.0)", text)
    for node, picture in (("taught", "loss.png"), ("after", "scores.png"), ("curated", "attrition.png")):
        assert str(artifact(taught, node)) in text
        assert (artifact(taught, node) / "report" / picture).read_bytes().startswith(b"\x89PNG")


def test_lineage_leads_from_the_scores_back_to_the_rows(taught: Path) -> None:
    def inputs(node: str) -> dict[str, str]:
        manifest = json.loads((artifact(taught, node) / "artifact.json").read_text())
        return {i["port"]: i["uri"] for i in manifest["inputs"]}

    assert inputs("after") == {
        "checkpoint_hf": str(artifact(taught, "taught")),
        "baseline": str(artifact(taught, "before")),
    }
    assert inputs("taught")["training_jsonl"] == str(artifact(taught, "curated"))
    assert inputs("curated") == {"raw_jsonl": str(artifact(taught, "numerals"))}


def test_no_evaluated_number_is_in_the_training_rows(taught: Path) -> None:
    tasks = REPO / "steps/eval/model_eval/tasks/roman_numerals"
    asked = set()
    for file in tasks.glob("*.jsonl"):
        asked |= {int(n) for n in re.findall(r'"(?:number|n)": ?"?(\d+)', file.read_text())}
    trained = set()
    for shard in artifact(taught, "curated").glob("*.jsonl"):
        for line in shard.read_text().splitlines():
            question = json.loads(line)["messages"][0]["content"]
            trained |= {int(n) for n in re.findall(r"\d+", question)}
    assert len(asked) >= 250 and len(trained) > 3000
    assert not asked & trained


def test_the_checkpoint_loads_with_transformers_and_answers(taught: Path) -> None:
    folder = artifact(taught, "taught")
    path = folder / json.loads((folder / "artifact.json").read_text())["path"]
    program = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (c.from_pretrained(sys.argv[1]) for c in (AutoModelForCausalLM, AutoTokenizer))
chat = [{"role": "user", "content": "What is 1997 in Roman numerals?"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True))
"""
    done = subprocess.run(
        [payload_python("train"), "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.strip() == "MCMXCVII"


def test_the_ui_shows_its_lineage_and_its_pictures(taught: Path, browser: Any) -> None:
    ui = start_ui(taught, free_port())
    try:
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(f"{ui.url}/locations/nemotron_dagster.definitions/asset-groups/teach_a_skill")
        for node in ("numerals", "curated", "untrained", "taught", "before", "after"):
            page.get_by_text(node, exact=True).first.wait_for()
        page.get_by_text("Materialized").nth(5).wait_for()
        SHOTS.mkdir(exist_ok=True)
        page.wait_for_timeout(500)
        page.screenshot(path=SHOTS / "example-lineage.png")
        for node, label in (("taught", "loss picture"), ("after", "scores picture")):
            page.goto(f"{ui.url}/assets/teach_a_skill/{node}")
            page.get_by_role("row").filter(has_text=label).get_by_text("[Show Markdown]").click()
            image = page.get_by_role("dialog").locator("img").first
            image.wait_for()
            assert image.evaluate("i => i.naturalWidth") > 300
            page.wait_for_timeout(500)
            page.screenshot(path=SHOTS / f"example-{node}.png")
        page.close()
    finally:
        stop_ui(ui)

"""The catalog: what is in it, that it is wired, and that a broken step is one named error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import REPO, ROWS, ROWS_TOML, add_step

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.errors import ConfigError, UsageError
from nemotron_dagster.pipelines import catalog_pipeline
from nemotron_dagster.project import Project

IDS = [
    "byob/mcq", "convert/hf_to_megatron", "convert/megatron_to_hf", "convert/merge_lora", "curate/nemo_curator",
    "data_prep/pretrain_prep", "data_prep/rl_prep", "data_prep/sft_packing", "env/env_toml", "eval/model_eval",
    "optimize/modelopt/distill", "optimize/modelopt/prune", "optimize/modelopt/quantize", "peft/automodel",
    "peft/megatron_bridge", "pretrain/automodel", "pretrain/megatron_bridge", "rl/nemo_rl/dpo", "rl/nemo_rl/rlhf",
    "rl/nemo_rl/rlvr", "sdg/data_designer", "sft/automodel", "sft/megatron_bridge", "translate/nemo_curator",
]  # fmt: skip

BUNDLE = Project(None, Path("/nonexistent"))


def test_the_bundle_holds_the_24_steps_in_the_reference_order() -> None:
    catalog = load_catalog(BUNDLE)
    assert not catalog.broken
    assert list(catalog.steps) == IDS


def test_every_step_has_a_readme_a_default_config_and_binds_for_its_outputs() -> None:
    for step in load_catalog(BUNDLE).steps.values():
        assert (step.directory / "README.md").is_file(), step.id
        assert step.runspec is not None and step.runspec.default_config in step.configs, step.id
        assert all(p.bind for p in step.produces), step.id


def test_every_default_producer_exists_and_the_default_wiring_has_no_cycle() -> None:
    catalog = load_catalog(BUNDLE)
    for step in catalog.steps.values():
        for port in step.consumes:
            assert port.source is None or port.source in catalog.steps, f"{step.id}: {port.source}"
    pipeline = catalog_pipeline(catalog)  # raises on a cycle or a type mismatch
    seen: set[str] = set()
    for node in pipeline.nodes.values():
        assert set(node.inputs.values()) <= seen
        seen.add(node.name)


def test_is_a_is_transitive_and_has_a_direction() -> None:
    types = load_catalog(BUNDLE).types
    assert types.accepts("benchmark_parquet", "translated_mcq_benchmark_parquet")
    assert types.accepts("training_jsonl", "filtered_jsonl")
    assert not types.accepts("filtered_jsonl", "training_jsonl")
    assert types.converter("checkpoint_hf", "checkpoint_lora") == "convert/merge_lora"


def test_a_unique_folder_name_finds_its_step_and_an_ambiguous_one_names_the_candidates() -> None:
    catalog = load_catalog(BUNDLE)
    assert catalog.find("dpo").id == "rl/nemo_rl/dpo"
    with pytest.raises(UsageError, match="Did you mean: peft/automodel, pretrain/automodel, sft/automodel"):
        catalog.find("automodel")
    with pytest.raises(UsageError, match=r"Unknown step id: sft/automodle\nDid you mean: sft/automodel"):
        catalog.find("sft/automodle")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("step.toml", "[step\n", ":1:6: is not valid TOML"),
        ("step.toml", "[step]\nid = 'other/id'\n", "not the folder's path"),
        ("step.toml", "[step]\nnaem = 'x'\n", "unknown key 'naem'.*Did you mean name"),
        ("step.toml", "[step]\n[[consumes]]\ntype = 'training_json'\n", "unknown artifact type.*training_jsonl"),
        ("step.toml", b"\xff\xfe", "not UTF-8"),
        ("step.py", "print()\n", "no `# /// script` block"),
        ("step.py", ROWS.replace('"python"', '"pyhton"'), "launch 'pyhton'"),
    ],
)
def test_a_broken_step_is_one_named_error_and_the_others_work(
    project: Path, file: str, text: str | bytes, message: str
) -> None:
    folder = add_step(project, "demo/broken", ROWS_TOML.replace("demo/rows", "demo/broken"), ROWS, default="n: 1\n")
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    catalog = load_catalog(Project(project, project / ".nemotron"))
    assert list(catalog.broken) == ["demo/broken"]
    assert "demo/rows" in catalog.steps and "sft/automodel" in catalog.steps
    with pytest.raises(ConfigError, match=f"(?s){file}.*{message}"):
        catalog.find("demo/broken")


def test_a_projects_step_replaces_the_bundled_one(project: Path) -> None:
    toml = ROWS_TOML.replace("demo/rows", "sft/automodel").replace('"Rows"', '"Mine"')
    add_step(project, "sft/automodel", toml, ROWS, default="n: 1\n")
    assert load_catalog(Project(project, project)).steps["sft/automodel"].name == "Mine"


def test_list_json_has_the_nine_keys_in_order(nemotron, tmp_path: Path) -> None:
    done = nemotron("steps", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    rows = json.loads(done.stdout)
    assert [r["id"] for r in rows] == IDS
    keys = ["id", "name", "category", "description", "tags", "path", "consumes", "produces", "parameters"]
    assert all(list(r) == keys for r in rows)
    assert Path(rows[0]["path"]) == REPO / "steps" / "byob" / "mcq"


def test_list_filters_are_anded_exact_and_an_unknown_value_gets_a_hint(nemotron, tmp_path: Path) -> None:
    done = nemotron("steps", "list", "--json", "--consumes", "training_jsonl", "--category", "rl", cwd=tmp_path)
    assert [r["id"] for r in json.loads(done.stdout)] == ["rl/nemo_rl/dpo", "rl/nemo_rl/rlhf", "rl/nemo_rl/rlvr"]
    done = nemotron("steps", "list", "--category", "stf", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "No steps matched.\n")
    assert "Did you mean sft" in done.stderr


def test_show_prints_contract_and_json_ends_with_the_runspec(nemotron, tmp_path: Path) -> None:
    text = nemotron("steps", "show", "sdg/data_designer", cwd=tmp_path)
    assert text.returncode == 0 and "not built yet" in text.stdout and "Strategies" in text.stdout
    data = json.loads(nemotron("steps", "show", "sft/megatron_bridge", "--json", cwd=tmp_path).stdout)
    assert data["runspec"]["launch"] == "torchrun"
    assert data["runspec"]["resources"] == {"nodes": 1, "gpus_per_node": 8}
    assert data["configs"] == ["default", "tiny"]

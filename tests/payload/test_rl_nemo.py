"""backend=nemo_rl: the command and the config that NeMo-RL is given, against a script that stands in for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from interpreters import STEPS
from omegaconf import OmegaConf
from rl_run import ROOT, Run, prepared, python, rows

from nemotron_dagster.artifacts.types import checkpoint_hf, checkpoint_megatron

from _runtime.payload import PayloadError  # isort: skip
from _runtime.rl import data, layouts, nemo_data, nemo_gym, nemo_gym_servers, nemo_log, nemo_rl  # isort: skip

STAND_IN = Path(__file__).parent / "stand_in_nemo_rl" / "examples" / "stand_in_nemo_rl.py"
PAIR = {"prompt": "What is 9 in Roman numerals?", "chosen": "IX", "rejected": "ix"}
TRAIN, VALIDATION = "data.train.data_path", "data.validation.data_path"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    python("import sys; from _runtime import tiny_model; print(tiny_model.save(sys.argv[1]))", folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """/opt/nemo-rl of an image, in which the example scripts are the stand-in."""
    examples = tmp_path / "nemo-rl" / "examples"
    examples.mkdir(parents=True)
    for name in ("run_dpo.py", "run_grpo.py"):
        shutil.copy2(STAND_IN, examples / name)
    return tmp_path / "nemo-rl"


class NemoRun(Run):
    """``default`` of a step, short, with the stand-in."""

    def __init__(self, step: str, folder: Path, image: Path, policy: Path, overrides: dict[str, Any]) -> None:
        section = "dpo" if step == "dpo" else "grpo"
        short = {f"{section}.max_num_steps": 5, "checkpointing.save_period": 2, "nemo_rl_workdir": str(image)}
        super().__init__(step, folder, {**short, "policy.model_name": str(policy), **overrides}, "default")

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "seen_by_stand_in.json").read_text())
        return found


def test_own_pairs_reach_nemo_rl_by_the_command_of_its_image(
    tmp_path: Path, image: Path, policy: Path, data_python: str
) -> None:
    out = prepared(tmp_path, data_python, STEPS / "data_prep" / "rl_prep" / "data" / "pairs.jsonl")
    manifest = json.loads((out / "manifest.json").read_text())
    run = NemoRun("dpo", tmp_path / "run", image, policy, {TRAIN: str(out), VALIDATION: str(out)})
    assert run.start("dpo.seed=7").wait(timeout=600) == 0, run.log[-3000:]
    seen = run.seen()
    script, config = str(image / "examples" / "run_dpo.py"), str(run.out / "nemo_rl.yaml")
    assert seen["argv"] == [script, "--config", config, "dpo.seed=7"] and seen["cwd"] == str(image)
    data = seen["config"]["data"]
    assert data["train"] == {"data_path": str(out / manifest["train"]), "dataset_name": "BinaryPreferenceDataset"}
    assert data["validation"]["data_path"] == str(out / manifest["val"]) and "split" not in data["validation"]
    assert seen["config"]["policy"]["model_name"] == seen["config"]["policy"]["tokenizer"]["name"] == str(policy)
    assert seen["config"]["checkpointing"]["save_consolidated"] is True
    assert "nemo_rl_workdir" not in seen["config"] and "backend" not in seen["config"]
    facts = run.facts()
    assert facts["backend"] == "nemo_rl" and facts["dataset"] == "BinaryPreferenceDataset"
    assert facts["rows"] == manifest["rows"]["train"] and facts["command"][1:] == [
        script,
        "--config",
        config,
        "dpo.seed=7",
    ]
    assert checkpoint_megatron.validate(run.out / "megatron") and checkpoint_hf.validate(run.out / "hf")
    assert run.metrics("margin") == pytest.approx(dict.fromkeys(range(1, 6), 0.5))
    assert run.reported("loss") == pytest.approx({s: (900 - s) / 1000 for s in range(1, 6)})


def test_megatron_weights_are_published_as_they_are_and_exported(tmp_path: Path, image: Path, policy: Path) -> None:
    code = """
import sys; from pathlib import Path; from _runtime.rl import conversion
if __name__ == "__main__":
    conversion.from_hf(Path(sys.argv[1]), Path(sys.argv[2])); print(1)
"""
    python(code, policy, tmp_path / "megatron")
    settings = {"policy.megatron_cfg.enabled": True, TRAIN: str(rows(tmp_path / "a.jsonl", PAIR))}
    run = NemoRun("dpo", tmp_path / "run", image, policy, settings)
    run.finish(STAND_IN_SAVES="megatron", STAND_IN_MEGATRON=str(tmp_path / "megatron"))
    assert (run.out / "megatron").readlink() == Path("step_5/policy/weights")
    assert checkpoint_megatron.validate(run.out / "megatron") and checkpoint_hf.validate(run.out / "hf")
    config = run.seen()["config"]
    assert "save_consolidated" not in config["checkpointing"]
    assert config["data"]["validation"] is None and config["dpo"]["val_period"] == 0


def test_loss_that_is_no_number_stops_nemo_rl(tmp_path: Path, image: Path, policy: Path) -> None:
    run = NemoRun("dpo", tmp_path, image, policy, {TRAIN: str(rows(tmp_path / "a.jsonl", PAIR))})
    assert run.refused(STAND_IN_ENDS="nan at 2")["name"] == "loss_not_finite"


def test_own_problems_reach_nemo_rls_grpo_and_a_rerun_continues(
    tmp_path: Path, image: Path, policy: Path, data_python: str
) -> None:
    out = prepared(tmp_path, data_python, STEPS / "data_prep" / "rl_prep" / "data" / "problems.jsonl")
    run = NemoRun("rlvr", tmp_path / "run", image, policy, {TRAIN: str(out), VALIDATION: str(out)})
    error = run.refused(STAND_IN_ENDS="out of memory at 3")
    assert error["name"] == "oom" and not (run.out / "megatron").exists()
    run.finish()
    assert run.facts()["resumed_from"] == 2
    assert run.metrics("reward") == pytest.approx(dict.fromkeys(range(1, 6), 0.5))
    train = run.seen()["config"]["data"]["train"]
    keys = (train["dataset_name"], train["input_key"], train["output_key"])
    assert keys == ("ResponseDataset", "prompt", "expected_answer")
    assert len(Path(train["data_path"]).read_text().splitlines()) == run.facts()["rows"]


def test_default_without_own_rows_leaves_nemo_rl_its_own(tmp_path: Path) -> None:
    cfg = OmegaConf.to_container(OmegaConf.load(ROOT / "rlvr" / "config" / "default.yaml"), resolve=False)
    assert isinstance(cfg, dict) and data.find(cfg) is None, "/path/to/train.jsonl is no path"
    assert nemo_data.hand_over(cfg, None, "grpo", tmp_path) == {"dataset": "DAPOMath17K"}
    assert cfg["data"]["train"] == {} == cfg["data"]["validation"]
    assert cfg["data"]["default"]["dataset_name"] == "DAPOMath17K"


@pytest.mark.parametrize("step", ["dpo", "rlvr", "rlhf"])
def test_without_nemo_rl_the_image_and_the_other_backend_are_named(step: str, tmp_path: Path) -> None:
    error = Run(step, tmp_path, {"nemo_rl_workdir": str(tmp_path / "none")}, "default").refused()
    assert error["name"] == "nemo_rl_missing"
    assert "nvcr.io/nvidia/nemo-rl:v0.6.0" in error["recovery"] and "backend=trl" in error["recovery"]


def test_bundled_rows_of_rlhf_are_handed_to_nemo_gym(tmp_path: Path) -> None:
    cfg: dict[str, Any] = {
        "data": {"manifest_path": str(ROOT / "rlhf" / "data" / "manifest.json"), "train": {"data_path": "x"},
                 "validation": {"repeat": 2}, "default": {"dataset_name": "NemoGymDataset"}},
        "grpo": {},
    }  # fmt: skip
    facts = nemo_data.hand_over(cfg, data.find(cfg), "gym", tmp_path)
    assert facts == {"dataset": "NemoGymDataset", "rows": 43, "validation_rows": 6}
    assert cfg["data"]["train"] == {"data_path": str(ROOT / "rlhf/data/train.jsonl"), "dataset_name": "NemoGymDataset"}
    assert cfg["data"]["validation"]["repeat"] == 2 and "manifest_path" not in cfg["data"]
    assert not list(tmp_path.iterdir()), "rows that need no change are not copied"


def test_prompts_become_nemo_gym_tasks_with_the_agent_of_the_config(tmp_path: Path) -> None:
    given = rows(tmp_path / "a.jsonl", {"prompt": "q", "tools": [1]}, {"messages": [{"role": "user", "content": "q"}]})
    cfg: dict[str, Any] = {
        "data": {"train": {"data_path": str(given)}},
        "env": {"use_genrm_compare": True, "genrm_agent_names": ["judge_agent"]},
        "grpo": {"val_period": 5},
    }
    nemo_data.hand_over(cfg, data.find(cfg), "gym", tmp_path / "out")
    made = [json.loads(line) for line in Path(cfg["data"]["train"]["data_path"]).read_text().splitlines()]
    assert made[0]["responses_create_params"] == {"input": [{"role": "user", "content": "q"}], "tools": [1]}
    assert {r["agent_ref"]["name"] for r in made} == {"judge_agent"}
    assert cfg["data"]["validation"] is None and cfg["grpo"]["val_period"] == 0
    with pytest.raises(layouts.Fault, match="default_agent_ref"):
        nemo_data.task({"prompt": "q"}, None)


def test_rows_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", PAIR)
    manifest = {"train": "a.jsonl", "val": "a.jsonl", "reader": {"dataset_name": "NemoGymDataset"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    cfg: dict[str, Any] = {
        "data": {"manifest_path": str(tmp_path / "manifest.json"), "allow_train_as_validation": True}
    }
    with pytest.raises(PayloadError) as told:
        nemo_data.hand_over(cfg, data.find(cfg), "grpo", tmp_path)
    assert told.value.name == "mixed_nemo_gym_and_upstream_config"


def test_words_beside_the_config_are_handed_on() -> None:
    assert nemo_rl.overrides(["--config", "f", "a=1", "--flag"]) == ["a=1", "--flag"]
    assert nemo_rl.overrides(["a=1", "--config=f"]) == ["a=1"]


def test_steps_of_nemo_rls_output_are_read() -> None:
    reader = nemo_log.Reader()
    text = ["===== Step 3/9 =====", "  • Loss: 1.5000", "  • Avg Reward: -0.2500", "    • Accuracy: 0.9",
            "  • Mean Generation Length: 12.5", "  • Total step time: 2.00s", "  • Loss: 9.0"]  # fmt: skip
    for line in text:
        reader.read(line)
    assert reader.records == [{"step": 3, "loss": 1.5, "reward": -0.25, "accuracy": 0.9, "completion_tokens": 12.5}]


def test_servers_of_nemo_gym_are_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gym").mkdir()
    (tmp_path / "gym" / "judge.yaml").write_text(
        "config_paths: [gym/more.yaml]\n"
        "genrm_model:\n  responses_api_models:\n    vllm_model: {model: theirs}\n"
        "compare:\n  model: {type: responses_api_models, name: policy_model_reasoning_off}\n"
    )
    (tmp_path / "gym" / "more.yaml").write_text("extra: {port: 1}\n")
    monkeypatch.chdir(tmp_path)
    ours = {"config_paths": ["gym/judge.yaml"], "named": "mine", "genrm_model": {
        "responses_api_models": {"genrm_model": {"model": "${named}"}}}}  # fmt: skip
    found = nemo_gym_servers.settled(ours, "policy", ["http://p/v1"])
    assert found["genrm_model"] == {"responses_api_models": {"genrm_model": {"model": "mine"}}}
    assert found["genrm_model_name"] == "mine" and found["extra"] == {"port": 1} and "config_paths" not in found
    alias = found["policy_model_reasoning_off"]["responses_api_models"]["vllm_model"]
    assert alias["base_url"] == ["http://p/v1"] and alias["model"] == "policy"
    with pytest.raises(PayloadError, match=r"nowhere\.yaml"):
        nemo_gym_servers.settled({"config_paths": ["nowhere.yaml"]}, "p", [])


@pytest.mark.parametrize(
    ("grpo", "part"),
    [
        ({"max_val_samples": 4}, "grpo.max_val_samples=null"),
        ({"async_grpo": {"enabled": True}, "reward_shaping": {"enabled": True}}, "reward_shaping.enabled=false"),
    ],
)
def test_settings_that_nemo_gym_does_not_take_are_refused_before_its_workers_start(
    grpo: dict[str, Any], part: str
) -> None:
    with pytest.raises(PayloadError) as told:
        nemo_gym.check({"grpo": grpo, "policy": {"generation": {"backend": "vllm"}}})
    assert told.value.name == "mixed_nemo_gym_and_upstream_config" and part in told.value.message


STAND_IN_PACKAGE = {
    "ray.py": "def get(x):\n    return x\n",
    "nemo_rl/algorithms/grpo.py": """
import json, pathlib, types
def setup(cfg, tokenizer, rows, held_out):
    generation = types.SimpleNamespace(cfg={"model_name": "served"}, dp_openai_server_base_urls=["http://p/v1"])
    return "policy", generation, None, "loader", "held_out", "loss", "logger", "checkpointer", "state", cfg
def grpo_train(**given):
    gym = given["task_to_env"]["nemo_gym"].config
    seen = {"called": "grpo_train", "keys": sorted(given), "gym": gym, "grpo": given["master_config"]["grpo"]}
    pathlib.Path(given["master_config"]["logger"]["log_dir"], "seen.json").write_text(json.dumps(seen))
""",
    "nemo_rl/algorithms/utils.py": "def get_tokenizer(said):\n    return 'tokenizer'\n",
    "nemo_rl/data/utils.py": "def setup_response_data(**said):\n    return [1, 2], [1, 2, 3]\n",
    "nemo_rl/distributed/virtual_cluster.py": "def init_ray():\n    pass\n",
    "nemo_rl/environments/nemo_gym.py": "NemoGymConfig = dict\ndef setup_nemo_gym_config(cfg, tokenizer):\n    pass\n",
    "nemo_rl/environments/utils.py": """
import types
def create_env(env_name, env_config):
    return types.SimpleNamespace(config=env_config, health_check=types.SimpleNamespace(remote=lambda: True))
""",
    "nemo_rl/models/generation.py": "def configure_generation_config(said, tokenizer):\n    return said\n",
    "nemo_rl/utils/logger.py": "def get_next_experiment_dir(folder):\n    return folder\n",
}


def test_grpo_with_nemo_gym_calls_nemo_rl_with_what_it_takes(tmp_path: Path) -> None:
    for name, source in STAND_IN_PACKAGE.items():  # stands in for NeMo-RL's package, which needs GPUs
        file = tmp_path / "stand_in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    for folder in (tmp_path / "stand_in" / "nemo_rl").glob("**/"):
        (folder / "__init__.py").touch()
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from _runtime.rl import nemo_gym
nemo_gym.train({
    "grpo": {"val_batch_size": 2}, "data": {}, "logger": {"log_dir": sys.argv[2]},
    "policy": {"tokenizer": {}, "generation": {"backend": "vllm"}},
    "env": {"nemo_gym": {"is_trajectory_collection": False, "judge": {"port": 5}}},
})
print(open(sys.argv[2] + "/seen.json").read())
"""
    seen = python(code, tmp_path / "stand_in", tmp_path)
    assert seen["called"] == "grpo_train"
    assert seen["grpo"] == {"val_batch_size": 2, "max_val_samples": 3}
    assert seen["gym"]["base_urls"] == ["http://p/v1"]
    assert seen["gym"]["initial_global_config_dict"] == {"judge": {"port": 5}}
    assert {"policy", "policy_generation", "wrapped_dataloader", "val_dataloader", "master_config"} <= set(seen["keys"])

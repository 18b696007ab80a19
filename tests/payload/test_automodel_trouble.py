"""sft/automodel where something around it is amiss, and on more than one process: trackers, disks, memory, ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from automodel_run import BAD_INPUT, Run, python
from interpreters import STEPS

from nemotron_dagster.artifacts.types import checkpoint_hf

HERE = Path(__file__).parent
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_ranks_train_as_one_does_on_the_same_batches(tmp_path: Path) -> None:
    eight = {"step_scheduler.max_steps": 8, "optimizer.lr": 1e-3, "tensorboard": True}
    one = Run(tmp_path / "one", eight).finish()
    two = Run(tmp_path / "two", {**eight, "step_scheduler.local_batch_size": 24}).finish(TWO_RANKS)
    assert two.facts()["processes"] == 2 and one.facts()["processes"] == 1
    assert two.losses() == pytest.approx(one.losses(), rel=1e-4)
    assert [m["step"] for m in two.messages("progress")] == list(range(1, 9)), "one rank speaks for both"
    assert two.facts()["trained_tokens"] == one.facts()["trained_tokens"]
    assert plotted(two) == pytest.approx({step + 1: loss for step, loss in two.losses().items()})
    code = """
import sys, json
from transformers import AutoModelForCausalLM
one, two = (dict(AutoModelForCausalLM.from_pretrained(p).named_parameters()) for p in sys.argv[1:])
print(json.dumps(max(float((one[k] - two[k]).abs().max()) for k in one)))
"""
    assert json.loads(python(code, one.artifact, two.artifact)) < 1e-3


def plotted(run: Run) -> dict[int, float]:
    """The loss curve that TensorBoard would show, by step."""
    code = """
import sys, json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps([[e.step, e.value] for e in events.Scalars("loss")]))
"""
    return dict(json.loads(python(code, run.out / "tensorboard")))


def test_hybrid_of_mamba_and_attention_trains(tmp_path: Path) -> None:
    code = """
import sys
import torch
from transformers import AutoModelForCausalLM, NemotronHConfig
from _runtime import tiny_model
words = tiny_model.build_tokenizer()
config = NemotronHConfig(
    vocab_size=len(words), hidden_size=64, layers_block_type=["mamba", "attention", "mlp"], num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, intermediate_size=128, ssm_state_size=16,
    mamba_num_heads=8, mamba_head_dim=16, n_groups=2, chunk_size=32, pad_token_id=words.pad_token_id,
    bos_token_id=None, eos_token_id=words.eos_token_id)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[1])
words.save_pretrained(sys.argv[1])
print("made")
"""
    python(code, tmp_path / "base")
    base = {"model.pretrained_model_name_or_path": str(tmp_path / "base"), "step_scheduler.max_steps": 6}
    run = Run(tmp_path / "run", base).finish()
    losses = run.losses()
    assert losses[5] < losses[0] - 0.7
    assert checkpoint_hf.validate(run.artifact)["architecture"] == "NemotronHForCausalLM"


def test_full_disk_is_told_keeps_the_last_checkpoint_and_is_got_over(tmp_path: Path) -> None:
    Run(tmp_path, {"step_scheduler.max_steps": 1}).finish()
    run = Run(tmp_path, {"step_scheduler.max_steps": 2})
    assert run.start((str(HERE / "limit_file_size.py"), "1000")).wait(timeout=300) == BAD_INPUT, run.log()[-3000:]
    [error] = run.messages("error")
    assert error["name"] == "disk_full" and str(run.out) in error["message"] and "run again" in error["recovery"]
    assert (run.out / "LATEST").resolve().name == "epoch_0_step_0" and checkpoint_hf.validate(run.artifact)
    run.finish()
    assert run.facts()["resumed_from"] == 1 and run.facts()["steps"] == 2
    assert (run.out / "LATEST").resolve().name == "epoch_0_step_1"


def test_too_little_memory_is_told_however_deep_it_surfaces() -> None:
    code = """
import json
from pathlib import Path
import torch
from torch.distributed.checkpoint.api import CheckpointException
from _runtime import failures, payload

def of(work):
    try:
        with failures.told(Path("/out")):
            work()
    except payload.PayloadError as e:
        return [e.name, e.message[:40]]
    except BaseException as e:
        return type(e).__name__

def collected():
    raise CheckpointException("saving", {0: (OSError(28, "No space left on device"), None)})

def wrapped():
    try:
        torch.empty(1 << 50)
    except RuntimeError as e:
        raise ValueError("while loading") from e

print(json.dumps([of(f) for f in (lambda: torch.empty(1 << 50), wrapped, collected, lambda: 1 / 0)]))
"""
    direct, wrapped, collected, other = json.loads(python(code))
    assert direct[0] == wrapped[0] == "oom" and "out of memory" in direct[1]
    assert collected[0] == "disk_full" and other == "ZeroDivisionError"


@pytest.mark.parametrize("section", ["wandb", "mlflow", "comet"])
def test_tracker_without_its_package_is_told_before_training(tmp_path: Path, section: str) -> None:
    package = {"comet": "comet_ml"}.get(section, section)
    error = Run(tmp_path, {section: {"project": "p"}}).refused()
    assert error["name"] == "tracker_missing" and f"the package {package} is not" in error["message"]


@pytest.mark.parametrize(("mode", "name"), [({}, "tracker_missing"), ({"WANDB_MODE": "offline"}, "dataset_missing")])
def test_wandb_that_would_ask_for_a_login_is_refused_and_offline_is_not(
    tmp_path: Path, mode: dict[str, str], name: str
) -> None:
    (tmp_path / "installed" / "wandb").mkdir(parents=True)
    (tmp_path / "installed" / "wandb" / "__init__.py").touch()
    run = Run(tmp_path / "run", {"wandb.project": "p", "dataset.path_or_dataset_id": "???"})
    error = run.refused(PYTHONPATH=str(tmp_path / "installed"), HOME=str(tmp_path), **mode)
    assert error["name"] == name and (mode or "WANDB_API_KEY" in error["message"])


UNKNOWN = {  # a key that AutoModel does not know, and the section that the message names
    "step_scheduler.max_step": "step_scheduler: ",
    "dataset.maximum": "dataloader: ",
    "checkpoint.save_every": "checkpoint: ",
    "distributed.tp": "distributed: ",
    "lr_scheduler.warmup_steps": "lr_scheduler: ",
    "peft.rank": "peft: ",
}


def test_key_that_automodel_does_not_know_is_named_with_its_section_before_training() -> None:
    code = """
import json, sys
from pathlib import Path
from _runtime import automodel_config, cpu, payload
cpu.enable()
said = {}
for key in json.loads(sys.argv[1]):
    cfg = payload.load_config(Path(sys.argv[2]) / "peft" / "automodel" / "config" / "tiny.yaml", [])
    automodel_config.settle(cfg, adapter=True)
    section, _, name = key.partition(".")
    cfg[section][name] = 5
    try:
        automodel_config.parse(cfg)
    except payload.PayloadError as e:
        said[key] = e.message
print(json.dumps(said))
"""
    said = json.loads(python(code, json.dumps(list(UNKNOWN)), STEPS))
    for key, section in UNKNOWN.items():
        assert said[key].startswith(section) and key.rpartition(".")[2] in said[key], said[key]


def test_every_default_config_is_one_that_automodel_takes(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
os.environ["PRETRAIN_BLEND_PATH"] = sys.argv[1]
from _runtime import automodel_config, cpu, payload, token_shards
cpu.enable()
for step in ("sft", "peft", "pretrain"):
    cfg = payload.load_config(Path(sys.argv[2]) / step / "automodel" / "config" / "default.yaml", [])
    automodel_config.settle(cfg, adapter=step == "peft")
    if token_shards.used_by(cfg):
        token_shards.prepare(cfg, Path(sys.argv[3]))
        token_shards.drop_schedule(cfg)
    automodel_config.parse(cfg)
print("taken")
"""
    blend = STEPS / "pretrain" / "automodel" / "data" / "blend.json"
    assert python(code, blend, STEPS, tmp_path) == "taken"

"""A stand-in for NeMo-RL's example scripts, which need GPUs: reads its config, prints steps as v0.6.0 does, and leaves
``step_N`` directories whose weights are those of the model it was given. It trains nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from omegaconf import OmegaConf

DPO = {"loss": "0.{}", "accuracy": "0.7500", "rewards_chosen_mean": "0.3000", "rewards_rejected_mean": "-0.2000"}
GRPO = {"Loss": "0.{}", "Generation KL Error": "0.0010", "Avg Reward": "0.5000"}


def main() -> None:
    file, *overrides = sys.argv[sys.argv.index("--config") + 1 :]
    cfg = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(overrides))
    section = cfg.get("dpo") or cfg.grpo
    output, total = Path(cfg.checkpointing.checkpoint_dir), int(section.max_num_steps)
    seen = {"argv": sys.argv, "cwd": os.getcwd(), "config": OmegaConf.to_container(cfg, resolve=True)}
    (output / "seen_by_stand_in.json").write_text(json.dumps(seen))
    saved = [int(p.name.removeprefix("step_")) for p in output.glob("step_*")]
    for step in range(max(saved, default=0) + 1, total + 1):
        print(f"\n{'=' * 25} Step {step}/{total} {'=' * 25}")
        print("\n📊 Training Results:")
        for name, value in (DPO if "dpo" in cfg else GRPO).items():
            print(f"  • {name}: {value.format(900 - step)}")
        print("\n⏱️  Timing:\n  • Total step time: 0.50s", flush=True)
        if os.environ.get("STAND_IN_ENDS") == f"nan at {step}":
            print(f"{'=' * 25} Step {step + 1}/{total} {'=' * 25}\n  • loss: nan", flush=True)
        if os.environ.get("STAND_IN_ENDS") == f"out of memory at {step}":
            sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        if step % int(cfg.checkpointing.save_period) == 0 or step == total:
            save(cfg, output, step)


def save(cfg: object, output: Path, step: int) -> None:
    partial = output / f"tmp_step_{step}"
    policy = Path(cfg.policy.model_name)  # type: ignore[attr-defined]
    how = os.environ.get("STAND_IN_SAVES", "consolidated")
    if how == "megatron":
        shutil.copytree(os.environ["STAND_IN_MEGATRON"], partial / "policy" / "weights")
    else:
        shutil.copytree(policy, partial / "policy" / "weights" / "model" / "consolidated")
    (partial / "policy" / "tokenizer").mkdir()
    for file in policy.glob("tokenizer*"):
        shutil.copy2(file, partial / "policy" / "tokenizer")
    (partial / "training_info.json").write_text("{}")
    partial.rename(output / f"step_{step}")


if __name__ == "__main__":
    main()

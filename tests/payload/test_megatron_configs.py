"""Every shipped config of the three Megatron-Bridge steps, against the library's own recipes and config classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from interpreters import STEPS
from megatron_run import train_python
from omegaconf import OmegaConf

KINDS = ("pretrain", "sft", "peft")
CONFIGS = sorted(p for kind in KINDS for p in (STEPS / kind / "megatron_bridge/config").glob("*.yaml"))

#: argv: compiled configs. The recipes that fine-tune Nano ask the hub for its config only to describe the model, which
#: the recipe that pretrains it describes without: that is what they get here.
MERGE = """
import json, sys
from pathlib import Path
from _runtime import cpu_megatron, megatron_config, megatron_data, payload
cpu_megatron.enable(lambda text: None)
from megatron.bridge.recipes.nemotronh.h100 import nemotron_3_nano as nano
nano._nemotron_3_nano_finetune_model = lambda: nano.nemotron_3_nano_pretrain_8gpu_h100_bf16_config().model
found = {}
for file in sys.argv[1:]:
    kind = Path(file).stem.partition("-")[0]
    cfg = payload.load_config(Path(file), ["--config", file])
    adapter, packed = kind == "peft", kind != "pretrain"
    container = megatron_config.from_recipe(cfg, "none.none", adapter)
    megatron_config.check_roots(container, cfg)
    if container.model is None:  # what tiny takes from the model that it trains
        container.model = nano.nemotron_3_nano_pretrain_8gpu_h100_bf16_config().model
    megatron_config.merge(container.model, cfg.get("model") or {}, "model")
    megatron_config.apply(container, cfg, leave=("dataset", "peft", "model"))
    if packed:
        container.dataset = megatron_data.packed_dataset(cfg["dataset"], container.dataset, Path("none"))
        container.dataset.validate()
    else:
        data = megatron_data.Data([], blends=[(["a"], None), None, None])
        megatron_data.token_dataset(cfg["dataset"], container.dataset, data, Path("none"))
    if adapter:
        megatron_config.add_adapter(container, cfg, megatron_config.scheme(cfg))
    for section in (container.train, container.scheduler, container.logger):
        section.finalize()
    found[Path(file).stem] = {
        "seq_length": [container.model.seq_length, container.dataset.seq_length],
        "parallel": [container.model.tensor_model_parallel_size, container.model.expert_model_parallel_size],
        "sequence_parallel": bool(container.model.sequence_parallel),
        "iterations": container.train.train_iters,
        "save": container.checkpoint.save,
        "rank": getattr(container.peft, "dim", None),
        "blend": getattr(container.dataset, "blend", None),
    }
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each config: some of what the library's ConfigContainer holds after it was merged in."""
    folder = tmp_path_factory.mktemp("configs")
    values = {"SFT_PACKED_DIR": str(STEPS / "sft/megatron_bridge/data/train"), "SFT_OUTPUT_DIR": "o"}
    values["PRETRAIN_BLEND_PATH"] = str(STEPS / "pretrain/megatron_bridge/data/blend.json")
    files = []
    for path in CONFIGS:
        config = OmegaConf.load(path)
        if path.stem == "default" and path.parts[-4] == "peft":
            key = "dataset.packed_sequence_specs.packed_train_data_path"  # an input of the step
            OmegaConf.update(config, key, values["SFT_PACKED_DIR"], force_add=True)
        text = OmegaConf.to_yaml(config).replace("${oc.env:NEMOTRON_STEP_DIR}", str(path.parents[1]))
        file = folder / f"{path.parts[-4]}-{path.stem}.yaml"
        file.write_text(text)
        files.append(file)
    assert not os.environ.get("WANDB_PROJECT")
    found: dict[str, Any] = train_python(MERGE, *files, **values)
    return found


def test_every_key_of_every_config_is_one_of_the_library(merged: dict[str, Any]) -> None:
    assert sorted(merged) == sorted(f"{p.parts[-4]}-{p.stem}" for p in CONFIGS) and len(merged) >= 6


def test_recipe_arguments_that_the_library_no_longer_takes_reach_the_sections(merged: dict[str, Any]) -> None:
    default = merged["pretrain-default"]
    assert default["seq_length"] == [8192, 8192] and default["parallel"][0] == 4 and default["sequence_parallel"]
    assert default["iterations"] == 20000 and default["blend"] == [["a"], None]


def test_sections_reach_the_container(merged: dict[str, Any]) -> None:
    assert merged["sft-default"]["seq_length"] == [4096, 4096] and merged["sft-default"]["parallel"] == [4, 8]
    assert merged["sft-default"]["save"] == "o/sft-tiny-2node" and merged["sft-default"]["rank"] is None
    assert merged["peft-default"]["rank"] == 32 and merged["peft-default"]["iterations"] == 1000
    assert merged["peft-tiny"]["rank"] == 16


def test_folder_of_each_step_has_the_configs_that_are_checked() -> None:
    assert {Path(*p.parts[-4:]).as_posix() for p in CONFIGS} >= {
        f"{kind}/megatron_bridge/config/{name}.yaml" for kind in KINDS for name in ("default", "tiny")
    }

"""convert/merge_lora: merged equals base plus adapter, through PEFT and through Megatron-Bridge."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from interpreters import STEPS, payload_python
from test_convert import BAD_INPUT, convert, work, write

from nemotron_dagster.artifacts.types import checkpoint_hf, checkpoint_lora, checkpoint_megatron

sys.path.insert(0, str(STEPS))

from _runtime import lora_adapter
from _runtime.payload import PayloadError

STEP = STEPS / "convert" / "merge_lora"
CONFIG = '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'


def test_tiny_leaves_a_whole_model(tmp_path: Path) -> None:
    done = convert(STEP, tmp_path, {"output_hf_path": str(tmp_path / "hf")}, payload_python("train"))
    assert done.status == 0, done.stderr[-3000:]
    facts = checkpoint_hf.validate(tmp_path / "hf")
    assert facts["parameters"] == done.facts["parameters"] and facts["chat_template"]
    assert done.facts["backend"] == "hf_peft" and done.facts["base_model"] == "tiny_llama" and done.facts["rank"] == 8
    assert not [*tmp_path.glob("tiny-l*")]  # base and adapter were made in TMPDIR, and are not left there


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    report = work("merges", tmp_path_factory.mktemp("merges"))
    assert isinstance(report, dict)
    return report


# bfloat16 has 8 bits of mantissa: the sum is rounded to it once, unless float32 is asked for.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_merge_through_peft_equals_base_plus_adapter(merges: dict[str, Any], dtype: str, tolerance: float) -> None:
    off, changed, exact = merges[dtype]
    assert off < tolerance and exact < 1e-4
    assert changed > 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that Megatron-Bridge trained: ``lora``, with ``base-megatron`` and ``base-hf`` beside it."""
    folder = tmp_path_factory.mktemp("trained")
    assert "iter_0000003" in work("adapter", folder)
    assert checkpoint_lora.validate(folder / "lora")["layout"] == "megatron"
    return folder


def test_merge_through_megatron_equals_base_plus_adapter(trained: Path) -> None:
    merged, megatron = trained / "merged-hf", trained / "merged-megatron"
    outputs = {"output_hf_path": str(merged), "output_megatron_path": str(megatron)}
    done = convert(STEP, trained / "run", {"lora_checkpoint": str(trained / "lora"), **outputs})
    assert done.status == 0, done.stderr[-3000:]
    assert done.facts["backend"] == "megatron_bridge" and done.facts["rank"] == 8
    assert checkpoint_hf.validate(merged)["parameters"] == done.facts["parameters"]
    assert checkpoint_megatron.validate(megatron)["base"] == str(trained / "base-hf")
    off, changed, same = work("compare_megatron_merge", trained)
    assert off < 1e-4 and changed > 1e-2 and same


def test_other_megatron_base_than_the_adapters_is_refused(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained / "base-megatron", other)
    config = other / "iter_0000000" / "run_config.yaml"
    config.write_text(config.read_text().replace(str(trained / "base-hf"), "org/other"))
    overrides = {"lora_checkpoint": str(trained / "lora"), "base_megatron_path": str(other)}
    done = convert(STEP, tmp_path, {**overrides, "output_hf_path": str(tmp_path / "hf")})
    assert done.status == BAD_INPUT and done.error["name"] == "base_model_mismatch"
    assert "org/other" in done.error["message"] and not (tmp_path / "hf").exists()


SCRIPT = """
import json, sys
from pathlib import Path
Path(__file__).with_name("said.json").write_text(json.dumps(sys.argv[1:]))
sys.exit(5)
"""


def test_script_of_the_container_gets_its_flags_and_its_exit_status_is_kept(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "merge.py").write_text(SCRIPT)
    overrides = {"lora_checkpoint": str(trained / "lora"), "upstream_script": str(tmp_path / "merge.py"), "tp": 2}
    outputs = {"output_hf_path": str(tmp_path / "hf"), "output_megatron_path": str(tmp_path / "megatron")}
    done = convert(STEP, tmp_path, {**overrides, **outputs, "debug": True})
    assert done.status == 5
    assert json.loads((tmp_path / "said.json").read_text()) == [
        *["--lora-checkpoint", str(trained / "lora/iter_0000003"), "--hf-model-path", str(trained / "base-hf")],
        *["--output", str(tmp_path / "megatron"), "--tp", "2", "--pp", "1", "--ep", "1"],
        *["--pretrained", str(trained / "base-megatron/iter_0000000"), "--cpu", "--debug"],
    ]


def adapter(folder: Path, config: str = CONFIG) -> Path:
    write(folder, {"adapter_config.json": config, "adapter_model.safetensors": ""})
    return folder


def test_newest_adapter_is_what_latest_names_else_the_last_by_step(tmp_path: Path) -> None:
    runs = tmp_path / "peft-30b-v99"
    first, last = (adapter(runs / f"epoch_{e}_step_{s}" / "model") for e, s in ((0, 100), (1, 20)))
    torn = adapter(runs / "epoch_2_step_500" / "model")
    (torn.parent / ".incomplete").touch()
    (runs / "epoch_3_step_900" / "model").mkdir(parents=True)
    assert lora_adapter.find(str(runs), "k") == last
    (runs / "LATEST").symlink_to("epoch_0_step_100")
    assert lora_adapter.find(str(runs), "k") == first.resolve()
    assert lora_adapter.find(str(last), "k") == last
    steps = tmp_path / "huggingface-70b"
    expected = [adapter(steps / f"checkpoint-{n}") for n in (9, 10)][1]
    assert lora_adapter.find(str(steps), "k") == expected


def test_several_adapters_without_steps_are_ambiguous(tmp_path: Path) -> None:
    adapter(tmp_path / "rank-64" / "a")
    adapter(tmp_path / "rank-8" / "b")
    with pytest.raises(PayloadError, match="holds several adapters") as told:
        lora_adapter.find(str(tmp_path), "k")
    assert told.value.name == "adapter_ambiguous"


def test_recorded_base_counts_from_the_adapter_and_another_is_refused(tmp_path: Path) -> None:
    made, base, other = adapter(tmp_path / "run/LATEST/model"), tmp_path / "run/base", tmp_path / "other"
    for folder, text in ((base, "a"), (other, "b"), (tmp_path / "copy", "a")):
        write(folder, {"config.json": "{}", "model.safetensors": text})
    config = {"base_model_name_or_path": "../../base"}
    assert lora_adapter.base(None, made, config) == str(base)
    assert lora_adapter.base(str(tmp_path / "copy"), made, config) == str(tmp_path / "copy")
    for given, recorded in ((str(other), "../../base"), ("org/other", "org/base")):
        with pytest.raises(PayloadError, match="the adapter was trained on") as told:
            lora_adapter.base(given, made, {"base_model_name_or_path": recorded})
        assert told.value.name == "base_model_mismatch"
    assert lora_adapter.base(str(other), made, {"base_model_name_or_path": "org/base"}) == str(other)


@pytest.mark.parametrize(
    ("overrides", "files", "name", "part"),
    [
        ({"lora_checkpoint": None}, {}, "config_invalid", "lora_checkpoint is not set"),
        ({"backend": "peft"}, {}, "config_invalid", "backend=peft"),
        ({"torch_dtype": "int8"}, {}, "config_invalid", "torch_dtype=int8"),
        ({"lora_checkpoint": "{}/none"}, {}, "adapter_missing", "none: no such directory"),
        ({"lora_checkpoint": "{}"}, {"notes.txt": ""}, "adapter_missing", "no adapter_config.json with"),
        ({"lora_checkpoint": "{}"}, {"adapter_config.json": CONFIG}, "adapter_invalid", "adapter_model.safetensors"),
        ({"base_hf_path": "{}"}, {}, "base_model_mismatch", "tiny_lora is an adapter of tiny_llama"),
        (
            {"lora_checkpoint": "{}"},
            {"adapter_config.json": CONFIG, "adapter_model.safetensors": "torn"},
            "adapter_invalid",
            "given: ",
        ),
        (
            {"lora_checkpoint": "{}", "backend": "hf_peft"},
            {"iter_0000001/.metadata": ""},
            "backend_mismatch",
            "hf_peft",
        ),
        (
            {"lora_checkpoint": "{}"},
            {f"iter_0000001/{n}": "{}" for n in (".metadata", "metadata.json", "0.distcp", "run_config.yaml")},
            "adapter_invalid",
            "this is a whole model",
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    tmp_path: Path, overrides: dict[str, Any], files: dict[str, str], name: str, part: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    write(given, files)
    filled = {k: v.format(given) if isinstance(v, str) else v for k, v in overrides.items()}
    done = convert(STEP, tmp_path, {"output_hf_path": str(tmp_path / "hf"), **filled})
    assert done.status == BAD_INPUT, done.stderr[-2000:]
    assert done.error["name"] == name and part in done.error["message"] and done.error["recovery"]
    assert not (tmp_path / "hf").exists() and "Traceback" not in done.stderr


def test_adapter_of_another_shape_vocabulary_or_with_nan_is_refused(merges: dict[str, Any]) -> None:
    told = merges["misfits"]
    assert [name for name, _ in told] == ["base_model_mismatch", "vocabulary_mismatch", "adapter_invalid"]
    assert "q_proj.lora_A" in told[0][1] and "has 500 tokens" in told[1][1] and "NaN" in told[2][1]

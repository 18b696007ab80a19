"""sft/automodel as it is started for real: a subprocess in the train environment, on the CPU, offline."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from automodel_run import BAD_INPUT, Run, python, training_past
from interpreters import STEPS
from omegaconf import OmegaConf

STEP = STEPS / "sft" / "automodel"
TINY = STEP / "config" / "tiny.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run(tmp_path_factory.mktemp("whole")).finish(cold=True)


def test_loss_falls_and_every_step_is_reported(whole: Run) -> None:
    steps = [m for m in whole.messages("progress") if "loss" in m["metrics"]]
    assert [m["step"] for m in steps] == list(range(1, 41))
    assert {m["total"] for m in steps} == {40}
    assert steps[-1]["metrics"]["loss"] < 0.4 * steps[0]["metrics"]["loss"]
    assert all(m["metrics"]["tokens_per_second"] > 0 and m["metrics"]["memory_mib"] > 100 for m in steps)


def test_metrics_table_holds_what_was_reported(whole: Run) -> None:
    said = [m for m in whole.messages("progress") if "loss" in m["metrics"]]
    table = pq.read_table(whole.out / "metrics.parquet").to_pydict()
    assert table["step"] == [m["step"] for m in said]
    for name in ("loss", "lr", "grad_norm", "tokens_per_second", "memory_mib"):
        assert table[name] == pytest.approx([m["metrics"][name] for m in said]), name


def test_result_records_what_was_done(whole: Run) -> None:
    facts = whole.facts()
    assert facts["steps"] == 40 and facts["rows"] == 480 and facts["peft"] is None and facts["resumed_from"] is None
    assert facts["parameters"] == facts["trained_parameters"] < 1_000_000
    assert facts["trained_tokens"] > 10_000
    assert facts["final_loss"] == whole.losses()[39]
    assert len(facts["chat_template_sha256"]) == len(facts["tokenizer_sha256"]) == 64


def test_artifact_is_a_model_that_answers_and_stops(whole: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole.out, moved, symlinks=True)  # publishing renames the directory
    code = """
import sys, json
from transformers import AutoModelForCausalLM, AutoTokenizer
where = sys.argv[1]
tokenizer, model = AutoTokenizer.from_pretrained(where), AutoModelForCausalLM.from_pretrained(where)
turns = [{"role": "user", "content": "What is 12 in Roman numerals?"}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=40)[0, prompt["input_ids"].shape[1]:]
print(json.dumps([tokenizer.decode(answer, skip_special_tokens=True), bool(answer[-1] == tokenizer.eos_token_id)]))
"""
    answer, stopped = json.loads(python(code, moved / "LATEST" / "model" / "consolidated"))
    assert stopped and answer and set(answer) <= set("MDCLXVI")


@pytest.mark.parametrize(
    ("peft", "rank"), [("lora", 16), ({"match_all_linear": True, "dim": 4}, 4)], ids=["lora", "tied_head_too"]
)
def test_lora_artifact_equals_base_plus_adapter(tmp_path: Path, peft: Any, rank: int) -> None:
    run = Run(tmp_path, {"peft": peft, "step_scheduler.max_steps": 8}).finish()
    facts = run.facts()
    assert facts["peft"]["dim"] == rank and facts["trained_parameters"] < facts["parameters"] / 2
    assert (run.out / facts["adapter"] / "adapter_model.safetensors").is_file()
    code = """
import sys, json, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, merged = sys.argv[1:]
ids = torch.tensor([AutoTokenizer.from_pretrained(merged)("What is 12 in Roman numerals?")["input_ids"]])
load = AutoModelForCausalLM.from_pretrained
with torch.no_grad():
    plain = load(base)(ids).logits
    both = PeftModel.from_pretrained(load(base), adapter).eval()(ids).logits
    one = load(merged)(ids).logits
print(json.dumps([float((one - both).abs().max()), float((one - plain).abs().max())]))
"""
    off, learned = json.loads(python(code, run.out / "base", run.out / facts["adapter"], run.artifact))
    assert off < 1e-4
    assert learned > 1e-2


def _saving_after_the_first(run: Run) -> bool:
    return any(
        not path.parent.name.endswith("_step_19") and (path.parent / "optim").exists()
        for path in run.out.glob("epoch_*/.incomplete")
    )


@pytest.mark.parametrize("moment", [training_past(30), _saving_after_the_first], ids=["training", "saving"])
@pytest.mark.parametrize("peft", ["null", "lora"])
def test_kill_and_rerun_ends_where_an_undisturbed_run_ends(
    whole: Run, tmp_path: Path, moment: Callable[[Run], bool], peft: str
) -> None:
    run = Run(tmp_path / "killed", {"peft": peft})
    run.kill_when(moment)
    torn = [path.parent for path in run.out.glob("epoch_*/.incomplete")]
    assert bool(torn) == (moment is _saving_after_the_first)
    assert run.losses().keys() <= set(range(40)) and not run.artifact.exists()

    run.finish()
    assert run.facts()["resumed_from"] == 20
    undisturbed = whole if peft == "null" else Run(tmp_path / "undisturbed", {"peft": peft}).finish()
    assert run.losses() == pytest.approx(undisturbed.losses(), rel=1e-4)
    assert pq.read_table(run.out / "metrics.parquet")["step"].to_pylist() == list(range(1, 41))
    assert run.facts()["trained_tokens"] == undisturbed.facts()["trained_tokens"]
    assert run.artifact.is_dir() and not list(run.out.glob("epoch_*/.incomplete"))


def test_sigterm_saves_and_says_that_it_is_not_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    process = run.start()
    while not training_past(5)(run):
        assert process.poll() is None, (run.folder / "log").read_text()[-3000:]
        time.sleep(0.005)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert (run.out / "LATEST").exists() and not run.messages("result")
    run.finish()
    assert 5 <= run.facts()["resumed_from"] < 40 and run.facts()["steps"] == 40


def test_validation_is_reported_and_a_rerun_of_a_finished_run_adds_nothing(tmp_path: Path) -> None:
    tiny = OmegaConf.to_container(OmegaConf.load(TINY), resolve=False)
    assert isinstance(tiny, dict)
    held_out = {
        "validation_dataset": tiny["dataset"],
        "validation_dataloader": {**tiny["dataloader"], "shuffle": False},
    }
    run = Run(tmp_path, {**held_out, "step_scheduler.max_steps": 3, "step_scheduler.val_every_steps": 2}).finish()
    said = [m for m in run.messages("progress") if "validation_loss" in m["metrics"]]
    assert [m["step"] for m in said] == [2, 3] and all(4 < m["metrics"]["validation_loss"] < 7 for m in said)
    table = pq.read_table(run.out / "metrics.parquet").to_pydict()
    losses = [m["metrics"]["validation_loss"] for m in said]
    assert table["validation_loss"] == [None, *map(pytest.approx, losses)]
    before = run.losses()
    shutil.rmtree(run.out / "base")
    run.finish()
    assert run.facts()["steps"] == 3 and run.losses() == before and run.artifact.is_dir()
    assert not run.messages("progress")


def test_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, {"optimizer.lr": 1e30, "step_scheduler.ckpt_every_steps": 1})
    assert run.start().wait(timeout=300) == BAD_INPUT
    [error] = run.messages("error")
    assert error["name"] == "loss_not_finite" and "step " in error["message"]
    assert list(run.out.glob("epoch_*_step_*/model")) and not list(run.out.glob("epoch_*/.incomplete"))


def test_other_peft_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, {"step_scheduler.max_steps": 1}).finish()
    run = Run(tmp_path, {"step_scheduler.max_steps": 2, "peft": "lora"})
    assert run.start().wait(timeout=300) == BAD_INPUT
    assert run.messages("error")[0]["name"] == "checkpoint_mismatch"


GOOD = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "I"}]}
NO_ANSWER = {"messages": [{"role": "user", "content": "1"}]}
BAD_ROLE = {"messages": [{"role": "robot", "content": "1"}]}
DATA = "dataset.path_or_dataset_id"
MODEL = "model.pretrained_model_name_or_path"


@pytest.mark.parametrize(
    ("overrides", "files", "name", "part"),
    [
        ({DATA: "/path/to/train.jsonl"}, {}, "dataset_missing", "dataset.path_or_dataset_id is not set"),
        ({DATA: "???"}, {}, "dataset_missing", "is not set"),
        ({DATA: "{}/none.jsonl"}, {}, "dataset_missing", "none.jsonl: no such file"),
        ({DATA: "{}"}, {}, "dataset_missing", "holds no .jsonl file"),
        ({DATA: "{}"}, {"a.jsonl": ""}, "dataset_empty", "no rows"),
        ({DATA: "{}"}, {"a.jsonl": [GOOD], "b.jsonl": [GOOD, {"text": "x"}]}, "dataset_invalid", "b.jsonl, line 2: no"),
        ({DATA: "{}"}, {"a.jsonl": [GOOD, NO_ANSWER]}, "dataset_invalid", "a.jsonl, line 2: no assistant turn"),
        ({DATA: "{}"}, {"a.jsonl": [BAD_ROLE]}, "dataset_invalid", "messages[0].role is 'robot'"),
        ({DATA: "{}/a.jsonl"}, {"a.jsonl": "{not json\n"}, "dataset_invalid", "a.jsonl, line 1: not JSON"),
        ({MODEL: None}, {}, "model_missing", f"{MODEL} is not set"),
        ({MODEL: "{}/none"}, {}, "model_missing", "no such directory"),
        ({MODEL: "{}"}, {"a.txt": ""}, "model_invalid", "has no config.json"),
        ({MODEL: "{}"}, {"config.json": "{{}}"}, "model_invalid", "has no weights"),
        ({"checkpoint.save_consolidated": False}, {}, "checkpoint_disabled", "save_consolidated"),
        ({"lr_scheduler.lr_warmup_steps": 40}, {}, "config_invalid", "lr_warmup_steps=40: not less than"),
        ({"peft": "qlora"}, {}, "config_invalid", "peft='qlora'"),
        ({"_step_recipe": "nowhere:Recipe"}, {}, "recipe_missing", "nowhere"),
    ],
)
def test_bad_input_is_told_before_training(
    tmp_path: Path, overrides: dict[str, Any], files: dict[str, Any], name: str, part: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for file, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (given / file).write_text(text)
    run = Run(tmp_path, {k: v.format(given) if isinstance(v, str) else v for k, v in overrides.items()})
    assert run.start().wait(timeout=120) == BAD_INPUT, (run.folder / "log").read_text()[-3000:]
    [error] = run.messages("error")
    assert error["name"] == name and part in error["message"] and error["recovery"]
    assert not run.messages("progress")
    assert "Traceback" not in (run.folder / "log").read_text()


def test_packed_parquet_is_named_for_what_it_is(tmp_path: Path) -> None:
    import pyarrow as pa

    packed = pa.table({"input_ids": [[1, 2]], "loss_mask": [[0, 1]], "seq_start_id": [[0]]})
    (tmp_path / "packed").mkdir()
    pq.write_table(packed, tmp_path / "packed" / "shard_000000.parquet")
    run = Run(tmp_path, {DATA: str(tmp_path / "packed")})
    assert run.start().wait(timeout=120) == BAD_INPUT
    assert run.messages("error")[0]["name"] == "packed_parquet_used_with_automodel"


def test_model_without_chat_template_is_refused(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.out / "base", tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(settings))
    run = Run(tmp_path, {MODEL: str(tmp_path / "base")})
    assert run.start().wait(timeout=120) == BAD_INPUT
    assert run.messages("error")[0]["name"] == "chat_template_missing"


def test_large_model_is_refused_on_the_cpu_without_loading_it(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.out / "base", tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    settings |= {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32}
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings))
    run = Run(tmp_path, {MODEL: str(tmp_path / "base")})
    assert run.start().wait(timeout=120) == BAD_INPUT
    [error] = run.messages("error")
    assert error["name"] == "cpu_model_too_large" and "M parameters" in error["message"]


def test_cpu_module_is_inert_where_cuda_is_available() -> None:
    code = """
import json, torch
names = [n for n in dir(torch.cuda) if callable(getattr(torch.cuda, n))]
torch.cuda.is_available = lambda: True
before = {n: getattr(torch.cuda, n) for n in names}
import nemo_automodel.recipes.llm.train_ft as recipe
placer = recipe.apply_model_infrastructure
from _runtime import cpu
said = []
on = cpu.enable(said.append)
same = all(getattr(torch.cuda, n) is before[n] for n in names)
print(json.dumps([on, said, same, recipe.apply_model_infrastructure is placer]))
"""
    assert json.loads(python(code)) == [False, [], True, True]


def test_cpu_module_refuses_an_automodel_it_was_not_written_for() -> None:
    code = """
import importlib.metadata, json, torch
importlib.metadata.version = lambda name: "9.9.9"
torch.cuda.is_available = lambda: False
from _runtime import cpu, payload
before = torch.cuda.current_device
try:
    cpu.enable()
except payload.PayloadError as e:
    print(json.dumps([e.name, "9.9.9" in e.message, torch.cuda.current_device is before]))
"""
    assert json.loads(python(code)) == ["cpu_unsupported", True, True]


def test_bundled_tokenizer_is_what_the_code_makes(tmp_path: Path) -> None:
    python("import sys; from _runtime import tiny_model; tiny_model.save(sys.argv[1]); print('made')", tmp_path)
    for file in (STEPS / "_runtime" / "tiny_llama").iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_loss_is_on_the_answer_and_its_end_only() -> None:
    code = """
import json
from transformers import AutoTokenizer
from nemo_automodel.components.datasets.llm.formatting_utils import format_chat_template
from _runtime import tiny_model
t = AutoTokenizer.from_pretrained(tiny_model.HERE)
turns = [{"role": "user", "content": "What is 12 in Roman numerals?"}, {"role": "assistant", "content": "XII"}]
row = format_chat_template(t, turns * 2, t.eos_token_id, t.pad_token_id)
print(json.dumps([t.decode([i]) for i in row["labels"] if i != -100]))
"""
    assert json.loads(python(code)) == ["X", "I", "I", "<|im_end|>"] * 2

"""pretrain/megatron_bridge as it is started for real: trained, killed, gone on with, exported."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from interpreters import STEPS
from megatron_run import BAD_INPUT, Run, exported, refusals, train_python
from payload_run import REPOSITORY, run_payload

from nemotron_dagster.artifacts.types import binidx, checkpoint_megatron

STEP = STEPS / "pretrain" / "megatron_bridge"
DATA = STEP / "data"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run("pretrain", tmp_path_factory.mktemp("whole")).finish(cold=True)


def test_loss_falls_and_every_iteration_is_reported(whole: Run) -> None:
    said = [m for m in whole.messages("progress") if "loss" in m["metrics"]]
    assert [m["step"] for m in said] == list(range(1, 41)) and {m["total"] for m in said} == {40}
    assert said[-1]["metrics"]["loss"] < 0.4 * said[0]["metrics"]["loss"]
    assert all(m["metrics"]["tokens_per_second"] > 0 and m["metrics"]["memory_mib"] > 100 for m in said)
    assert all(m["metrics"]["grad_norm"] > 0 for m in said)
    validated = [m for m in whole.messages("progress") if "validation_loss" in m["metrics"]]
    assert {m["step"] for m in validated} == {20, 40}


def test_result_and_metrics_record_what_was_done(whole: Run) -> None:
    facts, losses = whole.facts(), whole.losses()
    assert list(losses) == list(range(1, 41))
    assert (facts["first_loss"], facts["final_loss"], facts["steps"]) == (losses[1], losses[40], 40)
    assert facts["parameters"] == facts["trained_parameters"] < 1_000_000
    assert facts["resumed_from"] is None and facts["seed"] == 1 and "gloo" in facts["backend"]
    assert len(facts["tokenizer_sha256"]) == len(facts["chat_template_sha256"]) == 64
    columns = set(pq.read_schema(whole.out / "metrics.parquet").names)
    assert columns >= {"step", "loss", "lr", "grad_norm", "tokens_per_second", "memory_mib", "validation_loss"}


def test_checkpoint_is_of_its_type_and_nothing_else_is_left(whole: Run) -> None:
    facts = checkpoint_megatron.validate(whole.out)
    assert (facts["kind"], facts["latest"], facts["base"]) == ("parent", "iter_0000040", "tiny_llama")
    assert facts["sequence_length"] == 128 and facts["vocab_size"] == 394 and facts["incomplete"] == []
    assert {p.name for p in whole.out.iterdir()} == {
        "base",
        "iter_0000020",
        "iter_0000040",
        "latest_checkpointed_iteration.txt",
        "latest_train_state.pt",
        "metrics.parquet",
    }
    assert {p.name for p in whole.folder.iterdir()} <= {"out", "log", "messages.jsonl", "config.yaml", "hf"}


def test_exported_model_has_learned_text_that_it_never_saw(whole: Run, tmp_path: Path) -> None:
    held_out = np.fromfile(DATA / "shard_000002.bin", dtype=np.uint16).tolist()[:400]
    found = exported(whole, tmp_path, held_out)
    assert found["tensors"] > 5 and found["after"] < 0.4 * found["before"]


def test_killed_run_goes_on_from_the_last_whole_iteration_and_ends_as_if_undisturbed(
    whole: Run, tmp_path: Path
) -> None:
    run = Run("pretrain", tmp_path)
    process = run.start()
    run.until(process, lambda r: r.past(25))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.tracked() == "20" and (run.out / ".last_whole_iteration").read_text() == "20"
    # What a kill leaves after Megatron-Bridge has moved its trackers on, and before it writes run_config.yaml
    torn = run.out / "iter_0000040"
    shutil.copytree(run.out / "iter_0000020", torn)
    (torn / "run_config.yaml").unlink()
    (run.out / "latest_checkpointed_iteration.txt").write_text("40")
    shutil.copyfile(whole.out / "latest_train_state.pt", run.out / "latest_train_state.pt")

    run.finish()
    assert "removed iter_0000040" in run.log() or "removed iter_0000040" in (run.folder / "log").read_text()
    assert run.facts()["resumed_from"] == 20 and run.facts()["steps"] == 40
    assert [m["step"] for m in run.messages("progress") if "loss" in m["metrics"]] == list(range(21, 41))
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert checkpoint_megatron.validate(run.out)["latest"] == "iter_0000040"


def test_sigterm_saves_and_says_that_it_is_not_done(tmp_path: Path) -> None:
    run = Run("pretrain", tmp_path)
    process = run.start()
    run.until(process, lambda r: r.past(3))
    process.terminate()
    assert process.wait(timeout=120) == 143, run.log()
    assert 3 <= int(run.tracked()) < 40 and not run.messages("result")
    assert checkpoint_megatron.validate(run.out)["latest"] == f"iter_{int(run.tracked()):07d}"


def test_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    settings = {"optimizer.lr": 1e30, "scheduler.lr_warmup_iters": 2, "checkpoint.save_interval": 1}
    run = Run("pretrain", tmp_path, settings)
    assert run.start().wait(timeout=300) == BAD_INPUT, run.log()
    [error] = run.messages("error")
    assert error["name"] == "loss_not_finite" and error["message"].startswith("iteration ")
    assert checkpoint_megatron.validate(run.out)["latest"] == run.iterations()[-1]
    assert all(np.isfinite(loss) for loss in run.losses().values())


def test_full_disk_while_saving_is_told_and_the_last_checkpoint_kept(tmp_path: Path) -> None:
    run = Run("pretrain", tmp_path, {"train.train_iters": 8, "checkpoint.save_interval": 4})
    process = run.start()
    run.until(process, lambda r: r.past(4) and (r.out / ".last_whole_iteration").read_text() == "4")
    tracker = run.out / "latest_train_state.pt"
    tracker.unlink()
    tracker.symlink_to("/dev/full")  # whoever writes there is told that the disk is full
    assert process.wait(timeout=120) == BAD_INPUT, run.log()
    [error] = run.messages("error")
    assert error["name"] == "disk_full" and str(run.out) in error["message"]
    assert (run.out / ".last_whole_iteration").read_text() == "4" and "iter_0000004" in run.iterations()


def test_bundled_shards_are_what_data_prep_makes(tmp_path: Path, data_python: str) -> None:
    text = {"name": "numerals", "path": str(REPOSITORY / "steps/data_prep/pretrain_prep/data/numerals.jsonl")}
    (tmp_path / "blend.json").write_text(json.dumps({"datasets": [{**text, "weight": 1.0}]}))
    made = run_payload(
        REPOSITORY / "steps/data_prep/pretrain_prep",
        {
            "blend_path": str(tmp_path / "blend.json"),
            "output_dir": str(tmp_path / "out"),
            "num_shards": 3,
            "valid_shards": 1,
            "test_shards": 0,
            "split_seed": 42,
            "tokenizer": {"model": str(REPOSITORY / "steps/_runtime/tiny_llama"), "add_bos": False, "add_eos": True},
            "dtype": "auto",
            "text_field": "text",
        },
        tmp_path / "run",
        data_python,
    )
    assert made.status == 0, made.stderr
    [plan] = (tmp_path / "out").rglob("plan.json")
    for shard in sorted(plan.parent.glob("shard_*.*")):
        assert shard.read_bytes() == (DATA / shard.name).read_bytes(), shard.name
    blend = json.loads((tmp_path / "out/blend.json").read_text())
    named = {k: [v.rpartition("/")[2] for v in entries] for k, entries in blend.items()}
    assert json.loads((DATA / "blend.json").read_text()) == named
    bundled, fresh = json.loads((DATA / "plan.json").read_text()), json.loads(plan.read_text())
    assert bundled["settings"].items() <= fresh["settings"].items()
    for key in ("vocab_size", "fingerprint"):
        assert bundled["resolved_tokenizer"][key] == fresh["resolved_tokenizer"][key]
    assert binidx.validate(DATA)["largest_token"] < 394


PATHS = "dataset.data_paths"
NANO = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config"
BASE = "checkpoint.pretrained_checkpoint"
TWO = {"train": ["1", "a"]}


Files = dict[str, Any]
WRONG: list[tuple[dict[str, Any], Files, str, str]] = [
    ({PATHS: None}, {}, "missing_blend_json", "dataset.data_paths is not set"),
    ({PATHS: "{}/none.json"}, {}, "missing_blend_json", "none.json: no such file"),
    ({PATHS: "{}/b.json"}, {"b.json": "[1,"}, "missing_blend_json", "not readable as JSON"),
    ({PATHS: "{}/b.json"}, {"b.json": {"train": []}}, "missing_blend_json", "lists no shard in train"),
    ({PATHS: "{}/b.json"}, {"b.json": TWO}, "missing_blend_json", "a.bin: no such file"),
    ({PATHS: "{}/b.json"}, {"b.json": TWO, "a.bin": "", "a.idx": ""}, "dataset_empty", "hold no token"),
    ({PATHS: "{}/b.json"}, {"b.json": TWO, "a.bin": "xxxx", "a.idx": "?"}, "missing_blend_json", "is no index"),
    ({"checkpoint.load": "{}/none"}, {}, "checkpoint_missing", "no Megatron checkpoint there"),
    ({BASE: "{}/none"}, {}, "missing_base_checkpoint", "no Megatron checkpoint there"),
    ({BASE: "{}/out"}, {"out/iter_1/.metadata": "", "out/run_config.yaml": ""}, "base_and_adapter_paths", "within"),
    ({"hf_model_path": "{}/none"}, {}, "model_missing", "no such directory"),
    ({"logger.wandb_project": "p"}, {}, "package_missing", "the package wandb is not installed"),
]


def test_bad_input_is_told_before_any_library_is_imported(tmp_path: Path) -> None:
    cases = []
    for n, (overrides, files, _, _) in enumerate(WRONG):
        folder = tmp_path / str(n)
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        cases.append({k: v.replace("{}", str(folder)) if isinstance(v, str) else v for k, v in overrides.items()})
    for case, (_, _, name, part), told in zip(
        cases, WRONG, refusals("pretrain", tmp_path, cases, cold=True), strict=True
    ):
        assert told.name.startswith(name) and part in told.message, (case, told)
        assert not told.imported, case


def test_refused_run_exits_with_status_3_and_no_traceback(tmp_path: Path) -> None:
    assert Run("pretrain", tmp_path, {PATHS: None}).refused()["name"] == "missing_blend_json"
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_bad_settings_are_told_before_the_model_is_built(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"optimizer.lrr": 1}, "config_unknown_key", "optimizer.lrr: Megatron-Bridge has no such key"),
        ({"trainer.max_steps": 1}, "config_unknown_key", "trainer: Megatron-Bridge has no such key"),
        ({"recipe.seq_len": 1}, "config_unknown_key", "recipe.seq_len: Megatron-Bridge has no such key"),
        ({"train": 3}, "config_invalid", "train=3: must be a mapping"),
        ({"train.train_iters": "many"}, "config_invalid", "train.train_iters='many': must be a number"),
        ({"dataset.seq_length": 64}, "sequence_length_mismatch", "model.seq_length=128, dataset.seq_length=64"),
        ({"train.global_batch_size": 24}, "bad_parallel_batch_shape", "24 is no multiple of train.micro_batch_size=16"),
        ({"model.tensor_model_parallel_size": 2}, "bad_parallel_batch_shape", "1 processes do not divide by 2"),
        ({"recipe._target_": "megatron.bridge.recipes.nothing.x"}, "recipe_missing", "recipe._target_="),
        ({"hf_model_path": None}, "model_missing", "the recipe has no model of its own"),
        ({"model.num_layers": 4000}, "cpu_model_too_large", "M parameters"),
        ({"recipe._target_": NANO, "hf_model_path": None}, "cpu_unsupported", "CUDA devices only"),
    ]
    data = {"dataset.data_paths": str(DATA / "blend.json")}
    said = refusals("pretrain", tmp_path, [{**data, **overrides} for overrides, _, _ in wrong])
    for (overrides, name, part), told in zip(wrong, said, strict=True):
        assert (told.name, part in told.message) == (name, True), (overrides, told)
        assert told.recovery
    assert said[0].recovery == "Did you mean optimizer.lr?"


def test_token_outside_the_vocabulary_and_another_tokenizer_are_refused(tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from _runtime import megatron_data
from _runtime.payload import PayloadError
data = megatron_data.tokens(sys.argv[1], "dataset.data_paths")
said = []
for vocabulary, tokenizer in ((394, None), (100, None), (394, sys.argv[2]), (394, sys.argv[3])):
    try:
        megatron_data.check_fit(data, {"model.seq_length": 8}, vocabulary, tokenizer)
        said.append("fits")
    except PayloadError as e:
        said.append(e.name + ": " + e.message)
print(json.dumps(said))
"""
    own, other = STEPS / "_runtime/tiny_llama", tmp_path / "other"
    shutil.copytree(own, other)
    changed = json.loads((own / "tokenizer.json").read_text())
    changed["added_tokens"][0]["content"] = "<|other|>"
    (other / "tokenizer.json").write_text(json.dumps(changed))
    fits, too_large, same, differs = train_python(code, DATA / "blend.json", own, other)
    assert fits == same == "fits"
    assert too_large.startswith("tokenizer_mismatch") and "vocabulary of 100" in too_large
    assert differs.startswith("tokenizer_mismatch") and str(other) in differs

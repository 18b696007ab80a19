"""Distills a teacher into a student with ModelOpt in this process; the student is saved as Megatron's and as HF's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint, metrics, modelopt_scripts, payload
from _runtime.optimize import checks, distill_state, megatron, models, tokens
from _runtime.optimize.distill_course import Course, Plan
from _runtime.payload import PayloadError

TEACHER, STUDENT, OUTPUT = "teacher_hf_path", "student_hf_path", "output_dir"
OUTPUT_MISSING = "Set args.output_dir to the directory for the run."
KNOWN = frozenset(
    {
        *(TEACHER, STUDENT, OUTPUT, "hf_export_path", "trust_remote_code", "seed"),
        *("data_paths", "data_path_to_cache", "use_mock_data", "seq_length", "mbs", "gbs", "train_iters"),
        *("lr", "min_lr", "lr_warmup_iters", "eval_interval", "eval_iters", "log_interval", "save_interval"),
        *("kd_loss_scale", "no_skip_lm_loss", "tp_size", "pp_size"),
    }
)
MISMATCH = "teacher_student_or_tokenizer_mismatch"


def check(cfg: Mapping[str, Any]) -> None:
    """Refuse settings that cannot work, for the script as well as for this process.

    Raises:
        PayloadError: naming the settings.
    """
    args = modelopt_scripts.section(cfg, "args")
    named = {key: checks.model(args, key) for key in (TEACHER, STUDENT)}
    output = checks.given(args, OUTPUT, "output_missing", OUTPUT_MISSING)
    checks.apart(output, OUTPUT, named, "output_dir_overlaps_checkpoint_roots")
    if args.get("hf_export_path"):
        checks.apart(str(args["hf_export_path"]), "hf_export_path", named, "output_dir_overlaps_checkpoint_roots")
    _check_tokenizers(named)
    if args.get("use_mock_data") and args.get("data_paths"):
        raise PayloadError(
            "mock_data_used_as_quality_signal",
            f"args.use_mock_data=true with args.data_paths={args['data_paths']}: the data would not be read",
            "Set args.use_mock_data=false to train on it, or args.data_paths=null to try the run out.",
        )
    if not args.get("use_mock_data"):
        tokens.blend(args.get("data_paths"))
    if modelopt_scripts.backend(cfg) == "script":
        sizes = {k: modelopt_scripts.whole(args, k, 1) for k in ("tp_size", "pp_size")}
        checks.world_divides(cfg, sizes, "world_size_not_divisible")
        return
    checks.one_process(cfg)
    checks.known(args, KNOWN)
    for key in ("tp_size", "pp_size"):
        if modelopt_scripts.whole(args, key, 1) != 1:
            raise PayloadError(
                "config_invalid", f"args.{key}={args[key]}: backend=inprocess runs in one process", "Set it to 1."
            )
    plan(args, int(cfg.get("seed") or 0))


def script_arguments(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config as the script takes it: it knows shards only as a list, not a blend.json."""
    args = modelopt_scripts.section(cfg, "args")
    if isinstance(args.get("data_paths"), str):
        args["data_paths"] = list(tokens.blend(args["data_paths"]).train)
    return {**cfg, "args": args}


def _check_tokenizers(named: Mapping[str, str]) -> None:
    words = {key: checks.vocabulary(model) for key, model in named.items()}
    teacher, student = words[TEACHER], words[STUDENT]
    if teacher is None or student is None or teacher == student:
        return  # of a Hub id nothing is known yet
    other = next(t for t in [*teacher, *student] if teacher.get(t) != student.get(t))
    raise PayloadError(
        MISMATCH,
        f"args.{TEACHER}={named[TEACHER]} and args.{STUDENT}={named[STUDENT]}: their tokenizers differ; {other!r} is "
        f"{teacher.get(other)} to one and {student.get(other)} to the other",
        "Use a teacher and a student of one family.",
    )


def plan(args: Mapping[str, Any], seed: int) -> Plan:
    """The numbers of the config, with the defaults of the script.

    Raises:
        PayloadError: one that cannot be, naming it.
    """
    counts = {"seq_length": 4096, "mbs": 1, "gbs": 768, "train_iters": 0, "eval_interval": 100}
    found = {k: modelopt_scripts.whole(args, k, d) for k, d in counts.items()}
    found["save_interval"] = modelopt_scripts.whole(args, "save_interval", found["eval_interval"])
    for key, default in {"lr_warmup_iters": 50, "eval_iters": 32, "seed": seed}.items():
        value = default if args.get(key) is None else args[key]
        found[key] = 0 if value == 0 else modelopt_scripts.whole({key: value}, key, 1)
    rates = {"lr": 1e-4, "min_lr": 1e-5, "kd_loss_scale": 1.0}
    try:
        given = {k: float(d if args.get(k) is None else args[k]) for k, d in rates.items()}
    except (TypeError, ValueError) as e:
        raise PayloadError("config_invalid", f"args: {e}", f"{', '.join(rates)} must be numbers.") from None
    if found["gbs"] % found["mbs"]:
        raise PayloadError(
            "config_invalid", f"args.gbs={found['gbs']}: not a multiple of args.mbs={found['mbs']}", "Change one."
        )
    if not 0 <= given["min_lr"] <= given["lr"]:
        raise PayloadError(
            "config_invalid", f"args.min_lr={given['min_lr']}: not from 0 to args.lr={given['lr']}", "Mend it."
        )
    return Plan(**found, **given, with_lm_loss=bool(args.get("no_skip_lm_loss")))  # type: ignore[arg-type]


def run(cfg: Mapping[str, Any]) -> None:
    """Distill as ``args`` say; ``args.output_dir`` gets ``checkpoints/`` (Megatron's), ``hf/`` and metrics.parquet.

    Raises:
        PayloadError: input that a person must mend, or a loss that is no number.
    """
    args = modelopt_scripts.section(cfg, "args")
    numbers = plan(args, int(cfg.get("seed") or 0))
    output, trust = Path(args[OUTPUT]).absolute(), bool(args.get("trust_remote_code"))
    megatron.enable()
    teacher = models.load(str(args[TEACHER]), TEACHER, output / "base" / "teacher", numbers.seed, trust)
    student = models.load(str(args[STUDENT]), STUDENT, output / "base" / "student", numbers.seed + 1, trust, layers=1)
    _check_widths(teacher, student, numbers)
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(args.get("data_path_to_cache") or scratch)
        take, held_out = _samples(args, numbers, student, cache)
        course = Course(numbers, teacher.model, student.model, take, held_out, output)
        stopped = course.train()
    if stopped:
        print("stopped by SIGTERM after a checkpoint; the same command continues from it", flush=True)
        raise SystemExit(143)
    with models.saving(output):
        metrics.save(output, [r for r in course.records if r["step"]])
        _write(course.student(), student, numbers.train_iters, output, numbers.seed, trust)
        if args.get("hf_export_path"):
            shutil.copytree(output / "hf", Path(args["hf_export_path"]).absolute(), dirs_exist_ok=True)
    trained = [r for r in course.records if "loss" in r]
    validated = [r["validation_loss"] for r in course.records if "validation_loss" in r]
    payload.result(
        backend="inprocess",
        teacher="untrained tiny_llama" if teacher.scratch else teacher.path,
        base_model="untrained tiny_llama of one layer" if student.scratch else student.path,
        parameters=student.model.num_parameters(),
        teacher_parameters=teacher.model.num_parameters(),
        data=tokens.describe(args),
        quality_can_be_judged=not args.get("use_mock_data") and not teacher.scratch,
        steps=numbers.train_iters,
        seen_tokens=numbers.train_iters * numbers.gbs * numbers.seq_length,
        first_loss=trained[0]["loss"],
        final_loss=trained[-1]["loss"],
        first_validation_loss=validated[0] if validated else None,
        final_validation_loss=validated[-1] if validated else None,
        resumed_from=course.resumed_from,
        seed=numbers.seed,
        huggingface="hf",
        **hf_checkpoint.tokenizer_facts(output / "hf"),
    )
    distill_state.forget(course.folder)


def _check_widths(teacher: models.Loaded, student: models.Loaded, numbers: Plan) -> None:
    sizes = {name: int(m.model.config.vocab_size) for name, m in (("teacher", teacher), ("student", student))}
    if sizes["teacher"] != sizes["student"] or teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise PayloadError(
            MISMATCH,
            f"args.{TEACHER} has {sizes['teacher']} embeddings and args.{STUDENT} {sizes['student']}, and their "
            "tokenizers must be the same",
            "Use a teacher and a student of one family.",
        )
    for key, loaded in ((TEACHER, teacher), (STUDENT, student)):
        longest = getattr(loaded.model.config, "max_position_embeddings", None)
        if longest and numbers.seq_length > longest:
            raise PayloadError(
                "config_invalid",
                f"args.seq_length={numbers.seq_length}: args.{key} takes {longest} tokens",
                "Lower args.seq_length.",
            )


def _samples(
    args: Mapping[str, Any], numbers: Plan, student: models.Loaded, cache: Path
) -> tuple[Callable[[int], Any], Callable[[int], Any] | None]:
    size = int(student.model.config.vocab_size)
    if args.get("use_mock_data"):
        print("distilling on random tokens: says that it works, nothing about quality", flush=True)
        train, valid = (tokens.random(size, numbers.seq_length, numbers.seed + n) for n in (0, 1))
        return train, valid
    evaluations = numbers.train_iters // numbers.eval_interval + 2
    counts = (numbers.train_iters * numbers.gbs, numbers.eval_iters * numbers.mbs * evaluations)
    source = tokens.blend(args.get("data_paths"))
    return tokens.indexed(source, student.tokenizer, size, numbers.seq_length, counts, numbers.seed, cache)


def _write(model: Any, loaded: models.Loaded, step: int, output: Path, seed: int, trust: bool) -> None:
    """``hf/`` first, from which Megatron-Bridge makes ``checkpoints/``; each appears only when it is whole."""
    target, partial = output / "hf", output / ".hf.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.to("cpu", loaded.dtype).save_pretrained(partial)
    loaded.tokenizer.save_pretrained(partial, save_jinja_files=False)
    shutil.rmtree(target, ignore_errors=True)
    hf_checkpoint.put(partial, target)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    with megatron.imported(str(target), seed, trust) as converted:
        megatron.save(converted, output / "checkpoints", loaded.path, step, trust)

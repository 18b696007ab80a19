"""What configs may refer to: artifacts of two stores, manifests, mounts; looked up on disk, named when missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, add_step

from nemotron_dagster.artifacts.manifest import Manifest, now, write
from nemotron_dagster.artifacts.store import set_latest
from nemotron_dagster.catalog import Step, load_catalog
from nemotron_dagster.config.artifact_references import is_reference
from nemotron_dagster.config.compile import Relocation, compile_job
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.resolvers import AutoMount, parse_auto_mount
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import Project

TOML = '[step]\nid = "demo/refs"\n[[consumes]]\ntype = "training_jsonl"\nbind = "ckpt"\nrequired = false\n'
TOML += '[[produces]]\ntype = "training_jsonl"\nbind = "output_dir"\n'
SCRIPT = '# /// script\n# [tool.runspec]\n# name = "steps/demo/refs"\n# ///\n'


@pytest.fixture
def refs(project: Path) -> Step:
    add_step(project, "demo/refs", TOML, SCRIPT, default="n: 1\n")
    return load_catalog(Project(project, project)).find("demo/refs")


def config(step: Step, text: str) -> str:
    assert step.runspec
    (step.runspec.config_dir / "x.yaml").write_text(text, encoding="utf-8")
    return "x"


def tracked(root: Path, name: str, version: int, path: Path, **metadata: Any) -> None:
    """An artifact as the reference's manifest tracker leaves it."""
    folder = root / name / f"v{version}"
    folder.mkdir(parents=True)
    manifest = {"name": name, "version": version, "type": "model", "path": str(path), "metadata": metadata}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metadata.json").write_text(json.dumps({"path": str(path), "pack_size": 4096, "metadata": metadata}))
    (root / name / "latest").write_text(f"v{version}")


def published(root: Path, asset: str, key: str, **facts: Any) -> Path:
    """An artifact of our own."""
    from nemotron_dagster.artifacts.manifest import read

    folder = root / asset / key
    folder.mkdir(parents=True)
    manifest = Manifest("checkpoint_hf", asset, asset.split("/"), key, path="inner", facts=facts, created=now())
    write(folder, manifest)
    set_latest(root, asset.split("/"), None, read(folder))
    return folder / "inner"


def environment(root: Any) -> Environment:
    return Environment(None, {"artifacts": {"manifest": {"root": str(root)}}})


def test_an_artifact_of_the_reference_cli_is_found_by_name_version_and_alias(refs: Step, tmp_path: Path) -> None:
    root = tmp_path / "tracked"
    ckpt = tmp_path / "ckpt"
    (ckpt / "iter_0000100").mkdir(parents=True)
    (ckpt / "iter_0000020").mkdir()
    tracked(root, "model", 1, tmp_path / "old" / "iter_0000007", iteration=3)
    tracked(root, "model", 2, ckpt, tokens=10)
    (root / "model" / "best").write_text("v1")
    (root / ".art_index.json").write_text(json.dumps({"model": {"aliases": {"gold": 2}}}))

    def found(reference: str, field: str = "path") -> Any:
        name = config(refs, f"run: {{model: '{reference}'}}\nv: ${{art:model,{field}}}\n")
        return compile_job(refs, name, environment=environment(root), artifacts=tmp_path / "none").train["v"]

    for reference in ("model:latest", "model", "model:v2", "model:2", "model:gold"):
        assert found(reference) == str(ckpt), reference
    for reference in ("model:v1", "model:1", "model:best"):
        assert found(reference).endswith("iter_0000007"), reference
    assert found("model:latest", "version") == "v2"
    assert (found("model:v1", "iteration"), found("model", "iteration")) == (3, 100)
    assert (found("model", "name"), found("model", "type")) == ("model", "model")
    assert (found("model", "pack_size"), found("model", "metadata.pack_size")) == (4096, 4096)
    assert (found("model", "tokens"), found("model", "metadata.tokens")) == (10, 10)


def test_a_reference_may_stand_in_the_interpolation_itself(refs: Step, tmp_path: Path) -> None:
    tracked(tmp_path / "t", "blend", 3, tmp_path / "data")
    name = config(refs, "v: ${art:'blend:v3',path}/x\nw: ${art:blend}\n")
    train = compile_job(refs, name, environment=environment(tmp_path / "t"), artifacts=tmp_path).train
    assert (train["v"], train["w"]) == (f"{tmp_path}/data/x", f"{tmp_path}/data")


def test_an_artifact_of_our_own_is_found_by_step_by_last_part_and_by_job(refs: Step, tmp_path: Path) -> None:
    first = published(tmp_path, "sft/automodel", "0123456789abcdef0123", rows=5)
    second = published(tmp_path, "sft/automodel", "fedcba98765432100123", rows=6)
    published(tmp_path, "mine/trained", "00000000000000000000")
    published(tmp_path, "peft/automodel", "11111111111111111111")

    def found(reference: str, field: str = "path") -> Any:
        name = config(refs, f"run: {{model: '{reference}'}}\nv: ${{art:model,{field}}}\n")
        return compile_job(refs, name, artifacts=tmp_path).train["v"]

    assert found("sft/automodel:latest") == str(second)
    assert found("sft/automodel:0123456789abcdef0123") == str(first)
    assert found("trained:latest").endswith("mine/trained/00000000000000000000/inner")
    assert (found("sft/automodel", "rows"), found("sft/automodel", "metadata.rows")) == (6, 6)
    assert (found("sft/automodel", "type"), found("sft/automodel", "version")) == (
        "checkpoint_hf",
        "fedcba98765432100123",
    )
    with pytest.raises(
        ConfigError, match=r"no artifact automodel:latest \(run.model\).*automodel in peft, automodel in sft"
    ):
        found("automodel:latest")
    with pytest.raises(ConfigError, match=r"sft/automodel:latest, sft/automodel:0123456789abcdef0123"):
        found("sft/automodel:v7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "run: {model: 'gone:v3'}\nv: ${art:model,path}\n",
            r"x\.yaml:2:1: v: there is no artifact gone:v3 \(run\.model\); looked in .*/t \(has model\) and .*/own "
            r"\(has nothing\)\. Run the step that makes it, give v=PATH",
        ),
        ("run: {model: model}\nv: ${art:model,pth}\n", r"artifact model has no field 'pth'\. Did you mean path"),
        ("run: {model: ../../etc}\nv: ${art:model,path}\n", "is no reference to an artifact"),
        ("v: ${art:''}\n", "is no reference to an artifact"),
    ],
)
def test_an_artifact_that_is_not_there_is_named_with_what_is(
    refs: Step, tmp_path: Path, text: str, message: str
) -> None:
    tracked(tmp_path / "t", "model", 1, tmp_path)
    with pytest.raises(ConfigError, match=message):
        compile_job(refs, config(refs, text), environment=environment(tmp_path / "t"), artifacts=tmp_path / "own")


def test_a_remote_root_is_not_asked_while_compiling(refs: Step, tmp_path: Path) -> None:
    name = config(refs, "run: {model: 'm:v1'}\nv: ${art:model,path}\n")
    with pytest.raises(ConfigError, match=r"s3://bucket/art \(remote: not asked while compiling\)"):
        compile_job(refs, name, environment=environment("s3://bucket/art"), artifacts=tmp_path)


def test_an_upstream_artifact_wins_over_a_reference_without_a_lookup(refs: Step, tmp_path: Path) -> None:
    name = config(refs, "run: {model: 'gone:latest'}\nckpt: ${art:model,path}\ntokenizer: ${ckpt}/tok\n")
    train = compile_job(refs, name, inputs={"training_jsonl": "/up"}, artifacts=tmp_path).train
    assert (train["ckpt"], train["tokenizer"]) == ("/up", "/up/tok")


@pytest.mark.parametrize("value", ["data:latest", "a-b:v5", "a:12", "BlendsArtifact-x"])
def test_references_are_told_from_other_settings(value: str) -> None:
    assert is_reference(value)


@pytest.mark.parametrize(
    "value", ["nvcr.io/x/y:25.11", "a/b:v1", "04:00:00.5:v1", "word", "docker-x:v1", "a:b", None, {}]
)
def test_other_settings_are_no_references(value: Any) -> None:
    assert not is_reference(value)


def test_a_manifest_is_read_where_it_is_here(refs: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"train": "/d/train.jsonl", "mode": 3}))
    monkeypatch.setenv("PREP", str(tmp_path))
    name = config(refs, "v: ${manifest:${oc.env:PREP},train}\nw: ${manifest:${oc.env:PREP},mode}\n")
    train = compile_job(refs, name).train
    assert (train["v"], train["w"]) == ("/d/train.jsonl", "3")
    name = config(refs, "v: ${manifest:${oc.env:PREP},trian}\n")
    with pytest.raises(ConfigError, match=rf"v: {tmp_path}/manifest\.json: has no key 'trian'\. Did you mean train"):
        compile_job(refs, name)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest\.json: is no JSON"):
        compile_job(refs, name)


def test_a_relative_path_in_a_manifest_counts_from_its_directory(refs: Step, tmp_path: Path) -> None:
    data = {"train": "runs/a/train_shard_*.jsonl", "val": "", "mode": "resolve"}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    text = "".join(f"{key}: ${{manifest:{tmp_path},{key}}}\n" for key in data)
    train = compile_job(refs, config(refs, text)).train
    assert (train["train"], train["val"], train["mode"]) == (f"{tmp_path}/runs/a/train_shard_*.jsonl", "", "resolve")
    file = tmp_path / "config.yaml"
    file.write_text(text)
    load = f"payload.load_config(payload.Path({str(file)!r}), ['--config', {str(file)!r}])"
    done = subprocess.run(
        [sys.executable, "-c", f"from _runtime import payload; print({load})"],
        cwd=REPO / "steps",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str({key: train[key] for key in data})


def test_a_manifest_of_the_target_is_read_by_the_payload(refs: Step, tmp_path: Path) -> None:
    there = tmp_path / "there"
    name = config(refs, f"v: ${{manifest:{there},train}}\nw: ${{mul:2,3}}\n")
    with pytest.raises(
        ConfigError, match=r"manifest\.json: cannot be read \(No such file or directory\)\. Run the data"
    ):
        compile_job(refs, name)
    train = compile_job(refs, name, relocation=Relocation("/nemo_run/code", "/nemo_run")).train
    assert train["v"] == f"${{manifest:{there},train}}"
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(train))
    load = f"payload.load_config(payload.Path({str(file)!r}), ['--config', {str(file)!r}])"
    code = f"from _runtime import payload; print({load})"

    def payload() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=REPO / "steps", capture_output=True, text=True, check=False
        )

    assert "has no key" in payload().stderr or "No such file" in payload().stderr
    there.mkdir()
    (there / "manifest.json").write_text('{"train": "/t.jsonl"}')
    done = payload()
    assert done.stdout.strip() == "{'v': '/t.jsonl', 'w': 6}", done.stderr


URL = "https://github.com/NVIDIA-NeMo/Curator.git"


@pytest.mark.parametrize(
    ("spec", "mount"),
    [
        (f"git+{URL}@d10cd6ff,/opt/Curator", AutoMount(URL, "d10cd6ff", "/opt/Curator")),
        (f"git+{URL}@user/branch-1,/opt/a-b_c.d/", AutoMount(URL, "user/branch-1", "/opt/a-b_c.d")),
        ("git+git@host:org/x.git@v1.0,/x", AutoMount("git@host:org/x.git", "v1.0", "/x")),
        ("git+ssh://git@host/org/x.git@main,/x", AutoMount("ssh://git@host/org/x.git", "main", "/x")),
    ],
)
def test_a_mounted_repository_is_read_in_its_parts(spec: str, mount: AutoMount) -> None:
    assert parse_auto_mount(f"${{auto_mount:{spec}}}") == mount


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{URL}@main,/x", "does not begin with git"),
        (f"git+{URL},/x", "no git URL followed by @REF"),
        (f"git+{URL}@,/x", "is no branch, tag or commit"),
        (f"git+{URL}@-upload-pack,/x", "is no branch, tag or commit"),
        (f"git+{URL}@a..b,/x", "is no branch, tag or commit"),
        (f"git+{URL}@main,x", "is no absolute path"),
        (f"git+{URL}@main,/x/../etc", "is no absolute path"),
        (f"git+{URL}@main", "takes a git URL with a ref, and a target path"),
        ("git+https://me:pw@host/x@main,/x", "holds a password"),
        ("git+ext::sh -c id@main,/x", "no git URL"),
    ],
)
def test_a_mount_that_cannot_be_meant_is_refused_when_compiled(refs: Step, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_auto_mount(f"${{auto_mount:{spec}}}")
    name = config(refs, f"run: {{env: {{mounts: ['${{auto_mount:{spec}}}']}}}}\n")
    with pytest.raises(ConfigError, match=rf"run\.env\.mounts\[0\]: .*{message}"):
        compile_job(refs, name)


@pytest.mark.parametrize("extra", ["", "three: ${mul:3,1}\n"])
def test_a_payload_reads_a_config_of_fifty_thousand_values(extra: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{extra}values:\n" + "- {a: 1, b: 1e-5}\n" * 10_000)  # with their keys, 50,000 nodes
    load = f"payload.load_config(payload.Path({str(file)!r}), ['--config', {str(file)!r}])"
    check = "assert len(v) == 10_000 and v[-1] == {'a': 1, 'b': 1e-5}"
    code = f"from _runtime import payload; v = {load}['values']; {check}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO / "steps", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_config_without_interpolations_reads_as_omegaconf_reads_it(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    file = tmp_path / "config.yaml"
    lines = [
        "1e-5",
        "1e5",
        "1_0e1",
        "2020-01-02",
        "0x1f",
        "0o7",
        "1:30",
        "yes",
        "~",
        ".inf",
        "'1e5'",
        "???",
        "-1.5e+3",
        "12e",
    ]
    file.write_text("base: &b {x: 1}\nover: {<<: *b, y: 2}\n" + "".join(f"k{i}: {v}\n" for i, v in enumerate(lines)))
    load = f"payload.load_config(payload.Path({str(file)!r}), ['--config', {str(file)!r}])"
    code = f"import json; from _runtime import payload; print(json.dumps({load}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO / "steps", capture_output=True, text=True, check=False)
    assert done.stdout == json.dumps(OmegaConf.to_container(OmegaConf.load(file))) + "\n", done.stderr
    file.write_text("a: {b: 1, b: 2}\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO / "steps", capture_output=True, text=True, check=False)
    assert "duplicate key b" in done.stderr

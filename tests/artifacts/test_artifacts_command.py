"""``nemotron artifacts``: what it lists, shows, finds wrong, compares and removes."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from artifacts.making import ASSET, folder, made, staged
from artifacts.object_store import BUCKET, s3_server
from click.testing import CliRunner

from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest, write_json
from nemotron_dagster.artifacts.places import place
from nemotron_dagster.artifacts.store import latest, slot
from nemotron_dagster.cli.artifacts import cli
from nemotron_dagster.errors import NemotronError
from nemotron_dagster.project import find_project

Run = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def run(root: Path) -> Run:
    """Run `nemotron artifacts ARGS` on the root; its stdout, as data where --json is among them."""

    def call(*args: str, code: int = 0, at: object = root) -> Any:
        done = CliRunner().invoke(cli, [*args, "--root", str(at)], obj={})
        if isinstance(done.exception, NemotronError):
            raise done.exception
        assert done.exit_code == code, (done.output, done.exception)
        return json.loads(done.stdout) if "--json" in args else done.stdout

    return call


@pytest.fixture
def family(root: Path) -> dict[str, ArtifactRef]:
    """Raw data in two versions; clean data from the first; a model from that and a file of the user."""
    refs = {"raw1": made(root, "r1", "one", ("data", "raw"))}
    refs["clean"] = made(root, "c1", "clean", ("data", "clean"), [refs["raw1"]])
    refs["raw2"] = made(root, "r2", "two", ("data", "raw"))
    refs["model"] = made(root, "m1", "model", ("sft", "model"), [refs["clean"]])
    return refs


def test_ls_tells_version_type_time_size_and_figures_and_marks_the_current_one(run: Run, family) -> None:
    head, *lines = run("ls").splitlines()
    assert head.split() == ["ASSET", "VERSION", "TYPE", "CREATED", "SIZE", "FIGURES"]
    assert [line.split()[0] for line in lines] == ["data/clean", "data/raw", "data/raw", "sft/model"]
    assert "*" not in lines[1] and "*  r2" in lines[2] and "raw_jsonl" in lines[2] and "rows 15" in lines[2]
    rows = run("ls", "data", "--json")
    assert [(r["asset"], r["version"], r["current"]) for r in rows] == [
        ("data/clean", "c1", True), ("data/raw", "r1", False), ("data/raw", "r2", True)
    ]  # fmt: skip
    assert rows[0]["figures"]["rows"] == 15 and rows[0]["bytes"] == family["clean"].manifest.bytes


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("*/raw", 2), ("sft", 1), ("sft/model", 1), ("sf", 0), ("data/*", 3), ("data/raw@r1", 1), ("nothing", 0)],
)
def test_ls_takes_a_glob_or_the_beginning_of_a_name(run: Run, family, pattern: str, found: int) -> None:
    assert len(run("ls", pattern, "--json")) == found


def test_a_broken_manifest_is_a_line_of_ls_and_not_the_end_of_it(run: Run, root: Path, family) -> None:
    (root / "data/raw/r1/artifact.json").write_text("{")
    (root / "data/clean/latest.json").write_text("{")
    rows = run("ls", "--json")
    assert len(rows) == 4 and [bool(r["problem"]) for r in rows].count(True) == 1
    done = CliRunner().invoke(cli, ["ls", "--root", str(root)], obj={})
    assert "is not a manifest" in done.stdout and "Warning: data/clean/latest.json: is broken" in done.stderr


def test_an_output_elsewhere_is_listed_too(run: Run, root: Path, tmp_path: Path) -> None:
    from nemotron_dagster.artifacts.store import publish, set_latest

    source, manifest = staged(root, "one")
    at = slot(root, ASSET, "d" * 64, "one", tmp_path / "mine")
    at.staging.mkdir()
    os.rename(source.output, at.output)
    set_latest(root, ASSET, None, publish(at, manifest))
    (row,) = run("ls", "--json")
    assert row["uri"] == str(tmp_path / "mine") and row["current"]
    assert run("gc", "--keep", "0", "--json")["removed"] == []


@pytest.mark.parametrize("name", ["data/raw", "data/raw@r2", "data/raw@r", "{root}/data/raw/r2", "./r2"])
def test_an_artifact_is_found_by_asset_version_or_path(
    run: Run, root: Path, family, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(root / "data/raw")
    shutil.rmtree(root / "data/raw/r1")
    found = run("show", name.format(root=root), "--json")
    assert found["manifest_sha256"] == family["raw2"].digest and found["current"] and found["version"] == "r2"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/rw", r"data/rw: no artifact of that name .* Did you mean data/raw"),
        ("data/raw@x", r"data/raw has no version 'x'\. It has r1, r2\."),
        ("data/raw@r", r"data/raw@r: fits 2 versions: r1, r2\. Write more"),
        ("/nowhere", r"/nowhere: no artifact of that name"),
    ],
)
def test_a_name_that_fits_nothing_or_too_much_is_said(run: Run, family, name: str, message: str) -> None:
    with pytest.raises(NemotronError, match=message) as error:
        run("show", name)
    assert error.value.exit_code == 2


def test_show_tells_figures_samples_columns_and_what_it_was_made_from(run: Run, family) -> None:
    text = run("show", "data/clean")
    for part in (
        "── data/clean — raw_jsonl ──",
        "c1  (current)",
        family["clean"].digest,
        "Figures",
        "rows",
        "Made from",
    ):
        assert part in text
    assert f"in0: data/raw  {family['raw1'].uri}" in text


def test_verify_finds_nothing_wrong_with_what_was_just_published(run: Run, family) -> None:
    assert run("verify", "--deep", "--json") == {
        "verified": 4, "bytes": sum(r.manifest.bytes for r in family.values()), "problems": []
    }  # fmt: skip


def test_verify_lists_every_problem_and_exits_with_8(run: Run, root: Path, family) -> None:
    raw, clean, model = folder(family["raw1"]), folder(family["clean"]), folder(family["model"])
    data = (raw / "rows0.jsonl").read_bytes()
    (raw / "rows0.jsonl").write_bytes(data[:-3] + b"!" + data[-2:])  # of the same size
    (raw / "rows1.jsonl").unlink()
    (raw / "rows2.jsonl").write_text("")
    (raw / "stray.txt").write_text("x")
    os.rename(clean, clean.with_name("c9"))
    write_json(model / "artifact.json", {**asdict(family["model"].manifest), "config": "other"})
    found = run("verify", "--json", code=8)
    told = {(p["artifact"], p["problem"].partition(" (")[0]) for p in found["problems"]}
    size = family["raw1"].manifest.files["rows2.jsonl"][0]
    assert told >= {
        ("data/raw@r1", "rows0.jsonl: was changed after publishing"),
        ("data/raw@r1", "rows1.jsonl: is missing"),
        ("data/raw@r1", f"rows2.jsonl: has 0 bytes, not {size}"),
        ("data/raw@r1", "stray.txt: is not in the manifest"),
        ("data/clean@c9", "was moved here: it was published as c1; move it back or remove it"),
        ("sft/model@m1", "its artifact.json is not the one that was published"),
    }
    assert any(a == "data/clean" and "names what is not there" in p for a, p in told)
    lines = run("verify", "data/raw@r1", code=8).splitlines()
    assert len(lines) == 4 and all(line.startswith("data/raw@r1: ") for line in lines)


def test_verify_deep_validates_the_content_as_its_type(run: Run, root: Path) -> None:
    at, manifest = staged(root, "one")
    (at.output / "rows0.jsonl").write_text("not json\n")
    from nemotron_dagster.artifacts.manifest import tally
    from nemotron_dagster.artifacts.store import publish

    table, content, size = tally(at.output)
    publish(at, Manifest(**{**vars(manifest), "files": table, "content": content, "bytes": size}))
    assert run("verify", "--json")["problems"] == []
    (problem,) = run("verify", "--deep", "--json", code=8)["problems"]
    assert "is no valid raw_jsonl" in problem["problem"] and "rows0.jsonl:1" in problem["problem"]


def test_verify_says_that_an_input_was_published_anew(run: Run, root: Path, family) -> None:
    shutil.rmtree(folder(family["raw1"]))
    made(root, "r1", "another", ("data", "raw"))
    problems = run("verify", "data/clean", "--json", code=8)["problems"]
    assert [p["problem"] for p in problems] == [
        "input in0: data/raw@r1 is not what this was made from; it was published anew"
    ]


def test_lineage_goes_up_and_down_by_digest(run: Run, root: Path, family) -> None:
    os.rename(root, root.with_name("moved"))  # what inputs recorded as paths is wrong now; digests are not
    at = root.with_name("moved")
    found = run("lineage", "data/clean", "--json", at=at)
    named = {n["id"]: n["label"] for n in found["nodes"]}
    edges = {(named[e["from"]], named[e["to"]], e["port"]) for e in found["edges"]}
    assert edges == {("data/raw@r1", "data/clean@c1", "in0"), ("data/clean@c1", "sft/model@m1", "in0")}
    assert run("lineage", "sft/model", "--up", at=at).splitlines()[1:] == [
        "made from:",
        f"  └─ in0: data/clean@c1  raw_jsonl  {family['clean'].manifest.created}  current",
        f"     └─ in0: data/raw@r1  raw_jsonl  {family['raw1'].manifest.created}",
    ]
    assert "sft/model@m1" in run("lineage", "data/raw@r1", "--down", at=at)
    assert "nothing in this root" in run("lineage", "data/raw@r2", "--down", at=at)


def test_lineage_names_inputs_that_are_gone_or_were_given(run: Run, root: Path, family) -> None:
    given = {"port": "data", "external": True, "uri": "/home/me/x.jsonl"}
    at, manifest = staged(root, "m2", asset=("sft", "model"))
    from nemotron_dagster.artifacts.store import publish

    publish(at, Manifest(**{**vars(manifest), "inputs": [given]}))
    assert "data: /home/me/x.jsonl (given)" in run("lineage", "sft/model@m2")
    shutil.rmtree(folder(family["clean"]))
    assert "data/clean@c1 (gone)" in run("lineage", "sft/model", "--up")


def test_lineage_as_a_mermaid_chart(run: Run, family) -> None:
    lines = run("lineage", "data/clean", "--mermaid").splitlines()
    assert lines[0] == "flowchart TD"
    assert sum('-->|"in0"|' in line for line in lines) == 2
    assert any('["data/clean@c1<br/>raw_jsonl"]' in line.replace("&lt;", "<").replace("&gt;", ">") for line in lines)


def test_diff_tells_config_code_inputs_figures_and_files(run: Run, root: Path, family) -> None:
    shared = {"code_digest": "a" * 64, "settings": {"lr": 1e-5, "data": {"path": "x"}, "same": [1, 2]}}
    made(root, "m2", "model", ("sft", "model"), [family["raw2"]], **shared)
    changed = {**shared, "settings": {"lr": 2e-5, "data": {}, "same": [1, 2], "new": None}, "code_digest": "b" * 64}
    made(root, "m3", "tuned", ("sft", "model"), [family["clean"]], **changed)
    extra = folder(made(root, "m4", "tuned", ("sft", "model"), [family["clean"]], **changed))
    assert extra.is_dir()
    found = run("diff", "sft/model@m2", "sft/model@m3", "--json")
    assert found["config"] == {"lr": [1e-5, 2e-5], "data.path": ["x", None], "data": [None, {}], "new": [None, None]}
    assert found["code"] == ["a" * 64, "b" * 64]
    assert [v.split()[0] for v in found["inputs"]["in0"]] == ["data/raw", "data/clean"]
    assert found["files"] == {"added": [], "removed": [], "changed": ["rows0.jsonl", "rows1.jsonl", "rows2.jsonl"]}
    text = run("diff", "sft/model@m2", "sft/model@m3")
    assert "lr: 1e-05 -> 2e-05" in text and "aaaaaaaaaaaa -> bbbbbbbbbbbb" in text and "Files changed: 3" in text
    assert "No differences." in run("diff", "sft/model")  # m4 with m3, the one before
    with pytest.raises(NemotronError, match="no version before it"):
        run("diff", "data/clean")


def versions(root: Path, asset: str) -> list[str]:
    return sorted(p.parent.name for p in (root / asset).glob("*/artifact.json"))


def test_gc_keeps_the_current_the_newest_and_what_they_were_made_from(run: Run, root: Path, family) -> None:
    for i in range(3, 7):
        made(root, f"r{i}", str(i), ("data", "raw"))
    plan = run("gc", "--keep", "2", "--dry-run", "--json")
    assert versions(root, "data/raw") == ["r1", "r2", "r3", "r4", "r5", "r6"]
    assert sorted(r["label"] for r in plan["removed"]) == ["data/raw@r2", "data/raw@r3", "data/raw@r4"]
    done = run("gc", "--keep", "2", "--json")
    assert done["removed"] == plan["removed"] and done["bytes"] == sum(r["bytes"] for r in done["removed"]) > 0
    assert versions(root, "data/raw") == ["r1", "r5", "r6"], "r1 is what the kept data/clean was made from"
    assert done["kept"] == {"current": 3, "among the newest": 1, "in the lineage of a kept one": 1}
    assert run("verify", "--json")["problems"] == []
    assert not list(root.rglob(".trash-*"))


def test_gc_by_age_removes_only_what_is_older(run: Run, root: Path) -> None:
    for i, day in enumerate(("2020-01-01", "2020-01-02", "2999-01-01", "2999-01-02")):
        made(root, f"k{i}", str(i), created=f"{day}T00:00:00+00:00")
    assert [r["label"] for r in run("gc", "--older-than", "30d", "--json")["removed"]] == ["demo/a@k0", "demo/a@k1"]
    with pytest.raises(NemotronError, match=r"is no age\. Write 90m, 12h, 30d or 2w"):
        run("gc", "--older-than", "soon")


def test_gc_never_removes_a_current_version_even_an_old_one(run: Run, root: Path) -> None:
    from nemotron_dagster.artifacts.store import set_latest

    first = made(root, "k0", "0")
    for i in range(1, 5):
        made(root, f"k{i}", str(i))
    set_latest(root, ASSET, None, first)
    run("gc", "--keep", "0")
    assert versions(root, "demo/a") == ["k0"] and latest(root, ASSET) is not None


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a staging directory, long ago, of a submission that is open or closed in the ledger."""

    def make(name: str, live: bool, inputs: tuple[str, ...] = ()) -> Path:
        staging = slot(root, ASSET, name * 16, "k").staging
        (staging / "output").mkdir(parents=True)
        (staging / "output" / "big").write_bytes(bytes(1000))
        record = tmp_path / "ledger" / f"{name}.json"
        record.parent.mkdir(exist_ok=True)
        if live:
            record.write_text("{}")
        write_json(staging / "owner.json", {"key": "k", "record": str(record), "inputs": inputs})
        for path in (staging, *staging.rglob("*")):
            os.utime(path, (time.time() - 30 * 86400,) * 2)
        return staging

    return make


def test_gc_removes_what_ended_jobs_left_and_nothing_of_a_live_one(run: Run, root: Path, job, family) -> None:
    live, ended, other = job("a", True, (family["raw1"].uri,)), job("c", False), job("d", False)
    young = job("e", False)
    os.utime(young / "output")
    shutil.rmtree(folder(family["clean"]))  # raw1 is in nobody's lineage now
    (root / "data/clean/latest.json").unlink()
    shutil.rmtree(folder(family["model"]))
    (root / "sft/model/latest.json").unlink()
    done = run("gc", "--keep", "1", "--json")
    assert {r["uri"] for r in done["removed"]} == {str(ended), str(other)}
    assert live.is_dir() and young.is_dir() and not ended.exists()
    assert done["kept"]["an input of a live job"] == 1 and done["bytes"] >= 2000
    assert {r["uri"] for r in run("gc", "--older-than", "0m", "--json")["removed"]} == {str(young)}


def test_gc_leaves_alone_what_a_process_is_claiming(run: Run, root: Path, job) -> None:
    ended = job("c", False)
    (root / ".locks").mkdir(exist_ok=True)
    with open(root / ".locks" / ended.name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("gc", "--json")["removed"] == []
    assert ended.is_dir()


def test_ten_thousand_versions_are_listed(run: Run, root: Path) -> None:
    rng = random.Random(3)
    table = {f"shard-{i:05d}.jsonl": [1000 + i, f"{rng.getrandbits(64):016x}"] for i in range(10)}
    facts = {"rows": 5, "files": 10, "bytes": 10, "lengths": {"edges": list(range(30)), "counts": [1] * 30}}
    for n in range(10_000):
        directory = root / "cat" / f"asset{n % 50}" / f"{n:020d}"
        directory.mkdir(parents=True)
        asset = ["cat", f"asset{n % 50}"]
        manifest = Manifest("raw_jsonl", "x", asset, directory.name, files=table, facts=facts, created="2026-01-01")
        (directory / "artifact.json").write_text(json.dumps(asdict(manifest)))
    rows = run("ls", "--json")
    assert len(rows) == 10_000 and rows[0]["figures"]["rows"] == 5


def test_no_root_yet_is_an_empty_list(run: Run) -> None:
    assert run("ls", "--json") == [] and run("verify", "--json")["verified"] == 0
    assert run("gc", "--json")["removed"] == []


def test_asset_names_are_completed(root: Path, family, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron_dagster.artifacts.inventory import asset_names

    assert asset_names(root) == ["data/clean", "data/raw", "sft/model"]


def test_the_command_prints_one_message_and_exits_with_8_or_2(nemotron, tmp_path: Path, root: Path, family) -> None:
    (folder(family["clean"]) / "rows0.jsonl").unlink()
    done = nemotron("artifacts", "verify", "data/clean", "--root", str(root), cwd=tmp_path)
    assert done.returncode == 8 and done.stdout == "data/clean@c1: rows0.jsonl: is missing\n"
    assert "1 artifact" in done.stderr and "Traceback" not in done.stderr
    done = nemotron("artifacts", "show", "nothing", "--root", str(root), "--json", cwd=tmp_path)
    assert done.returncode == 2 and json.loads(done.stderr)["error"] == "UsageError"


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_all_of_it_on_an_object_store(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NEMOTRON_ARTIFACT_CACHE", str(tmp_path / "cache"))
    find_project.cache_clear()
    with s3_server():
        at = place(f"{kind}://{BUCKET}/{tmp_path.name}")
        raw = [made(at, f"r{i}", str(i), ("data", "raw")) for i in range(4)]
        made(at, "c1", "clean", ("data", "clean"), [raw[0]])
        stray = at / "data" / "raw" / "half" / "data-0000000000000000" / "rows.jsonl"
        stray.fs.pipe_file(stray.path, b"x" * 77)
        assert [r["version"] for r in run("ls", "--json", at=at)] == ["c1", "r0", "r1", "r2", "r3"]
        assert run("show", "data/clean", "--json", at=at)["path"].startswith(f"{at}/data/clean/c1/data-")
        assert run("show", raw[1].uri, "--json", at=at)["version"] == "r1"
        assert run("verify", "--deep", "--json", at=at)["problems"] == []
        assert "data/raw@r0" in run("lineage", "data/clean", at=at)
        done = run("gc", "--keep", "1", "--json", at=at)
        assert [r["label"] for r in done["removed"]] == ["data/raw@r1", "data/raw@r2"], "half an upload is young"
        done = run("gc", "--older-than", "0m", "--json", at=at)
        assert [(r["what"], r["bytes"]) for r in done["removed"]] == [("half an upload", 77)]
        assert not [n for n in at.fs.find(at.path) if "/half/" in n or "/r1/" in n]
        changed = raw[3].folder / "rows0.jsonl"
        changed.fs.pipe_file(changed.path, b"y" * raw[3].manifest.files["rows0.jsonl"][0])
        problems = run("verify", "--json", at=at, code=8)["problems"]
        assert [p["artifact"] for p in problems] == ["data/raw@r3"] and "was changed" in problems[0]["problem"]
    find_project.cache_clear()

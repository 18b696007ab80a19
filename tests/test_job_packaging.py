"""The code that travels with a job: all of it, the same bytes for the same code, nothing left out without a word."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO, ROWS, ROWS_TOML, ROWS_YAML, add_step

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.errors import PreflightError, ProfileError
from nemotron_dagster.jobs import archive
from nemotron_dagster.jobs.git_code import without_credentials
from nemotron_dagster.jobs.packaging import git_state, package
from nemotron_dagster.jobs.settings import CommonSettings
from nemotron_dagster.jobs.target import settings_of
from nemotron_dagster.project import Project

WHO = ("-c", "user.name=Someone", "-c", "user.email=someone@example.com", "-c", "protocol.file.allow=always")


def git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", *WHO, *words], cwd=where, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(where: Path, message: str = "change") -> str:
    git(where, "add", "-A")
    git(where, "commit", "-q", "-m", message)
    return git(where, "rev-parse", "HEAD")


def pack(root: Path | None, into: Path, step: str = "demo/rows", **keys: Any) -> Path:
    project = Project(root, root / ".nemotron" if root else into / "state")
    return package(project, load_catalog(project).steps[step], CommonSettings(**keys), into)


def contents(file: Path) -> dict[str, str]:
    """Name -> text, or ``-> target`` of a symlink."""
    with tarfile.open(file) as tar:
        return {
            m.name: f"-> {m.linkname}" if m.issym() else tar.extractfile(m).read().decode("utf-8", "replace")  # type: ignore[union-attr]
            for m in tar
        }


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A project in a folder of a repository whose path no shell would leave alone."""
    top = tmp_path / "my code $(touch oops) it's"
    root = top / "inner project"
    root.mkdir(parents=True)
    (root / "workspace.yaml").write_text("load_from: []\n")
    add_step(root, "demo/rows", ROWS_TOML, ROWS, default=ROWS_YAML)
    (root / "src").mkdir()
    (root / "src" / "lib.py").write_text("VALUE = 1\n")
    (root / ".gitignore").write_text(".nemotron/\n*.log\n")
    (top / "elsewhere.txt").write_text("outside the project\n")
    git(top, "init", "-q", "-b", "main")
    commit(top, "first")
    return root


def test_the_payload_is_the_step_and_what_steps_share_and_runs_where_it_is_unpacked(
    project: Path, tmp_path: Path
) -> None:
    folder = project / "steps/demo/rows"
    for name in (".env", ".env.local", "__pycache__/x.pyc", "data/rows.jsonl", ".env.example"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("PLANTED=1")
    (project / "steps/demo/count/data").mkdir()
    (project / "steps/demo/count/data/big.jsonl").write_text("{}")
    (project / "steps/demo/count/shared.py").write_text("x = 1\n")
    file = pack(project, tmp_path / "out")
    found = contents(file)
    mine = {n.removeprefix("steps/demo/rows/") for n in found if n.startswith("steps/demo/rows/")}
    assert mine == {"step.py", "step.toml", "config/default.yaml", "data/rows.jsonl", ".env.example"}
    assert "steps/demo/count/shared.py" in found and "steps/demo/count/data/big.jsonl" not in found
    assert "steps/_runtime/tiny_llama/tokenizer.json" in found
    assert all(n.startswith("steps/") and "__pycache__" not in n for n in found)
    code = tmp_path / "job" / "code"
    with tarfile.open(file) as tar:
        tar.extractall(code, filter="data")
    config = tmp_path / "job" / "config.yaml"
    config.write_text(ROWS_YAML.replace("./out", str(tmp_path / "job")))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(code / "steps"), "PYTHONDONTWRITEBYTECODE": "1"}
    step = code / "steps/demo/rows/step.py"
    subprocess.run([sys.executable, step, "--config", config], env=environ, cwd=code, check=True)
    assert len((tmp_path / "job/rows.jsonl").read_text().splitlines()) == 5


def test_every_bundled_step_can_travel(tmp_path: Path) -> None:
    project = Project(None, tmp_path)
    steps = load_catalog(project).steps
    for step in steps.values():
        found = contents(package(project, step, CommonSettings(), tmp_path / "out"))
        own = {p.relative_to(REPO).as_posix() for p in step.directory.rglob("*") if p.is_file()}
        assert {n for n in own if "__pycache__" not in n} <= found.keys()
    assert len(steps) >= 24


def test_the_same_code_is_the_same_file_wherever_and_whenever_it_was_written(tmp_path: Path) -> None:
    files = []
    for i, name in enumerate(("one", "two")):
        root = tmp_path / name
        (root / "steps").mkdir(parents=True)
        (root / "workspace.yaml").write_text("")
        folder = add_step(root, "demo/rows", ROWS_TOML, ROWS, default=ROWS_YAML)
        for item in ("a", "b")[:: 1 - 2 * i]:
            (folder / item).write_text(item)
        os.utime(folder / "step.py", (i, i))
        (folder / "a").chmod(0o600 + 0o44 * i)
        files.append(pack(root, tmp_path / f"out-{name}"))
    assert files[0].name == files[1].name and files[0].read_bytes() == files[1].read_bytes()
    digest = subprocess.run(["sha256sum", files[0]], check=True, capture_output=True, text=True).stdout
    assert files[0].name == f"{digest[:16]}.tar.gz"  # the target can check it
    (tmp_path / "two/steps/demo/rows/a").chmod(0o755)
    assert pack(tmp_path / "two", tmp_path / "out-two").name != files[0].name
    assert [p.name for p in (tmp_path / "out-one").iterdir()] == [files[0].name]


def test_the_projects_steps_and_packages_replace_the_bundled_ones_whole(project: Path, tmp_path: Path) -> None:
    add_step(project, "env/env_toml", ROWS_TOML.replace("demo/rows", "env/env_toml"), ROWS, default=ROWS_YAML)
    found = contents(pack(project, tmp_path, step="env/env_toml"))
    assert {n for n in found if "env_toml" in n} == {
        f"steps/env/env_toml/{n}" for n in ("step.toml", "step.py", "config/default.yaml")
    }
    assert "steps/_runtime/cpu.py" in found
    (project / "steps/_runtime").mkdir()
    (project / "steps/_runtime/__init__.py").write_text("")
    (project / "steps/_runtime/payload.py").write_text("OURS = 1\n")
    found = contents(pack(project, tmp_path))
    assert {n for n in found if "_runtime" in n} == {"steps/_runtime/__init__.py", "steps/_runtime/payload.py"}
    assert found["steps/_runtime/payload.py"] == "OURS = 1\n"


def test_a_package_of_the_project_does_not_hide_the_step_that_runs(project: Path, tmp_path: Path) -> None:
    (project / "steps/sft").mkdir()
    (project / "steps/sft/__init__.py").write_text("")
    assert "steps/sft/automodel/step.py" in contents(pack(project, tmp_path, step="sft/automodel"))


def test_packing_imports_nothing_of_nemo_run(project: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_job_packaging import pack;"
        f"pack(Path({str(project)!r}), Path({str(tmp_path / 'out')!r})); print('nemo_run' in sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_git_ships_the_projects_folder_as_committed_whoever_calls_from_wherever(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (repo / "ignored.log").write_text("x")
    (repo / ".env").write_text("PLANTED=1")
    (repo / "env.toml").write_text("[a]\n")
    before = sorted(repo.parent.rglob("*"))
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.chdir(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(lambda i: pack(repo, tmp_path / f"out{i}", packager="git"), range(2)))
    found = contents(files[0])
    assert files[0].name == files[1].name
    assert {n for n in found if not n.startswith("steps/")} == {"workspace.yaml", "src/lib.py", ".gitignore"}
    assert "steps/demo/rows/step.py" in found and "steps/_runtime/payload.py" in found
    assert sorted(repo.parent.rglob("*")) == before
    assert list(other.iterdir()) == [other / ".git"]
    assert capfd.readouterr() == ("", "")


def test_git_refuses_what_is_not_committed_with_a_list_and_ships_it_on_demand(repo: Path, tmp_path: Path) -> None:
    (repo / "src/lib.py").write_text("VALUE = 2\n")
    (repo / "steps/demo/rows/config/default.yaml").unlink()
    for i in range(20):
        (repo / f"new {i:02}.py").write_text("x")
    (repo / ".nemotron").mkdir()
    (repo / ".nemotron/log").write_text("x")
    (repo.parent / "elsewhere.txt").write_text("not of the project")
    with pytest.raises(PreflightError) as told:
        pack(repo, tmp_path / "out", packager="git")
    text = str(told.value)
    assert "22 files below" in text and "  new 00.py\n" in text and "and 12 more" in text
    assert 'packager_uncommitted = "ship"' in text and ".nemotron" not in text and "elsewhere" not in text
    assert not (tmp_path / "out").exists()
    (repo / "src/tool").write_text("#!/bin/sh\n")
    (repo / "src/tool").chmod(0o755)
    found = contents(file := pack(repo, tmp_path / "out", packager="git", packager_uncommitted="ship"))
    assert found["src/lib.py"] == "VALUE = 2\n" and found["new 19.py"] == "x"
    assert "steps/demo/rows/config/default.yaml" not in found
    with tarfile.open(file) as tar:
        assert (tar.getmember("src/tool").mode, tar.getmember("src/lib.py").mode) == (0o755, 0o644)


def test_a_named_commit_is_taken_with_its_step(repo: Path, tmp_path: Path) -> None:
    git(repo, "tag", "v1")
    (repo / "steps/demo/rows/step.py").write_text(ROWS + "\n# newer\n")
    (repo / "steps/demo/rows/helper.py").write_text("")
    commit(repo)
    found = contents(pack(repo, tmp_path, packager="git", packager_ref="v1"))
    assert found["steps/demo/rows/step.py"] == ROWS and "steps/demo/rows/helper.py" not in found
    with pytest.raises(PreflightError, match="packager_ref = 'v2'"):
        pack(repo, tmp_path, packager="git", packager_ref="v2")


def test_submodules_travel_and_are_not_forgotten(repo: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / "code.py").write_text("1")
    commit(library)
    git(repo, "submodule", "--quiet", "add", str(library), "vendor/lib")
    commit(repo)
    assert contents(pack(repo, tmp_path / "out", packager="git"))["vendor/lib/code.py"] == "1"
    (repo / "vendor/lib/code.py").write_text("2")
    with pytest.raises(PreflightError, match=r"vendor/lib/code\.py"):
        pack(repo, tmp_path / "out", packager="git")
    shipped = pack(repo, tmp_path / "out", packager="git", packager_uncommitted="ship")
    assert contents(shipped)["vendor/lib/code.py"] == "2"
    git(repo, "submodule", "--quiet", "deinit", "-f", "vendor/lib")
    with pytest.raises(PreflightError, match="git submodule update --init"):
        pack(repo, tmp_path / "out", packager="git")


def test_a_repository_inside_that_is_no_submodule_is_refused(repo: Path, tmp_path: Path) -> None:
    (repo / "nested").mkdir()
    git(repo / "nested", "init", "-q")
    (repo / "nested/x.py").write_text("x")
    commit(repo / "nested")
    for mode in ("refuse", "ship"):
        with pytest.raises(PreflightError, match="nested"):
            pack(repo, tmp_path / "out", packager="git", packager_uncommitted=mode)


def test_patterns_take_what_lies_on_disk_by_any_name(repo: Path, tmp_path: Path) -> None:
    names = ["-delete", "a b.py", "it's.py", 'q"$(touch oops)`x`.py', "new\nline.py", "deep/er/ü.py"]
    for name in names:
        (repo / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / "src" / name).write_text(name)
    (repo / "src/.env").write_text("PLANTED=1")
    (repo / "src/link").symlink_to("deep")
    (repo / "src/absolute").symlink_to(repo / "src" / "lib.py")
    (repo / "-exec").write_text("x")
    found = contents(pack(repo, tmp_path / "out", packager="pattern", packager_patterns=["src", "-*"]))
    own = {n: text for n, text in found.items() if not n.startswith("steps/")}
    kept = {f"src/{n}": n for n in names} | {"src/lib.py": "VALUE = 1\n", "-exec": "x"}
    assert own == kept | {"src/link": "-> deep", "src/absolute": "-> lib.py"}
    assert not list(tmp_path.rglob("oops"))
    deep = contents(pack(repo, tmp_path / "out", packager="pattern", packager_patterns=["src/**/*.py"]))
    assert "src/deep/er/ü.py" in deep and "src/-delete" not in deep
    with pytest.raises(PreflightError, match=r"packager_patterns: 'srcc/\*' matches no file"):
        pack(repo, tmp_path / "out", packager="pattern", packager_patterns=["src", "srcc/*"])


def test_hybrid_is_committed_files_and_patterns_in_one(repo: Path, tmp_path: Path) -> None:
    (repo / "made.log").write_text("ignored by git, wanted by the job")
    (repo / "src/lib.py").write_text("VALUE = 3\n")
    keys: dict[str, Any] = {"packager": "hybrid", "packager_patterns": ["*.log"]}
    with pytest.raises(PreflightError, match=r"src/lib\.py"):
        pack(repo, tmp_path / "out", **keys)
    found = contents(pack(repo, tmp_path / "out", **keys | {"packager_patterns": ["*.log", "src"]}))
    assert found["src/lib.py"] == "VALUE = 3\n" and "workspace.yaml" in found and "made.log" in found


def test_a_failure_of_nemo_runs_packager_is_told_in_one_line(repo: Path, tmp_path: Path) -> None:
    blob = git(repo, "rev-parse", "HEAD:./src/lib.py")
    (repo.parent / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(PreflightError) as told:
        pack(repo, tmp_path / "out", packager="git")
    assert str(told.value).startswith('packager = "git": NeMo-Run cannot pack the code: ')
    assert blob in str(told.value) and "\n" not in str(told.value)


def test_outside_a_repository_git_is_refused_with_what_to_do(project: Path, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r'not a git repository.*or use packager = "payload"'):
        pack(project, tmp_path, packager="git")


def test_symlinks_travel_inside_the_tree_and_are_refused_where_they_lead_out(project: Path, tmp_path: Path) -> None:
    folder = project / "steps/demo/rows"
    (folder / "more").mkdir()
    (folder / "more/a.txt").write_text("a")
    (folder / "same").symlink_to("more")
    (folder / "through").symlink_to("same/a.txt")
    (folder / "whole").symlink_to(folder / "more" / "a.txt")
    found = contents(pack(project, tmp_path))
    assert found["steps/demo/rows/same"] == "-> more"
    assert found["steps/demo/rows/whole"] == "-> more/a.txt"
    for target in ("/etc/hostname", "../../../workspace.yaml", "nowhere", "circle", "../../../../../../x"):
        (folder / "circle").unlink(missing_ok=True)
        (folder / "circle").symlink_to(target)
        with pytest.raises(PreflightError, match="steps/demo/rows/circle -> "):
            pack(project, tmp_path)


def test_too_much_is_refused_with_the_largest_files(project: Path, tmp_path: Path) -> None:
    big = project / "steps/demo/rows/weights.bin"
    with open(big, "wb") as file:
        file.truncate(3_000_000)
    with pytest.raises(PreflightError, match=r"packager_max_mb = 2\..*\n +3\.0 MB  steps/demo/rows/weights\.bin\n"):
        pack(project, tmp_path, packager_max_mb=2)
    said: list[str] = []
    own = Project(project, tmp_path)
    file_there = package(own, load_catalog(own).steps["demo/rows"], CommonSettings(), tmp_path, said.append)
    assert said[0].startswith("code: ") and file_there.name in said[0]


def test_a_profiles_values_may_be_given_as_they_are(project: Path, tmp_path: Path) -> None:
    own = Project(project, tmp_path)
    step = load_catalog(own).steps["demo/rows"]
    assert package(own, step, {"executor": "slurm", "partition": "p"}, tmp_path) == pack(project, tmp_path)
    with pytest.raises(PreflightError, match="not a git repository"):
        package(own, step, {"executor": "slurm", "packager": "git"}, tmp_path)
    with pytest.raises(ProfileError, match="Did you mean packager"):
        package(own, step, {"executor": "slurm", "packagr": "git"}, tmp_path)


@pytest.mark.parametrize("change", ["rewritten", "shorter", "gone", "a pipe"])
def test_a_file_that_changes_while_it_is_packed_is_an_error_and_leaves_nothing(
    change: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project / "steps/demo/rows/step.py"
    genuine = archive._add

    def disturbed(tar: tarfile.TarFile, path: str, found: archive.Entry) -> None:
        if path == "steps/demo/rows/step.py" and change != "rewritten":
            file.unlink()
            if change == "shorter":
                file.write_text("x")
            elif change == "a pipe":
                os.mkfifo(file)
        genuine(tar, path, found)
        if path == "steps/demo/rows/step.py" and change == "rewritten":
            file.write_text("x" * found.size)

    monkeypatch.setattr(archive, "_add", disturbed)
    with pytest.raises(PreflightError, match=r"step\.py: changed while the code was packed; nothing was submitted"):
        pack(project, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_pipes_are_refused_not_read(project: Path, tmp_path: Path) -> None:
    os.mkfifo(project / "steps/demo/rows/pipe")
    with pytest.raises(PreflightError, match="pipe: is a pipe, socket or device"):
        pack(project, tmp_path)


def test_git_state_says_what_ran(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(repo, repo / "state")
    head = git(repo, "rev-parse", "HEAD")
    clean = {"commit": head, "branch": "main", "dirty": False, "changed": 0, "remote": None}
    assert git_state(project) == clean
    git(repo, "remote", "add", "origin", "https://me:PLANTED@example.com/team/code.git")
    (repo / "src/lib.py").write_text("changed")
    (repo / "new.py").write_text("new")
    (repo / "state").mkdir()
    (repo / "state/x").write_text("of ours")
    remote = "https://example.com/team/code.git"
    assert git_state(project) == {**clean, "dirty": True, "changed": 2, "remote": remote}
    git(repo, "checkout", "-q", "--detach")
    assert (git_state(project) or {})["branch"] is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert git_state(project) is None


def test_git_state_outside_a_repository_and_before_the_first_commit(tmp_path: Path) -> None:
    project = Project(tmp_path, tmp_path / ".nemotron")
    assert git_state(project) is None
    assert git_state(Project(None, tmp_path)) is None
    git(tmp_path, "init", "-q", "-b", "main")
    assert git_state(project) == {"commit": None, "branch": "main", "dirty": False, "changed": 0, "remote": None}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:PLANTED@example.com/a.git", "https://example.com/a.git"),
        ("https://PLANTED@example.com:8443/a.git?token=PLANTED#PLANTED", "https://example.com:8443/a.git"),
        ("ssh://git@example.com:22/a.git", "ssh://git@example.com:22/a.git"),
        ("ssh://git:PLANTED@example.com/a.git", "ssh://git@example.com/a.git"),
        ("git@example.com:team/a.git", "git@example.com:team/a.git"),
        ("git:PLANTED@example.com:team/a.git", "git@example.com:team/a.git"),
        ("../a.git", "../a.git"),
        ("https://[PLANTED@example.com/a.git", ""),
    ],
)
def test_a_remote_is_told_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"packager": "tar"}, "packager = 'tar': must be one of 'payload', 'git', 'pattern' or 'hybrid'"),
        ({"packager": "pattern"}, 'packager = "pattern" needs packager_patterns'),
        ({"packager": "hybrid", "packager_patterns": []}, 'packager = "hybrid" needs packager_patterns'),
        ({"packager": "git", "packager_patterns": ["a"]}, 'Set packager = "hybrid"'),
        ({"packager_patterns": ["a"]}, 'Set packager = "pattern"'),
        ({"packager_patterns": "a"}, 'must be a list. Write ["a"]'),
        ({"packager": "pattern", "packager_patterns": ["/a"]}, "must be relative to the project"),
        ({"packager": "pattern", "packager_patterns": ["a/../.."]}, "must be relative to the project"),
        ({"packager": "pattern", "packager_patterns": [" "]}, "must name a file or folder"),
        ({"packager_ref": "main"}, 'Set packager = "git"'),
        ({"packager": "git", "packager_ref": "--upload-pack=x"}, "must be a commit, a branch or a tag"),
        ({"packager": "git", "packager_ref": "a b"}, "must be a commit, a branch or a tag"),
        ({"packager": "git", "packager_ref": "v1", "packager_uncommitted": "ship"}, "Remove one of them"),
        ({"packager_max_mb": 0}, "packager_max_mb = 0: must be 1 or more"),
        ({"packagr": "git"}, "Did you mean packager"),
    ],
    ids=str,
)
def test_a_wrong_packager_is_told_with_what_is_wanted(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError) as told:
        settings_of(Project(None, tmp_path), "slurm", values, "profile 'p'")
    assert message in str(told.value) and str(told.value).startswith("profile 'p': ")

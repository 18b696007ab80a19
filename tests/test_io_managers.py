"""IO managers: Python values become artifacts, consumers get what their annotation says, nothing half is published."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from nemotron_dagster.artifacts import ArtifactRef
from nemotron_dagster.artifacts.loading import Rows, rows
from nemotron_dagster.artifacts.places import place
from nemotron_dagster.artifacts.store import latest, set_latest
from nemotron_dagster.artifacts.types.binidx import BinIdx
from nemotron_dagster.artifacts.types.eval_results import Results, Score
from nemotron_dagster.artifacts.values import Origin, publish_value
from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.dagster.io_managers import ArtifactIOManager, io_managers
from nemotron_dagster.project import find_project

TYPES = load_catalog(find_project()).types
QUESTIONS = [
    {"question_id": i, "question": f"{i}?", "options": ["a", "b"], "answer_index": 0, "answer": "A", "category": "c"}
    for i in range(3)
]


RESULTS = Results(model={"name": "m"}, backend="own", scores=(Score(task="t", metric="acc", value=0.5, n=4),))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def chat(i: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}


def run(
    root: Path, *assets: Any, instance: dg.DagsterInstance | None = None, **options: Any
) -> dg.ExecuteInProcessResult:
    managers = io_managers(TYPES, root)
    return dg.materialize(list(assets), resources=managers, instance=instance, raise_on_error=False, **options)


def failed(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    return " ".join(str(e.event_specific_data.error_display_string) for e in result.all_events if e.is_step_failure)


def made(value: Callable[[], Any], type_name: str = "training_jsonl", **options: Any) -> dg.AssetsDefinition:
    @dg.asset(key=["own", "rows"], io_manager_key=type_name, **options)
    def rows():
        return value()

    return rows


def consumer(annotation: Any, see: Callable[[Any], Any], **options: Any) -> tuple[dg.AssetsDefinition, list[Any]]:
    seen: list[Any] = []

    def look(rows):
        seen.append(see(rows))
        return Path(__file__).parent / "no"

    look.__annotations__ = {} if annotation is None else {"rows": annotation}
    asset = dg.asset(name="look", ins={"rows": dg.AssetIn(key=["own", "rows"])}, io_manager_key="plain", **options)(
        look
    )
    return asset, seen


class Nowhere(dg.IOManager):
    def handle_output(self, context: Any, obj: Any) -> None: ...
    def load_input(self, context: Any) -> None: ...


def both(
    root: Path, producer: Any, annotation: Any, see: Callable[[Any], Any] = lambda v: v, **options: Any
) -> tuple[dg.ExecuteInProcessResult, list[Any]]:
    look, seen = consumer(annotation, see)
    resources = {**io_managers(TYPES, root), "plain": Nowhere()}
    return dg.materialize([producer, look], resources=resources, raise_on_error=False, **options), seen


def leftovers(root: Path) -> list[Path]:
    """What lies in the root, but for locks."""
    return [p for p in root.rglob("*") if p.is_file() and ".locks" not in p.parts]


def test_a_generator_of_rows_is_published_as_an_artifact_with_metadata_pictures_and_its_content_as_data_version(
    tmp_path: Path,
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(tmp_path, made(lambda: Rows(chat(i) for i in range(30))), instance=instance)
        assert result.success
        event = result.asset_materializations_for_node("own__rows")[0]
        version = instance.get_latest_materialization_event(dg.AssetKey(["own", "rows"])).asset_materialization.tags
    ref = latest(tmp_path, ("own", "rows"))
    assert ref is not None and ref.type == "training_jsonl" and ref.manifest.producer == "own/rows"
    assert version["dagster/data_version"] == ref.manifest.content
    assert event.metadata["dagster/row_count"].value == 30
    assert "lengths picture" in event.metadata and event.metadata["dagster/uri"].value == ref.uri
    assert (Path(ref.uri) / ref.manifest.facts["pictures"][0]).is_file()
    assert not list(tmp_path.rglob(".staging/*"))


def test_every_natural_value_of_a_type_is_accepted(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(QUESTIONS)
    packs = pa.table(
        {"input_ids": [[1, 2, 3], [4]], "loss_mask": [[0, 1, 0], [0]], "seq_start_id": [[0], [0]]},
    )
    (tmp_path / "files").mkdir()
    (tmp_path / "files/rows.jsonl").write_text(json.dumps(chat(1)) + "\n")
    cases: list[tuple[str, Any]] = [
        ("training_jsonl", [chat(1), chat(2)]),
        ("training_jsonl", pa.Table.from_pylist([chat(1)])),
        ("raw_jsonl", pa.RecordBatchReader.from_batches(pa.schema([("text", "string")]), [])),
        ("training_jsonl", tmp_path / "files"),
        ("training_jsonl", str(tmp_path / "files/rows.jsonl")),
        ("training_jsonl", place(f"memory://values-{tmp_path.name}/rows.jsonl")),
        ("mcq_benchmark_parquet", table),
        ("mcq_benchmark_parquet", table.to_reader()),
        ("mcq_benchmark_parquet", QUESTIONS),
        ("packed_parquet", packs),
        ("packed_parquet", packs.to_reader(1)),
        ("packed_parquet", [([1, 2], [0, 0], [0])]),
        ("binidx", [np.array([1, 2, 3]), np.array([4])]),
        ("binidx", np.array([1, 2, 3])),
        ("binidx", np.array([[1, 2], [3, 4]])),
        ("eval_results", RESULTS),
    ]
    cases[2] = ("raw_jsonl", pa.table({"text": ["a", "b"]}).to_reader())
    cases[5][1].write_text(json.dumps(chat(1)) + "\n")
    for i, (type_name, value) in enumerate(cases):
        ref = publish_value(tmp_path / "root", type_name, value, Origin(("case", str(i))))
        assert ref.type == type_name and ref.manifest.files, i


def test_a_generator_function_is_an_asset_below_the_rows_decorator(tmp_path: Path) -> None:
    @dg.asset(key=["own", "rows"], io_manager_key="training_jsonl")
    @rows
    def many(context: dg.AssetExecutionContext) -> Iterator[dict[str, Any]]:
        """Rows."""
        assert context.run.run_id
        for i in range(5):
            yield chat(i)

    assert run(tmp_path, many).success
    ref = latest(tmp_path, ("own", "rows"))
    assert ref is not None and ref.manifest.facts["rows"] == 5


CONSUMED: list[tuple[str, Any, Callable[[Any], Any], Any]] = [
    ("training_jsonl", None, type, ArtifactRef),
    ("training_jsonl", ArtifactRef, type, ArtifactRef),
    ("training_jsonl", Rows, lambda v: len(list(v)), 3),
    ("training_jsonl", Iterator, lambda v: next(v)["messages"][0]["content"], "q0"),
    ("training_jsonl", list[dict], len, 3),
    ("training_jsonl", list, len, 3),
    ("training_jsonl", Path, lambda v: v.is_dir(), True),
    ("training_jsonl", str, lambda v: Path(v).is_dir(), True),
    ("training_jsonl", pa.Table, lambda v: v.num_rows, 3),
    ("training_jsonl", ds.Dataset, lambda v: v.count_rows(), 3),
    ("mcq_benchmark_parquet", pa.Table, lambda v: v.num_rows, 3),
    ("mcq_benchmark_parquet", Rows, lambda v: next(v)["question"], "0?"),
    ("packed_parquet", ds.Dataset, lambda v: v.count_rows(), 1),
    ("packed_parquet", pa.Table, lambda v: v["input_ids"].to_pylist(), [[1, 2]]),
    ("packed_parquet", pa.RecordBatchReader, lambda v: v.read_all().num_rows, 1),
    ("binidx", BinIdx, lambda v: v[0].tolist(), [1, 2, 3]),
    ("binidx", np.ndarray, lambda v: v.tolist(), [1, 2, 3]),
    ("binidx", dict, lambda v: v["train"][0][0], 1.0),
    ("eval_results", Results, lambda v: v.scores[0].value, 0.5),
]
VALUES = {
    "training_jsonl": lambda: [chat(i) for i in range(3)],
    "mcq_benchmark_parquet": lambda: pa.Table.from_pylist(QUESTIONS),
    "packed_parquet": lambda: [([1, 2], [0, 0], [0])],
    "binidx": lambda: np.array([1, 2, 3]),
    "eval_results": lambda: RESULTS,
}


@pytest.mark.parametrize(
    ("type_name", "annotation", "see", "expected"), CONSUMED, ids=[f"{c[0]}-{c[1]}" for c in CONSUMED]
)
def test_a_consumer_gets_what_its_annotation_says(
    tmp_path: Path, type_name: str, annotation: Any, see: Callable[[Any], Any], expected: Any
) -> None:
    result, seen = both(tmp_path, made(VALUES[type_name], type_name), annotation, see)
    assert result.success and seen == [expected]


def test_what_cannot_be_had_as_the_annotation_is_refused_with_what_to_write(tmp_path: Path) -> None:
    result, _ = both(tmp_path, made(VALUES["binidx"], "binidx"), pa.Table)
    assert "own/rows: a binidx cannot be had as rows. Annotate the input ArtifactRef" in failed(result)


def broken_generator() -> Iterator[dict[str, Any]]:
    yield chat(1)
    yield chat(2)
    raise KeyError("no such column")


@pytest.mark.parametrize(
    ("type_name", "value", "message"),
    [
        ("training_jsonl", lambda: None, "own/rows: returned None, so there is nothing to publish as training_jsonl"),
        ("training_jsonl", lambda: Rows([]), "own/rows: nothing was published as training_jsonl.*no rows to write"),
        ("training_jsonl", lambda: [], "there are no rows to write"),
        ("training_jsonl", lambda: Rows(broken_generator()), "own/rows: after 2 items .* raised KeyError: 'no such"),
        ("training_jsonl", lambda: [{"text": "x"}], "own/rows: nothing was published.*has no `messages`"),
        ("training_jsonl", lambda: chat(1), "it is a dict. Return or yield one mapping per row"),
        ("training_jsonl", lambda: 7, "it is a int. Return or yield one mapping per row"),
        ("training_jsonl", lambda: "some text\nmore", "a text must be the path of existing files"),
        ("training_jsonl", lambda: Path("/no/such/place"), "/no/such/place: no such file or directory"),
        ("binidx", lambda: [], "there are no tokens to write"),
        ("checkpoint_hf", lambda: [1], "A checkpoint_hf is passed by reference"),
    ],
)
def test_what_is_no_value_publishes_nothing_leaves_nothing_and_names_the_asset(
    tmp_path: Path, type_name: str, value: Callable[[], Any], message: str
) -> None:
    result = run(tmp_path, made(value, type_name))
    assert re.search(message, failed(result), re.DOTALL)
    assert not result.asset_materializations_for_node("own__rows")
    assert leftovers(tmp_path) == [] and latest(tmp_path, ("own", "rows")) is None


def test_a_failed_value_leaves_the_version_before_it_current(tmp_path: Path) -> None:
    assert run(tmp_path, made(lambda: [chat(1)])).success
    before = latest(tmp_path, ("own", "rows"))
    assert not run(tmp_path, made(lambda: Rows(broken_generator()))).success
    assert latest(tmp_path, ("own", "rows")) == before


def test_an_asset_annotated_to_return_none_publishes_nothing_and_succeeds(tmp_path: Path) -> None:
    @dg.asset(key=["own", "rows"], io_manager_key="training_jsonl")
    def none() -> None: ...

    assert run(tmp_path, none).success and leftovers(tmp_path) == []


def test_a_raising_generator_may_be_retried_and_a_wrong_value_may_not(tmp_path: Path) -> None:
    tries: list[int] = []

    def flaky() -> Rows:
        tries.append(1)
        return Rows(broken_generator() if len(tries) == 1 else [chat(1)])

    policy = dg.RetryPolicy(max_retries=2)
    assert run(tmp_path, made(flaky, retry_policy=policy)).success and len(tries) == 2
    tries.clear()

    def wrong() -> list[Any]:
        tries.append(1)
        return []

    assert not run(tmp_path, made(wrong, retry_policy=policy)).success and len(tries) == 1


STREAM = """
import resource, sys
from pathlib import Path
from nemotron_dagster.artifacts.loading import Rows, rows
from nemotron_dagster.artifacts.types.eval_results import Results, Score
from nemotron_dagster.artifacts.values import Origin, publish_value
text = "x" * 1000
def generate(n):
    for i in range(n):
        yield {"messages": [{"role": "user", "content": f"{i} {text}"}, {"role": "assistant", "content": "b"}]}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
publish_value(Path(sys.argv[1]), "training_jsonl", Rows(generate(1000)), Origin(("small",)))
before = peak()
ref = publish_value(Path(sys.argv[1]), "training_jsonl", Rows(generate(200_000)), Origin(("large",)))
assert ref.manifest.facts["rows"] == 200_000
print(peak() - before)
"""


def test_200000_rows_are_published_in_bounded_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True, text=True, check=True)
    written = sum(p.stat().st_size for p in tmp_path.rglob("part-*.jsonl"))
    assert written > 200 << 20 and float(done.stdout) < 60, f"{done.stdout} MiB more for {written >> 20} MiB of rows"


DAYS = dg.StaticPartitionsDefinition(["mon", "tue", "w/d"])


def partitioned(count: Callable[[str], int]) -> dg.AssetsDefinition:
    @dg.asset(key=["own", "rows"], io_manager_key="training_jsonl", partitions_def=DAYS)
    def days(context) -> Rows:
        return Rows(chat(i) for i in range(count(context.partition_key)))

    return days


def test_each_partition_is_an_artifact_of_its_own_and_a_consumer_of_all_gets_them_by_key(tmp_path: Path) -> None:
    days = partitioned(len)
    for key in DAYS.get_partition_keys():
        assert run(tmp_path, days, partition_key=key).success
    assert (tmp_path / "own/rows/partition=mon/latest.json").is_file()
    ref = latest(tmp_path, ("own", "rows"), "w/d")
    assert ref is not None and ref.manifest.partition == "w/d" and ref.manifest.asset == ["own", "rows"]
    for annotation, see, expected in (
        (None, sorted, ["mon", "tue", "w/d"]),
        (dict[str, ArtifactRef], lambda v: v["tue"].manifest.partition, "tue"),
        (dict[str, Path], lambda v: v["mon"].is_dir(), True),
        (list[ArtifactRef], lambda v: [r.manifest.partition for r in v], ["mon", "tue", "w/d"]),
    ):
        look, seen = consumer(annotation, see)
        resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
        chosen = dg.AssetSelection.assets(look)
        result = dg.materialize([days, look], selection=chosen, resources=resources, raise_on_error=False)
        assert result.success and seen == [expected]


def test_a_partition_loads_its_own_partition_and_a_missing_one_is_named(tmp_path: Path) -> None:
    days = partitioned(lambda key: 2)
    look, seen = consumer(Rows, lambda v: len(list(v)), partitions_def=DAYS)
    resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
    assert dg.materialize([days, look], resources=resources, partition_key="mon").success and seen == [2]
    chosen = dg.AssetSelection.assets(look)
    result = dg.materialize(
        [days, look], selection=chosen, resources=resources, partition_key="tue", raise_on_error=False
    )
    assert "own/rows, partition tue: was never materialized" in failed(result)


def test_multi_partitions_have_one_artifact_per_combination(tmp_path: Path) -> None:
    both_dimensions = dg.MultiPartitionsDefinition(
        {"model": dg.StaticPartitionsDefinition(["a"]), "task": dg.StaticPartitionsDefinition(["x", "y"])}
    )

    @dg.asset(key=["own", "rows"], io_manager_key="training_jsonl", partitions_def=both_dimensions)
    def grid(context) -> list:
        return [chat(len(context.partition_key.keys_by_dimension["task"]))]

    for key in both_dimensions.get_partition_keys():
        assert run(tmp_path, grid, partition_key=key).success
    look, seen = consumer(None, sorted)
    resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
    assert dg.materialize([grid, look], selection=dg.AssetSelection.assets(look), resources=resources).success
    assert seen == [["a|x", "a|y"]]


def current(root: Path) -> ArtifactRef:
    ref = latest(root, ("own", "rows"))
    assert ref is not None
    return ref


def test_a_never_materialized_input_is_named(tmp_path: Path) -> None:
    producer = made(lambda: [chat(1)])
    look, _ = consumer(None, type)
    resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
    result = dg.materialize(
        [producer, look], selection=dg.AssetSelection.assets(look), resources=resources, raise_on_error=False
    )
    assert "own/rows: was never materialized. Materialize it first." in failed(result)


def test_an_optional_input_is_none_where_nothing_was_materialized(tmp_path: Path) -> None:
    look, seen = consumer(ArtifactRef | None, lambda v: v)
    resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
    chosen = dg.AssetSelection.assets(look)
    assert dg.materialize([made(lambda: 1), look], selection=chosen, resources=resources).success and seen == [None]


def spoil_content(root: Path, ref: ArtifactRef) -> None:
    file = next(Path(ref.uri).glob("*.jsonl"))
    file.write_text(file.read_text() * 2)


def spoil_manifest(root: Path, ref: ArtifactRef) -> None:
    (Path(ref.uri) / "artifact.json").unlink()


def spoil_type(root: Path, ref: ArtifactRef) -> None:
    other = publish_value(root, "binidx", np.array([1, 2]), Origin(("own", "rows")))
    set_latest(root, ("own", "rows"), None, other)


def spoil_owner(root: Path, ref: ArtifactRef) -> None:
    other = publish_value(root, "training_jsonl", [chat(9)], Origin(("somebody", "else")))
    target = root / "own/rows" / other.manifest.key
    shutil.copytree(other.uri, target)
    pointer = json.loads((root / "own/rows/latest.json").read_text())
    pointer |= {"uri": other.manifest.key, "content": other.manifest.content, "manifest": other.digest}
    (root / "own/rows/latest.json").write_text(json.dumps(pointer))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_content, "was changed after publishing"),
        (spoil_manifest, "is no published artifact"),
        (spoil_type, "input accepts training_jsonl, but own/rows holds binidx"),
        (spoil_owner, "is an artifact of another asset, somebody/else"),
    ],
)
def test_a_changed_half_written_wrong_or_foreign_artifact_is_refused_on_load(
    tmp_path: Path, spoil: Callable[[Path, ArtifactRef], None], message: str
) -> None:
    producer = made(lambda: [chat(1)])
    assert run(tmp_path, producer).success
    spoil(tmp_path, current(tmp_path))
    look, _ = consumer(None, type)
    resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
    chosen = dg.AssetSelection.assets(look)
    result = dg.materialize([producer, look], selection=chosen, resources=resources, raise_on_error=False)
    assert message in failed(result)


def test_a_version_that_another_run_puts_in_the_place_of_this_runs_is_refused(tmp_path: Path) -> None:
    producer = made(lambda: [chat(1)])

    @dg.asset(deps=[producer], io_manager_key="plain")
    def meddler() -> None:
        set_latest(tmp_path, ("own", "rows"), None, publish_value(tmp_path, "training_jsonl", [chat(2)], OWN))

    look, _ = consumer(None, type, deps=[meddler])
    resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
    result = dg.materialize([producer, meddler, look], resources=resources, raise_on_error=False)
    assert "own/rows: another run has replaced what this run made of it" in failed(result)


OWN = Origin(("own", "rows"))


def test_a_store_that_was_put_back_to_an_older_version_is_refused_and_a_newer_one_is_loaded(tmp_path: Path) -> None:
    producer = made(lambda: [chat(1)])
    look, seen = consumer(Rows, lambda v: next(v)["messages"][0]["content"])
    resources = {**io_managers(TYPES, tmp_path), "plain": Nowhere()}
    chosen = dg.AssetSelection.assets(look)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(tmp_path, producer, instance=instance).success
        newer = publish_value(tmp_path, "training_jsonl", [chat(2)], OWN)
        set_latest(tmp_path, ("own", "rows"), None, newer)
        options = {"selection": chosen, "resources": resources, "instance": instance, "raise_on_error": False}
        assert dg.materialize([producer, look], **options).success and seen == ["q2"]
        file = Path(newer.uri) / "artifact.json"
        file.write_text(file.read_text().replace(newer.manifest.created, "2020-01-01T00:00:00+00:00"))
        set_latest(tmp_path, ("own", "rows"), None, replace(newer, digest=""))
        assert "older than its last materialization" in failed(dg.materialize([producer, look], **options))


def test_the_manifest_of_a_value_says_what_it_was_made_of(tmp_path: Path) -> None:
    @dg.asset(key=["own", "twice"], ins={"rows": dg.AssetIn(key=["own", "rows"])}, io_manager_key="training_jsonl")
    def twice(rows: Rows) -> list:
        return [row for row in rows for _ in range(2)]

    assert run(tmp_path, made(lambda: [chat(1)]), twice).success
    ref = latest(tmp_path, ("own", "twice"))
    assert ref is not None
    (made_of,) = ref.manifest.inputs
    assert (made_of["port"], made_of["asset"]) == ("rows", ["own", "rows"])
    assert made_of["content"] == current(tmp_path).manifest.content


def test_our_io_managers_have_no_fields_in_the_launchpad_and_the_configurable_one_has(tmp_path: Path) -> None:
    def fields(manager: Any) -> set[str]:
        job = dg.Definitions(
            assets=[made(lambda: 1)], resources={"training_jsonl": manager}
        ).resolve_implicit_global_asset_job_def()
        snaps = job.get_config_schema_snapshot().all_config_snaps_by_key.values()
        return {f.name for s in snaps if s.fields for f in s.fields}

    assert "root" not in fields(io_managers(TYPES, tmp_path)["training_jsonl"])
    assert "root" in fields(ArtifactIOManager(type="training_jsonl", root=str(tmp_path)))


def test_a_users_own_io_manager_may_have_a_root_of_its_own(tmp_path: Path) -> None:
    manager = ArtifactIOManager(type="training_jsonl", root=f"memory://io-{tmp_path.name}")
    look, seen = consumer(Rows, lambda v: len(list(v)))
    resources = {"training_jsonl": manager, "plain": Nowhere()}
    assert dg.materialize([made(lambda: [chat(1)]), look], resources=resources).success
    assert seen == [1]

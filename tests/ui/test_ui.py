"""What a person sees in the Dagster UI of a project, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ui_support import UI, Visit, processes_of_group, wait_for

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.pipelines import catalog_pipeline
from nemotron_dagster.project import find_project

_LOCATION = "/locations/nemotron_dagster.definitions"


def metadata(ui: UI, asset: list[str]) -> dict[str, Any]:
    """Label -> entry of an asset's last materialization."""
    query = """query($k: AssetKeyInput!) {assetNodeOrError(assetKey: $k) {... on AssetNode {
        assetMaterializations(limit: 1) {runId metadataEntries {label ... on IntMetadataEntry {intValue}
        ... on FloatMetadataEntry {floatValue} ... on MarkdownMetadataEntry {mdStr}}}}}}"""
    found = ui.query(query, k={"path": asset})["assetNodeOrError"]["assetMaterializations"]
    assert found, f"{asset} was never materialized"
    return {e["label"]: e for e in found[0]["metadataEntries"]}


def finished(ui: UI, run_id: str) -> str:
    """The status a run ends with."""
    done = ("SUCCESS", "FAILURE", "CANCELED")
    return str(wait_for(f"end of run {run_id}", lambda: (s := ui.run(run_id)["status"]) in done and s))


def picture(visit: Visit, asset: str, label: str) -> tuple[int, int]:
    """Open the dialog behind a picture's row on an asset's page; the picture's natural size."""
    page = visit.open(f"/assets/{asset}")
    page.get_by_role("row").filter(has_text=label).get_by_text("[Show Markdown]").click()
    image = page.get_by_role("dialog").locator("img").first
    image.wait_for()
    size = image.evaluate("i => [i.naturalWidth, i.naturalHeight, i.clientWidth]")
    visit.shot(f"{asset.replace('/', '-')}-picture")
    assert size[2] == size[0], f"{label} is squeezed: {size}"
    return size[0], size[1]


def test_server_answers_and_the_location_is_loaded(ui: UI) -> None:
    assert "dagster_version" in json.loads(ui.get("/server_info"))
    entries = ui.query("{workspaceOrError {... on Workspace {locationEntries {name loadStatus locationOrLoadError {"
                       "__typename}}}}}")["workspaceOrError"]["locationEntries"]  # fmt: skip
    assert entries == [
        {
            "name": "nemotron_dagster.definitions",
            "loadStatus": "LOADED",
            "locationOrLoadError": {"__typename": "RepositoryLocation"},
        }
    ]


def test_no_nag_and_no_telemetry(ui: UI) -> None:
    data = ui.query("{shouldShowNux instance {info}}")
    assert data["shouldShowNux"] is False
    assert re.search(r"telemetry:\s+enabled: false", data["instance"]["info"])


def test_every_step_is_an_asset_in_its_group_with_its_edges(ui: UI) -> None:
    nodes = ui.query("{assetNodes {assetKey {path} groupName kinds dependencyKeys {path} jobNames}}")["assetNodes"]
    found = {tuple(n["assetKey"]["path"]): n for n in nodes}
    catalog = catalog_pipeline(load_catalog(find_project(ui.project)))
    assert len(found) == len(catalog.nodes) + 3
    edges = 0
    for node in catalog.nodes.values():
        asset = found[node.key]
        assert asset["groupName"] == node.step.category
        wanted = {tuple(source.split("/")) for source in node.inputs.values()}
        assert {tuple(d["path"]) for d in asset["dependencyKeys"]} == wanted
        assert asset["kinds"] == ([] if node.step.ready else ["planned"])
        edges += len(wanted)
    assert edges > 10
    assert found["learn", "scores"]["dependencyKeys"] == [{"path": ["learn", "model"]}]
    assert found["learn", "model"]["groupName"] == "learn"
    assert sorted(found["learn", "model"]["kinds"]) == ["demo", "train"]
    assert "learn" in found["learn", "model"]["jobNames"]


def test_the_picture_of_the_lineage(visit: Visit) -> None:
    page = visit.open("/asset-groups")
    for group in ("convert", "data_prep", "optimize", "peft", "pretrain", "rl", "sft", "learn"):
        page.get_by_text(group, exact=True).first.wait_for()
    assert page.get_by_role("dialog").count() == 0  # nothing greets a first visitor
    visit.shot("lineage")
    page = visit.open(f"{_LOCATION}/asset-groups/learn")
    for name in ("numbers", "model", "scores"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("Materialized").nth(2).wait_for()
    visit.shot("lineage-learn")
    page = visit.open("/assets")
    page.get_by_text("planned", exact=True).first.wait_for()
    page.get_by_text("Never materialized").nth(5).wait_for()
    visit.shot("assets")


def test_a_planned_step_says_so(visit: Visit) -> None:
    page = visit.open("/assets/sdg/data_designer")
    page.get_by_text("The payload of this step is not built yet").first.wait_for()
    assert page.get_by_text("not built yet").count() == 1
    visit.shot("planned")


def test_checkpoint_page_shows_the_loss(visit: Visit) -> None:
    width, height = picture(visit, "learn/model", "loss picture")
    assert 500 <= width <= 900 and 250 <= height <= 600
    entries = metadata(visit.ui, ["learn", "model"])
    assert entries["parameters"]["intValue"] == 8
    assert entries["final_loss"]["floatValue"] == pytest.approx(0.33, abs=0.05)
    assert next(iter(entries)) == "parameters"  # figures first, where it lies last


def test_eval_page_shows_before_and_after(visit: Visit) -> None:
    width, height = picture(visit, "learn/scores", "scores picture")
    assert 400 <= width <= 900 and 250 <= height <= 600
    visit.page.get_by_role("button", name="Close").click()
    cells = visit.page.locator("table", has_text="before").last.locator("tr", has_text="spelling").locator("td")
    cells.nth(7).wait_for()
    assert [c.strip() for c in cells.all_inner_texts()] == [
        *("spelling", "acc", "0.270", "+0.660 ± 0.036", "0.930", "0.018", "0.895 to 0.965", "200", "0.250"),
    ]
    visit.shot("scores")


def test_data_page_shows_rows_and_what_was_removed(visit: Visit) -> None:
    picture(visit, "learn/numbers", "attrition picture")
    entries = metadata(visit.ui, ["learn", "numbers"])
    assert entries["dagster/row_count"]["intValue"] == 34
    assert "| multiple of seven | 6 |" in entries["filters"]["mdStr"]
    assert '{"text": "number 1"}' in entries["samples"]["mdStr"]


def test_a_failed_run_shows_the_payloads_own_words(visit: Visit) -> None:
    failed = visit.ui.query("{runsOrError(filter: {statuses: [FAILURE]}) {... on Runs {results {runId jobName}}}}")
    (run,) = [r for r in failed["runsOrError"]["results"] if r["jobName"] == "__ASSET_JOB"]
    page = visit.open(f"/runs/{run['runId']}")
    page.get_by_text("n=1: leaves no rows.").first.wait_for()
    page.get_by_text("Set n to 2 or more.").first.wait_for()
    visit.shot("failed")


def check_text(visit: Visit, asset: str, check: str, *says: str, succeeded: int = 0) -> str:
    """What a check's page says, once it says all that is expected; it draws itself piece by piece."""
    page = visit.open(f"/assets/{asset}?view=checks&checkDetail={check}")
    page.get_by_text("Evaluation result").first.wait_for()
    for words in (check, *says):
        page.get_by_text(words).first.wait_for()
    if succeeded:
        page.get_by_text("Succeeded").nth(succeeded - 1).wait_for()
    return str(page.locator("body").inner_text())


def test_the_checks_page_shows_what_was_compared_and_why_a_run_was_refused(visit: Visit) -> None:
    def run(asset: str, overrides: dict[str, Any], status: str) -> None:
        assert finished(visit.ui, visit.ui.launch(["demo", asset], overrides)) == status

    run("numbers", {"n": 5}, "SUCCESS")
    run("train", {}, "SUCCESS")
    says = ("The rows have the field that the config's text_field names.", "demo/numbers")
    text = check_text(visit, "demo/train", "raw_jsonl__text_field", *says, succeeded=4)
    visit.shot("checks-passed")
    assert text.count("Succeeded") == 4 and "Failed" not in text

    run("train", {"text_field": "words"}, "FAILURE")
    says = ("text_field is words, but no row of demo/numbers", "Set text_field to one of these.")
    text = check_text(visit, "demo/train", "raw_jsonl__text_field", *says, succeeded=3)
    visit.shot("checks-failed")
    assert text.count("Succeeded") == 3, "one lock refused the run; nothing else is wrong"
    check_text(visit, "demo/train", "manifest_and_files", "This run published nothing. What was published before: ")
    visit.shot("checks-files")
    check_text(visit, "demo/train", "raw_jsonl__tokenizer", "Cannot be told")
    visit.shot("checks-untold")

    run("train", {"steps": "many"}, "FAILURE")
    text = check_text(visit, "demo/train", "raw_jsonl__text_field", "Not looked at, because the run ended before: ")
    visit.shot("checks-not-looked-at")
    assert "steps" in text


def test_a_run_launched_with_overrides_shows_its_log(visit: Visit) -> None:
    run_id = visit.ui.launch(["demo", "numbers"], {"n": 3})
    assert finished(visit.ui, run_id) == "SUCCESS"
    assert metadata(visit.ui, ["demo", "numbers"])["rows_in"]["intValue"] == 3
    page = visit.open("/runs")
    page.get_by_text(run_id[:8]).first.wait_for()
    assert page.get_by_text('"directory"').count() == 0, "the handle of the job is nothing to read"
    visit.shot("runs")
    page = visit.open(f"/runs/{run_id}")
    page.get_by_role("button", name="stdout").click()
    page.get_by_placeholder("Select a step").click()
    page.get_by_text("demo__numbers").last.click()
    page.get_by_text("writing 3 numbers").first.wait_for()
    visit.shot("stdout")


def test_the_launchpad_offers_configs_and_only_what_a_run_may_set(visit: Visit) -> None:
    page = visit.open(f"{_LOCATION}/jobs/learn/playground")
    page.get_by_text("learn__numbers").first.wait_for()
    page.get_by_text("No errors").first.wait_for()
    visit.shot("launchpad")
    editor = page.locator(".CodeMirror").first.inner_text()
    assert "overrides" in editor and "root" not in editor
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    assert finished(visit.ui, page.url.rpartition("/")[2][:36]) == "SUCCESS"


def test_terminating_a_run_stops_its_job(visit: Visit) -> None:
    run_id = visit.ui.launch(["demo", "numbers"], {"seconds": 300})
    jobs = visit.ui.project / ".nemotron" / "jobs"

    def running() -> Path | None:
        lying = (p.parent for p in jobs.glob("*/pid.json") if not (p.parent / "exit.json").exists())
        return next(lying, None)

    job = wait_for("the job", running)
    pid = json.loads((job / "pid.json").read_text())
    assert processes_of_group(pid["child"])
    page = visit.open(f"/runs/{run_id}")
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("Terminate|Yes")).click()
    assert finished(visit.ui, run_id) == "CANCELED"
    wait_for("the end of the job's processes", lambda: not processes_of_group(pid["child"]), 10)
    assert json.loads((job / "exit.json").read_text())["cancelled"] is True
    visit.open(f"/runs/{run_id}").get_by_text("Canceled").first.wait_for()
    visit.shot("canceled")


def test_a_run_of_the_command_line_can_be_executed_again(visit: Visit) -> None:
    query = '{runsOrError(filter: {pipelineName: "learn"}) {... on Runs {results {runId tags {key}}}}}'
    runs = visit.ui.query(query)["runsOrError"]["results"]
    first = next(r for r in runs if "dagster/from_ui" not in [t["key"] for t in r["tags"]])["runId"]
    page = visit.open(f"/runs/{first}")
    page.get_by_role("button", name="Re-execute all").click()
    page.wait_for_url(lambda url: "/runs/" in url and first not in url)
    again = page.url.rpartition("/")[2][:36]
    assert finished(visit.ui, again) == "SUCCESS"
    assert {"key": "dagster/parent_run_id", "value": first} in visit.ui.run(again)["tags"]

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from process.commands import (
    ROOT,
    Ran,
    Runs,
    interrupted,
    microbatch,
    user_folder,
)
from profiler.run_folder import FILES

SMALL = ("train.py:workload", "--device", "cpu", "--memory-limit", "8MiB")
TRAINING_FILES = {name for name in FILES if not name.startswith("evaluation")}
SHORT = ("--ceiling", "3", "--no-compare")

COMMANDS = {
    "full": ("probe", *SMALL, "--effective-batch", "40", "--soak", "6", "--json", "--output", "run"),
    "plain": ("probe", *SMALL, *SHORT),
    "shared": (
        *("probe", *SMALL, "--effective-batch", "6", "--data-parallel-size", "2", "--ceiling", "target"),
        *("--no-compare", "--no-check", "--json", "--quiet", "--output", "occupied", "--force"),
    ),
    "without room": (
        *("probe", "train.py:heavy", "--device", "cpu", "--memory-limit", "4MiB", "--effective-batch", "8"),
        *("--json", "--output", "run"),
    ),
    "evaluation": ("probe", *SMALL, "--eval", "--json", "--output", "run"),
    "both": ("probe", *SMALL, *SHORT, "--train", "--eval", "--no-check"),
    "evaluation without room": (
        *("probe", "train.py:heavy", "--device", "cpu", "--memory-limit", "4MiB", "--eval", "--output", "run"),
    ),
    "compare": ("compare", *SMALL, "--micro-batch", "8", "--most-steps", "4", "--output", "run"),
    "devices": ("devices",),
    "devices as json": ("devices", "--json"),
}

TRIAL = {
    "micro_batch_size": int,
    "outcome": str,
    "peak_bytes": int,
    "peak_allocated_bytes": type(None),
    "peak_reserved_bytes": type(None),
    "peak_device_used_bytes": type(None),
    "seconds": float,
}
THROUGHPUT = {"micro_batch_size": int, "samples_per_second": float, "spread": float}
COMPARISON = {"strategy": str, "micro_batch_size": int, "accumulation_steps": int, "outcome": str, "peak_bytes": int}
PLAN = {
    "micro_batch_sizes": list,
    "weights": list,
    "accumulation_steps": int,
    "effective_batch_size": int,
    "data_parallel_size": int,
    "replicas": list,
    "peak_bytes": int,
    "step_seconds": float,
    "verified_steps": int,
    "soaked_steps": int,
    "soaked_peak_bytes": int,
    "equivalence": str,
    "reason": str,
}
SEARCH_OF = {"largest_fit": int, "smallest_misfit": int, "limited_by": str}
SEARCH = {"trials": int, "seconds": float, "out_of_memory": int}
DOCUMENT = {
    "schema": int,
    "workload": str,
    "device": str,
    "capacity_bytes": int,
    "largest_fit": int,
    "smallest_misfit": int,
    "limited_by": str,
    "trials": list,
    "throughput": list,
    "comparison": list,
    "equivalence": dict,
    "plan": dict,
    "soak": dict,
    "search": dict,
    "files": list,
}


class CommandRuns(Runs):
    """The commands of this file; one of them finds an earlier run, and a file of somebody's, where it writes."""

    def prepare(self, folder: Path) -> None:
        occupied = folder / "occupied"
        occupied.mkdir()
        (occupied / "records.jsonl").write_text('{"schema": 1, "kind": "run", "workload": "earlier"}\n')
        (occupied / "summed_loss.csv").write_text("earlier\n")
        (occupied / "mine.txt").write_text("kept\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with CommandRuns(tmp_path_factory.mktemp("commands"), COMMANDS) as started:
        yield started


@pytest.fixture(scope="module")
def document(runs: Runs) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(runs["full"].output)
    return printed


def mistyped(entries: dict[str, Any], shape: dict[str, type]) -> dict[str, Any]:
    """What of `shape` the entries lack, or have of another type."""
    return {
        name: entries.get(name, "missing")
        for name, kind in shape.items()
        if not isinstance(entries.get(name, "missing"), kind) or isinstance(entries[name], bool)
    }


def sizes_of(document: dict[str, Any]) -> dict[int, str]:
    return {trial["micro_batch_size"]: trial["outcome"] for trial in document["trials"]}


def test_a_probe_that_found_its_sizes_exits_with_0(runs: Runs) -> None:
    assert runs["full"].status == 0, runs["full"].errors


def test_standard_output_is_one_json_object_of_the_promised_keys_and_types(document: dict[str, Any]) -> None:
    assert document["schema"] == 1
    assert mistyped(document, DOCUMENT) == {}
    assert mistyped(document["plan"], PLAN) == {}
    assert mistyped(document["search"], SEARCH) == {}
    for name, shape in (("trials", TRIAL), ("throughput", THROUGHPUT), ("comparison", COMPARISON)):
        assert document[name], name
        assert [wrong for entries in document[name] if (wrong := mistyped(entries, shape))] == []


def test_the_largest_size_that_fits_and_the_next_one_were_both_run(document: dict[str, Any]) -> None:
    largest, smallest = document["largest_fit"], document["smallest_misfit"]
    assert largest + 1 == smallest
    assert sizes_of(document)[largest] == "fits"
    assert sizes_of(document)[smallest] == "out_of_memory"
    assert document["limited_by"] == "memory"


def test_each_size_is_tried_once_and_no_peak_is_above_the_budget(document: dict[str, Any]) -> None:
    assert len(sizes_of(document)) == len(document["trials"])
    assert document["capacity_bytes"] == 8 * 2**20
    assert max(trial["peak_bytes"] for trial in document["trials"]) <= document["capacity_bytes"]
    assert document["search"]["out_of_memory"] == list(sizes_of(document).values()).count("out_of_memory")


def test_the_plan_adds_up_to_the_effective_batch_and_was_run_for_five_steps(document: dict[str, Any]) -> None:
    plan = document["plan"]
    assert sum(plan["micro_batch_sizes"]) == plan["effective_batch_size"] == 40
    assert plan["weights"] == [size / 40 for size in plan["micro_batch_sizes"]]
    assert plan["replicas"] == [plan["micro_batch_sizes"]]
    assert plan["accumulation_steps"] == len(plan["micro_batch_sizes"])
    assert plan["verified_steps"] == 5
    assert plan["peak_bytes"] <= document["capacity_bytes"] * 0.95


def test_the_plan_was_soaked_for_as_many_steps_as_were_asked_for(document: dict[str, Any]) -> None:
    soak, plan = document["soak"], document["plan"]

    assert (plan["soaked_steps"], soak["steps"], soak["steps_run"], soak["failure"]) == (6, 6, 6, None)
    assert soak["micro_batch_sizes"] == plan["micro_batch_sizes"]
    assert [point["step"] for point in soak["points"]] == [1, 2, 3, 4, 5, 6]
    assert plan["soaked_peak_bytes"] == soak["peak_bytes"] <= document["capacity_bytes"]


def test_all_three_strategies_are_compared_at_the_micro_batch_of_the_plan(document: dict[str, Any]) -> None:
    rows = document["comparison"]
    assert {row["strategy"] for row in rows} == {"whole_batch", "summed_loss", "accumulation"}
    assert {row["micro_batch_size"] for row in rows} == {document["plan"]["micro_batch_sizes"][0]}
    failed = {row["strategy"] for row in rows if row["outcome"] == "out_of_memory"}
    assert failed == {"whole_batch", "summed_loss"}


def test_a_few_samples_are_checked_and_the_plan_says_what_came_of_it(runs: Runs, document: dict[str, Any]) -> None:
    checked = document["equivalence"]
    assert (checked["equal"], checked["verdict"]) == (True, "equal")
    assert checked["batch_size"] == min(4, document["largest_fit"], 40)
    assert document["plan"]["equivalence"] == checked["verdict"]
    assert json.loads((runs["full"].folder / "run" / "plan.json").read_text())["equivalence"] == checked
    lines = (runs["full"].folder / "run" / "records.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("equivalence") == 1
    assert kinds.index("finding") < kinds.index("equivalence") < kinds.index("plan")


def test_every_file_that_is_listed_exists_and_every_file_is_listed(runs: Runs, document: dict[str, Any]) -> None:
    folder = runs["full"].folder
    listed = [folder / path for path in document["files"]]
    assert all(path.stat().st_size > 0 for path in listed)
    assert set(listed) == set((folder / "run").iterdir())
    assert {path.name for path in listed} == TRAINING_FILES
    assert json.loads((folder / "run" / "plan.json").read_text())["plan"] == document["plan"]
    assert (folder / "run" / "command.txt").read_text() == f"microbatch {' '.join(COMMANDS['full'])}\n"


def test_progress_is_plain_lines_on_standard_error(runs: Runs, document: dict[str, Any]) -> None:
    assert "\x1b" not in runs["full"].errors
    assert "\r" not in runs["full"].errors
    tried = re.findall(r"^  size +(\d+)  (fits|out of memory) ", runs["full"].errors, re.MULTILINE)
    assert {int(size): label.replace(" ", "_") for size, label in tried} == sizes_of(document)


def test_without_json_standard_output_is_tables_sentences_and_paths(runs: Runs) -> None:
    ran = runs["plain"]
    assert ran.status == 0, ran.errors
    assert "tiny on cpu" in ran.output
    assert "Largest micro-batch tried: 3, the ceiling; it fits in 8 MiB." in ran.output
    assert "Checked with 3 samples: accumulation and the whole batch are equal. " in ran.output
    assert "`microbatch check train.py:workload` has the details." in ran.output
    assert "\x1b" not in ran.output
    paths = re.findall(r"^results/runs/\S+$", ran.output, re.MULTILINE)
    assert paths == ran.output.splitlines()[-len(paths) :]
    assert all((ran.folder / path).is_file() for path in paths)


def test_results_go_to_a_new_folder_named_after_workload_device_and_time(runs: Runs) -> None:
    (folder,) = (runs["plain"].folder / "results" / "runs").iterdir()
    assert re.fullmatch(r"tiny_cpu_\d{8}-\d{6}", folder.name)


def test_without_an_effective_batch_there_is_no_plan(runs: Runs) -> None:
    assert "Plan" not in runs["plain"].output
    assert list(runs["plain"].folder.glob("results/runs/*/plan.json")) == []
    kinds = [json.loads(line)["kind"] for line in records_of(runs["plain"].folder)]
    assert "trial" in kinds
    assert "plan" not in kinds


def records_of(folder: Path) -> list[str]:
    (path,) = folder.glob("results/runs/*/records.jsonl")
    return path.read_text().splitlines()


def test_a_ceiling_is_tried_and_no_larger_size(runs: Runs) -> None:
    records = [json.loads(line) for line in records_of(runs["plain"].folder)]
    assert {record["micro_batch_size"] for record in records if record["kind"] == "trial"} == {1, 2, 3}


def test_a_ceiling_of_target_is_the_share_of_one_replica(runs: Runs) -> None:
    document = json.loads(runs["shared"].output)
    assert document["largest_fit"] == max(sizes_of(document)) == 3
    assert document["smallest_misfit"] is None
    assert document["limited_by"] == "ceiling"
    assert document["comparison"] == []
    assert document["equivalence"] is None
    assert document["plan"]["equivalence"] is None
    assert [sum(sizes) for sizes in document["plan"]["replicas"]] == [3, 3]
    assert document["plan"]["data_parallel_size"] == 2


def test_a_quiet_command_says_nothing_on_standard_error(runs: Runs) -> None:
    assert runs["shared"].status == 0
    assert runs["shared"].errors == ""


def test_force_replaces_the_files_of_an_earlier_run_and_no_other(runs: Runs) -> None:
    folder = runs["shared"].folder / "occupied"
    assert '"workload": "tiny"' in (folder / "records.jsonl").read_text().splitlines()[0]
    assert not (folder / "summed_loss.csv").exists()
    assert (folder / "mine.txt").read_text() == "kept\n"


def test_where_nothing_fits_the_status_is_3_and_the_sentence_has_the_numbers(runs: Runs) -> None:
    assert runs["without room"].status == 3
    last = runs["without room"].errors.splitlines()[-1]
    assert re.fullmatch(
        r"error: size 1, the smallest, does not fit: it needs about [\d.]+ MiB, the limit is 4 MiB\. Raise .+", last
    )


def test_where_nothing_fits_the_object_has_no_size_and_no_plan(runs: Runs) -> None:
    document = json.loads(runs["without room"].output)
    assert document["largest_fit"] == 0
    assert document["smallest_misfit"] == 1
    assert document["plan"] is None
    assert sizes_of(document) == {1: "out_of_memory"}
    assert all((runs["without room"].folder / path).is_file() for path in document["files"])


def test_compare_gives_table_csv_and_figure(runs: Runs) -> None:
    ran = runs["compare"]
    assert ran.status == 0, ran.errors
    assert "Peak of one optimizer step over k micro-batches of 8 (capacity 8 MiB)" in ran.output
    assert re.findall(r"^ (\d+) +[\d.]+ [KM]iB", ran.output, re.MULTILINE) == ["1", "2", "4"]
    names = {path.name for path in (ran.folder / "run").iterdir()}
    assert {"summed_loss.csv", "summed_loss.png", "records.jsonl"} <= names
    assert set(ran.output.splitlines()[-len(names) :]) == {f"run/{name}" for name in names}
    assert len((ran.folder / "run" / "summed_loss.csv").read_text().splitlines()) > 3


def test_plot_draws_again_what_was_lost(runs: Runs, document: dict[str, Any]) -> None:
    folder = user_folder(runs["full"].folder / "again")
    shutil.copytree(runs["full"].folder / "run", folder / "run")
    kept = (folder / "run" / "memory.csv").read_bytes()
    for path in (folder / "run").iterdir():
        if path.name != "records.jsonl":
            path.unlink()
    ran = microbatch("plot", "run", folder=folder)
    assert ran.status == 0, ran.errors
    assert {f"run/{name}" for name in TRAINING_FILES} - set(ran.output.splitlines()) == {"run/records.jsonl"}
    assert all((folder / path).stat().st_size > 0 for path in ran.output.splitlines())
    assert (folder / "run" / "memory.csv").read_bytes() == kept


def test_devices_lists_the_cpu_and_says_why_a_gpu_cannot_be_used(runs: Runs) -> None:
    assert runs["devices"].status == 0
    assert re.search(r"^ cpu .* yes", runs["devices"].output, re.MULTILINE)
    assert re.search(r"^cpu: python .+, torch ", runs["devices"].output, re.MULTILINE)
    for device in json.loads(runs["devices as json"].output)["devices"]:
        if device["why_not"] is not None:
            assert f"{device['name']}: {device['why_not']}" in runs["devices"].output


def test_devices_as_json_have_facts_or_a_reason(runs: Runs) -> None:
    printed = json.loads(runs["devices as json"].output)
    assert printed["schema"] == 1
    assert printed["devices"][0]["name"] == "cpu"
    assert printed["devices"][0]["facts"]["available_bytes"] > 0
    assert all((device["facts"] is None) == (device["why_not"] is not None) for device in printed["devices"])


def test_an_interrupted_probe_keeps_its_records_and_leaves_no_worker(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "run")
    command = ("probe", "train.py:slow", "--device", "cpu", "--output", "stopped")
    lines = interrupted(folder, *command, after_lines=3)
    assert lines[-1].startswith("  size "), lines

    drawn = microbatch("plot", "stopped", folder=folder)
    assert drawn.status == 0, drawn.errors
    assert "stopped/memory.png" in drawn.output.splitlines()


def test_the_command_from_the_repository_and_by_its_path_is_the_same(tmp_path: Path) -> None:
    def both(*arguments: str) -> tuple[Ran, Ran]:
        return microbatch(*arguments, folder=ROOT, program="cli.py"), microbatch(*arguments, folder=tmp_path)

    here, elsewhere = both("plot", os.devnull)
    assert (here.status, here.output, here.errors) == (elsewhere.status, elsewhere.output, elsewhere.errors)
    assert here.status == 2


def test_evaluation_alone_finds_its_largest_batch_and_nothing_else(runs: Runs) -> None:
    document = json.loads(runs["evaluation"].output)
    found = document["evaluation"]
    sizes = sizes_of(found)

    assert runs["evaluation"].status == 0, runs["evaluation"].errors
    assert mistyped(found, {**SEARCH_OF, "trials": list, "search": dict}) == {}
    assert mistyped(found["search"], SEARCH) == {}
    assert sizes[found["largest_fit"]] == "fits"
    assert sizes[found["largest_fit"] + 1] == "out_of_memory"
    assert (document["largest_fit"], document["trials"], document["throughput"], document["plan"]) == (
        None,
        [],
        [],
        None,
    )
    written = {entry.name for entry in (runs["evaluation"].folder / "run").iterdir()}
    assert written == {"records.jsonl", "evaluation.png", "evaluation.csv", "command.txt"}


def test_both_are_sought_in_one_run_and_told_apart(runs: Runs, document: dict[str, Any]) -> None:
    both = runs["both"]

    assert both.status == 0, both.errors
    assert "Largest micro-batch tried: 3, the ceiling; it fits in 8 MiB." in both.output
    assert "Largest batch for evaluation tried: 3, the ceiling; it fits in 8 MiB." in both.output
    assert re.search(r"^  size      3  fits", both.errors, re.MULTILINE)
    assert re.search(r"^  eval      3  fits", both.errors, re.MULTILINE)
    assert document["evaluation"] is None


def test_where_no_evaluation_fits_it_exits_with_3_and_says_what_one_needs(runs: Runs) -> None:
    ran = runs["evaluation without room"]

    assert ran.status == 3, ran.errors
    assert re.match(
        r"error: batch size 1, the smallest, does not fit in evaluation: it needs about .* MiB, the limit is 4 MiB\.",
        ran.errors.splitlines()[-1],
    )


def test_the_figure_of_evaluation_is_drawn_again_from_its_records(runs: Runs, tmp_path: Path) -> None:
    shutil.copy(runs["evaluation"].folder / "run" / "records.jsonl", tmp_path)
    redrawn = microbatch("plot", str(tmp_path), folder=tmp_path)

    assert redrawn.status == 0, redrawn.errors
    for name in ("evaluation.csv", "evaluation.png"):
        assert (tmp_path / name).read_bytes() == (runs["evaluation"].folder / "run" / name).read_bytes()


def test_an_effective_batch_for_evaluation_alone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ran = microbatch("probe", "digits-cnn", "--eval", "--effective-batch", "8", folder=tmp_path)

    assert ran.status == 2
    assert "ask for both (--train --eval), or leave the effective batch out." in ran.errors
    assert list(tmp_path.iterdir()) == []

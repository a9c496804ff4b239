"""Writes the README's measured parts from the committed results: what commands printed, what the search
costs, how other finders compare, and what simulated cards predict.

python -m benchmarks.readme
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.finder_rows import from_csv, goals, number, summaries
from benchmarks.simulated_runs import SIMULATED
from profiler.units import format_bytes

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OUTPUT = ROOT / "results" / "digits-resnet_cpu" / "output.txt"
CHECK = ROOT / "results" / "digits-resnet_cpu" / "check.txt"
THREE_WAYS = ROOT / "results" / "three_ways_cpu" / "output.txt"
COSTS = ROOT / "results" / "search_cost_cpu" / "table.csv"
FINDERS = ROOT / "results" / "finders_cpu" / "table.csv"
PREDICTION = ROOT / "results" / "prediction" / "summary.csv"
# In the table's order.
ESTIMATORS = ("microbatch", "xmem", "dnnmem", "schedtune", "llmem")


def main() -> None:
    """Bring README.md up to date."""
    README.write_text(updated(README.read_text()))


def updated(readme: str) -> str:
    """`readme` with its measured parts as the results have them."""
    readme = _replaced(readme, "output", f"```\n{printed(OUTPUT.read_text())}\n```")
    readme = _replaced(readme, "check", f"```\n{checked(CHECK.read_text())}\n```")
    readme = _replaced(readme, "three ways", f"```\n{_plain(THREE_WAYS.read_text())}\n```")
    readme = _replaced(readme, "search cost", costs(COSTS.read_text()))
    readme = _replaced(readme, "finders", finders(FINDERS.read_text()))
    readme = _replaced(
        readme,
        "simulated",
        simulated({ROOT / folder / "plan.json": target for folder, (target, _) in SIMULATED.items()}),
    )
    return _replaced(readme, "prediction", prediction(PREDICTION.read_text()))


def printed(output: str) -> str:
    """What a probe printed from its answer on, without the table of sizes before it and the list of files after it."""
    lines = [line.rstrip() for line in output.splitlines()]
    start = next(index for index, line in enumerate(lines) if line.startswith("Largest micro-batch"))
    return "\n".join(line for line in lines[start:] if not line.startswith(("results/", "note:"))).strip()


def checked(output: str) -> str:
    """What a check printed, with its first table only, which decides."""
    title = re.compile(r".* samples in \w+$")
    blocks = re.split(r"\n(?=\S)", _plain(output))
    tables = [block for block in blocks if title.match(block.splitlines()[0])]
    return _plain("\n".join(block for block in blocks if block not in tables[1:]))


def _plain(output: str) -> str:
    """What a command printed, without the blanks that end its lines and with one empty line for several."""
    lines = "\n".join(line.rstrip() for line in output.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def costs(table: str) -> str:
    """A row a workload."""
    lines = [
        "| workload | answer | bisection's | search | trials | out of memory | bisection |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in csv.DictReader(table.splitlines()):
        search, bisection = (f"{float(row[f'{name}_over_least']):.1f} ×" for name in ("search", "bisection"))
        lines.append(
            f"| {row['workload']} | {row['largest_fit']} | {row['bisection_largest_fit']} | {search} | {row['search_trials']} | "
            f"{row['search_out_of_memory']} | {bisection} |"
        )
    return "\n".join(lines)


def finders(table: str) -> str:
    """A row a finder, then the goals that ours is held to."""
    rows = from_csv(table)
    lines = [
        "| finder | exact | answer / truth: median, worst | runs out of memory | no answer | seconds / least: median, worst | "
        "whole call: median | out of memory, at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in summaries(rows):
        events = "-" if found.most_out_of_memory is None else found.most_out_of_memory
        lines.append(
            f"| {found.finder} | {found.exact} of {found.workloads} | {number(found.median_ratio)}, {number(found.worst_ratio)} | "
            f"{found.too_large} | {found.crashed} | {number(found.median_over_least)} ×, {number(found.worst_over_least)} × | "
            f"{number(found.median_whole_over_least)} × | {events} |"
        )
    held = [f"- {'reached' if goal.reached else 'missed'}: {goal.text}: {goal.measured}" for goal in goals(rows)]
    return "\n".join([*lines, "", *held])


def simulated(plans: Mapping[Path, str]) -> str:
    """A row a plan of a target: what may be used, the largest micro-batch, the plan and its peak."""
    lines = [
        "| workload | device | memory | largest micro-batch | accumulation steps | micro-batches | predicted peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for path, target in plans.items():
        document = json.loads(path.read_text())
        assert document["predicted"], f"{path} was measured"
        plan = document["plan"]
        sizes = plan["micro_batch_sizes"]
        split = " + ".join(f"{sizes.count(size)} × {size}" for size in dict.fromkeys(sizes))
        lines.append(
            f"| `{target}` | {document['device']} | {format_bytes(document['capacity_bytes'])} | {document['largest_fit']} | "
            f"{plan['accumulation_steps']} | {split} | {format_bytes(plan['peak_bytes'])} |"
        )
    return "\n".join(lines)


def prediction(summary: str) -> str:
    """A row an estimator: its errors over all runs and over those of models that nothing was fitted on."""
    rows = {
        (row["part"], row["estimator"]): row for row in csv.DictReader(summary.splitlines()) if row["model"] == "all"
    }
    lines = [
        "| estimator | error: median, 90th percentile | of other models | out of memory judged wrong | of other models |",
        "|---|---|---|---|---|",
    ]
    for estimator in ESTIMATORS:
        every, check = rows["all", estimator], rows["check", estimator]
        errors = (f"{float(of['median_error']):.1%}, {float(of['high_error']):.1%}" for of in (every, check))
        judged = (f"{of['wrong']} of {of['judged']}" for of in (every, check))
        lines.append(f"| {estimator} | {next(errors)} | {next(errors)} | {next(judged)} | {next(judged)} |")
    return "\n".join(lines)


def _replaced(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    assert begin in text, f"README.md has no {begin}"
    assert end in text, f"README.md has no {end}"
    return re.sub(rf"(?s){re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{content}\n{end}", text)


if __name__ == "__main__":
    main()

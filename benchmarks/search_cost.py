"""What the search costs, as a multiple of the least possible: one trial at the answer and one at the answer + 1.

Every workload is searched, then the certifying pair is run again three times (its median is the least possible), then the
maximum is found by doubling and bisection, which trusts nothing but trials; all in fresh workers of one run, on the CPU.
Then two sizes, the answer and half of it, are dry runs on a simulated card: what the small sizes of a search would have to
cost more than, for a dry run to be worth its while as the first guess.
Writes results/search_cost_cpu/: table.csv, environment.json, command.txt.

    python -m benchmarks.search_cost [--memory-limit 512MiB] [TARGET ...]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.csv_rows import to_csv
from profiler.events import unobserved
from profiler.finder import find_largest
from profiler.opening import open_prober
from profiler.options import Options
from profiler.outcomes import Finding
from profiler.prober import Prober

TARGETS = (
    *("digits-cnn", "digits-resnet", "text-gpt"),
    *("benchmarks/workloads.py:wide_mlp", "benchmarks/workloads.py:recommender"),
)
REPEATS = 3
FOLDER = Path("results/search_cost_cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One workload: answers of both searches, their seconds, trials and out-of-memory events, and the least possible.

    small_sizes_seconds: of the search, its trials below half of the answer. dry_runs_seconds: of two dry runs.
    """

    workload: str
    capacity_bytes: int
    largest_fit: int
    bisection_largest_fit: int
    least_seconds: float
    search_seconds: float
    search_over_least: float
    search_trials: int
    search_out_of_memory: int
    bisection_seconds: float
    bisection_over_least: float
    bisection_trials: int
    bisection_out_of_memory: int
    bisection_over_search: float
    small_sizes_seconds: float
    dry_runs_seconds: float
    sizes_tried: str


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET")
    parser.add_argument("--memory-limit", default="512MiB")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    costs: list[Cost] = []
    environment: dict[str, str] = {}
    for target in arguments.targets:
        cost, environment = measure(target, arguments.memory_limit)
        costs.append(cost)
        print(
            f"{cost.workload}: {cost.largest_fit} (bisection {cost.bisection_largest_fit}); least {cost.least_seconds:.2f} s, "
            f"search {cost.search_over_least:.2f} x, {cost.search_trials} trials, {cost.search_out_of_memory} out of memory; "
            f"bisection {cost.bisection_over_least:.2f} x, {cost.bisection_trials} trials; small sizes "
            f"{cost.small_sizes_seconds:.2f} s, two dry runs {cost.dry_runs_seconds:.2f} s; tried {cost.sizes_tried}",
            flush=True,
        )
    write(costs, environment, arguments.output, arguments.memory_limit)


def measure(target: str, memory_limit: str) -> tuple[Cost, dict[str, str]]:
    """The cost of one workload's search, and the environment it was measured in."""
    options = Options(device="cpu", memory_limit=memory_limit)
    with open_prober(target, options, unobserved) as (prober, run):
        start = time.monotonic()
        finding = find_largest(prober)
        search_seconds = time.monotonic() - start
        assert finding.smallest_misfit is not None, f"{target} fits at every size that was tried"
        pairs = [_pair_seconds(prober, finding.largest_fit, finding.smallest_misfit) for _ in range(REPEATS)]
        least = median(pairs)
        prober.trials.clear()
        start = time.monotonic()
        bisected = _bisect(prober)
        bisection_seconds = time.monotonic() - start
        cost = Cost(
            workload=run.workload,
            capacity_bytes=run.capacity_bytes,
            largest_fit=finding.largest_fit,
            bisection_largest_fit=bisected,
            least_seconds=least,
            search_seconds=search_seconds,
            search_over_least=search_seconds / least,
            search_trials=len(finding.trials),
            search_out_of_memory=_failures(finding),
            bisection_seconds=bisection_seconds,
            bisection_over_least=bisection_seconds / least,
            bisection_trials=len(prober.trials),
            bisection_out_of_memory=sum(not trial.fits for trial in prober.trials.values()),
            bisection_over_search=bisection_seconds / search_seconds,
            small_sizes_seconds=sum(
                trial.outcome.seconds for trial in finding.trials if 2 * trial.micro_batch_size < finding.largest_fit
            ),
            dry_runs_seconds=_dry_seconds(target, (finding.largest_fit, finding.largest_fit // 2)),
            sizes_tried=" ".join(f"{trial.micro_batch_size}{'' if trial.fits else '!'}" for trial in finding.trials),
        )
        return cost, dict(run.environment)


def _pair_seconds(prober: Prober, largest_fit: int, smallest_misfit: int) -> float:
    """Seconds of the two trials that certify the answer, both run anew."""
    for size in (largest_fit, smallest_misfit):
        prober.trials.pop(size, None)
    start = time.monotonic()
    for size in (largest_fit, smallest_misfit):
        prober.try_size(size, "the certifying pair")
    return time.monotonic() - start


def _dry_seconds(target: str, sizes: tuple[int, ...]) -> float:
    """Seconds of dry runs of `sizes`, once a worker can be forked."""
    with open_prober(target, Options(device="sim:80GiB"), unobserved) as (prober, _):
        start = time.monotonic()
        for size in sizes:
            prober.try_size(size, "a dry run")
        return time.monotonic() - start


def _bisect(prober: Prober) -> int:
    """The largest size that fits, by doubling until one fails and halving the gap."""
    low, high = 0, 1
    while prober.try_size(high, "doubling").fits:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if prober.try_size(middle, "bisection").fits else (low, middle)
    return low


def _failures(finding: Finding) -> int:
    return sum(not trial.fits for trial in finding.trials)


def write(costs: list[Cost], environment: dict[str, str], folder: Path, memory_limit: str) -> None:
    """The table as CSV, with environment and command beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(to_csv(Cost, costs))
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    (folder / "command.txt").write_text(f"python -m benchmarks.search_cost --memory-limit {memory_limit}\n")


if __name__ == "__main__":
    main()

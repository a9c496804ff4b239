from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from rich.console import Console
from sample_checks import equal_check, unequal_check
from sample_records import SHAPES, evaluated, evaluated_alone, fast_small, gpu, nothing_fits, resnet
from sample_soaks import on_a_gpu, on_the_cpu, out_of_memory

from profiler.commands.devices import cards_table, devices_table
from profiler.commands.progress import describe
from profiler.commands.tables import (
    comparison_table,
    evaluation_table,
    finding_lines,
    plan_lines,
    print_lines,
    sizes_table,
)
from profiler.devices import DeviceFacts, Surveyed
from profiler.events import Began, Checked, Compared, Event, Found, Noted, Planned, SizeTried, SoakEnded, Started, Timed
from profiler.outcomes import Finding, Fits, Refused, Trial
from profiler.plan import AccumulationPlan
from profiler.records import Records
from profiler.report import Report
from profiler.simulation.cards import catalogue
from profiler.soak import Soak, SoakFailure
from profiler.units import GIB, MIB

WIDTH = 100
ALL = {**SHAPES, "nothing_fits": nothing_fits}


def console() -> Console:
    return Console(file=io.StringIO(), width=WIDTH, highlight=False, soft_wrap=True, color_system=None)


def printed(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def report_of(records: Records) -> Report:
    return Report(
        run=records.run,
        finding=records.finding,
        evaluation=records.evaluation,
        throughput=records.throughput,
        comparison=records.comparison,
        plan=records.plan,
    )


def found(records: Records) -> Finding:
    assert records.finding is not None
    return records.finding


def lines(of: Iterable[str]) -> str:
    to = console()
    print_lines(to, of)
    return printed(to)


@pytest.mark.parametrize("name", ALL)
def test_sizes(name: str, golden: Callable[[str], None]) -> None:
    to = console()
    sizes_table(report_of(ALL[name]())).print(to)
    golden(printed(to))


def test_sizes_with_energy(golden: Callable[[str], None]) -> None:
    records = gpu()
    timed = [replace(each, joules_per_sample=0.5 / each.micro_batch_size + 0.08) for each in records.throughput[:-1]]
    to = console()
    sizes_table(report_of(replace(records, throughput=(*timed, records.throughput[-1])))).print(to)
    golden(printed(to))


@pytest.mark.parametrize("name", [name for name, make in ALL.items() if make().comparison])
def test_comparison(name: str, golden: Callable[[str], None]) -> None:
    records, to = ALL[name](), console()
    comparison_table(records.comparison, records.run.capacity_bytes).print(to)
    golden(printed(to))


def test_what_was_found(golden: Callable[[str], None]) -> None:
    golden("".join(f"{name}: {lines(finding_lines(found(make())))}\n" for name, make in ALL.items()))


def test_what_was_found_for_evaluation(golden: Callable[[str], None]) -> None:
    shapes = {"edge": evaluated(), "ceiling": evaluated_alone()}
    to = console()
    for name, records in shapes.items():
        assert records.evaluation is not None
        evaluation_table(report_of(records)).print(to)
        print_lines(to, (f"{name}: {line}" for line in finding_lines(records.evaluation)))
    golden(printed(to))


@pytest.mark.parametrize("message", ["IndexError", "IndexError: index 50 is out of range."])
def test_a_size_that_cannot_be_run_is_said_with_the_reason_and_what_the_trial_said(message: str) -> None:
    refused = Refused(phase="batch", message=message, evidence="the batch maker has no more", seconds=1.0)
    finding = Finding(
        largest_fit=49,
        smallest_misfit=50,
        limited_by="refusal",
        capacity_bytes=GIB,
        trials=(
            Trial(micro_batch_size=49, outcome=Fits(peak_bytes=GIB // 2, seconds=1.0)),
            Trial(micro_batch_size=50, outcome=refused),
        ),
    )

    (line,) = finding_lines(finding)
    assert line.endswith(f"; 50 cannot be run: the batch maker has no more ({message.rstrip('.')}).")


PLANS = {
    "sizes of two kinds": resnet().plan,
    "equal micro-batches": fast_small().plan,
    "one micro-batch": AccumulationPlan(
        effective_batch_size=32, replicas=((32,),), reason="It is the only one.", peak_bytes=2**28, verified_steps=5
    ),
    "many micro-batches": AccumulationPlan(
        effective_batch_size=77,
        replicas=((6,) * 7 + (5,) * 7,),
        reason="It has the least time.",
        notes=("77 has no divisor near the 6 that leave the headroom.", "A second note."),
        peak_bytes=2**28,
        step_seconds=0.0123,
        verified_steps=5,
    ),
    "replicas": AccumulationPlan(
        effective_batch_size=1001,
        replicas=((126, 125), (125, 125), (125, 125), (125, 125)),
        reason="It has the least time.",
        peak_bytes=500 * 2**20,
        step_seconds=1.5,
        verified_steps=5,
    ),
    "not run yet": AccumulationPlan(effective_batch_size=8, replicas=((4, 4),), reason="It has the least time."),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan(name: str, golden: Callable[[str], None]) -> None:
    plan = PLANS[name]
    assert plan is not None
    golden(lines(plan_lines(plan, resnet().run)))


SOAKS = {
    "on the cpu": on_the_cpu(),
    "on a gpu": on_a_gpu(reserved=70.0),
    "same peak": replace(on_the_cpu(), verified_peak_bytes=106 * 2**20),
    "nothing known": Soak(micro_batch_sizes=(1,), steps=3, steps_run=3, seconds=1.0, peak_bytes=2**20),
    "failed": out_of_memory(),
    "again": replace(
        on_a_gpu(), again=replace(on_a_gpu(reserved=62.0), environment="PYTORCH_ALLOC_CONF=expandable_segments:True")
    ),
    "died": replace(
        out_of_memory(), points=(), peak_bytes=None, failure=SoakFailure(step=None, phase="worker", message="killed")
    ),
}


@pytest.mark.parametrize("name", ["on the cpu", "on a gpu", "same peak", "nothing known"])
def test_a_plan_that_was_soaked(name: str, golden: Callable[[str], None]) -> None:
    plan, run = fast_small().plan, (gpu() if name == "on a gpu" else resnet()).run
    assert plan is not None
    golden(lines(plan_lines(plan, run, SOAKS[name])))


def test_soaks_while_they_happen(golden: Callable[[str], None]) -> None:
    golden(lines(describe(SoakEnded(soak=soak), 80 * GIB) or "nothing" for soak in SOAKS.values()))


def test_devices(golden: Callable[[str], None]) -> None:
    facts = DeviceFacts(
        description="NVIDIA H100 80GB HBM3",
        total_bytes=round(79.1 * GIB),
        available_bytes=round(78.4 * GIB),
        environment={"torch": "2.13.0"},
    )
    to = console()
    devices_table(
        (
            Surveyed(name="cpu", facts=facts, why_not=None, energy_why_not="it counts none."),
            Surveyed(name="cuda:0", facts=facts, why_not=None, energy_why_not=None),
            Surveyed(name="cuda:1", facts=None, why_not="the driver is too old.", energy_why_not=None),
        )
    ).print(to)
    golden(printed(to))


def events(records: Records) -> list[Event]:
    """A probe as it happened, in one list."""
    assert records.finding is not None
    return [
        Started(what="loading the workload", why="to see what it is"),
        Began(run=records.run),
        *(SizeTried(trial=trial) for trial in records.trials),
        Found(finding=records.finding, trials=6, seconds=12.5),
        *(Timed(throughput=timed) for timed in records.throughput),
        *(
            [Checked(equivalence=equal_check() if records.run.device == "cpu" else unequal_check())]
            * bool(records.plan)
        ),
        Noted(text="timing varies."),
        *([Planned(plan=records.plan)] if records.plan else []),
        *(Compared(trial=trial) for trial in records.comparison),
    ]


def test_progress_of_evaluation(golden: Callable[[str], None]) -> None:
    records = evaluated()
    assert records.evaluation is not None
    happened: list[Event] = [
        *(SizeTried(trial=trial) for trial in records.evaluations),
        Found(finding=records.evaluation, trials=6, seconds=12.5),
    ]
    told = [describe(event, records.run.capacity_bytes) for event in happened]
    golden(lines(line for line in told if line is not None))


@pytest.mark.parametrize("name", ["resnet", "gpu", "ceiling", "nothing_fits"])
def test_progress(name: str, golden: Callable[[str], None]) -> None:
    records = ALL[name]()
    told = [describe(event, records.run.capacity_bytes) for event in events(records)]
    golden(lines(line for line in told if line is not None))


def simulated() -> Records:
    """A probe of a card that is not here: the least capacity of each size is known, and no time."""
    records = gpu()
    run = replace(records.run, device="sim:rtx4090")

    def predicted(trial: Trial) -> Trial:
        if not isinstance(trial.outcome, Fits):
            return trial
        return replace(trial, outcome=replace(trial.outcome, least_capacity_bytes=trial.outcome.peak_bytes - 2 * MIB))

    trials = tuple(map(predicted, records.trials))
    finding = replace(found(records), trials=trials)
    return replace(records, run=run, finding=finding, throughput=())


def test_a_simulated_card(golden: Callable[[str], None]) -> None:
    records, to = simulated(), console()
    sizes_table(report_of(records)).print(to)
    print_lines(to, finding_lines(found(records), simulated=True))
    if records.plan is not None:
        print_lines(to, plan_lines(records.plan, records.run))
    comparison_table(records.comparison, records.run.capacity_bytes, simulated=True).print(to)
    golden(printed(to))


def test_cards_that_can_be_simulated(golden: Callable[[str], None]) -> None:
    to = console()
    cards_table(tuple(catalogue()[name] for name in ("rtx4090", "a100-80gb"))).print(to)
    golden(printed(to))

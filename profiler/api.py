"""What people import: probe a workload, just find the plan, or check that accumulation is exact."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from profiler.comparison import DEFAULT_MOST_STEPS, check_comparison, compare
from profiler.equivalence import DEFAULT_CHECKED_SAMPLES, Equivalence
from profiler.errors import MicrobatchError, NothingFits, TrialError, UsageError
from profiler.events import Event, Found, Noted, Observer, SoakEnded, unobserved
from profiler.finder import climb, find_largest, note_falls, note_repeats
from profiler.limits import Limits
from profiler.opening import open_prober
from profiler.options import DEFAULT_HEADROOM, Options
from profiler.outcomes import Finding, Purpose, Trial
from profiler.plan import AccumulationPlan, check_effective_batch
from profiler.planner import Goal, make_plan, note_spread, time_ladder
from profiler.prober import Prober
from profiler.records import Records
from profiler.replay import Replay
from profiler.report import Comparison, Report
from profiler.simulation.cards import is_simulated
from profiler.smallest import why_nothing_fits
from profiler.soak import Soak
from profiler.units import format_bytes

if TYPE_CHECKING:
    from profiler.workload import Workload

# A probe checks on few samples, split as 3 + 1 and 4 x 1.
PROBED_SAMPLES = 4
_NOT_CHECKED = "not checked: "
_NOT_COMPARED = "the strategies could not be compared: "


def find_accumulation_plan(
    workload: Workload | str,
    effective_batch_size: int,
    *,
    device: str | None = None,
    memory_limit: int | str | None = None,
    headroom: float = DEFAULT_HEADROOM,
    data_parallel_size: int = 1,
    equal: bool = False,
    multiple_of: int = 1,
    ceiling: int | Literal["target"] | None = "target",
    soak_steps: int | None = None,
    isolation: Literal["process", "none"] = "process",
    limits: Limits | None = None,
    check: bool = True,
    observe: Observer = unobserved,
) -> AccumulationPlan:
    """Which micro-batches reach `effective_batch_size` exactly, fit the device, and take the least time; proved by a run.

    workload: a Workload, or a target as on the command line ("digits-resnet", "train.py:workload").
    The other arguments are those of `Options`. `ceiling` is "target" here: no size beyond this replica's share of the
    effective batch is tried, since no plan could use it. check: whether to compare accumulation with the whole batch on a
    few samples, for the plan's `equivalence`. observe: called with each of `profiler.events` as it happens.

    Raises UsageError for an argument out of range, WorkloadError for a bug in the workload, NothingFits where no plan
    exists, DeviceUnavailable where the device cannot be used, TrialError for a trial that crashed or hung.
    """
    options = Options(
        effective_batch_size=effective_batch_size,
        device=device,
        memory_limit=memory_limit,
        headroom=headroom,
        data_parallel_size=data_parallel_size,
        ceiling=ceiling,
        equal=equal,
        multiple_of=multiple_of,
        soak_steps=soak_steps,
        isolation=isolation,
        limits=limits or Limits(),
    )
    report = probe(workload, options, comparison=False, check=check, observe=observe)
    if report.plan is None:
        raise NothingFits(report.notes[-1])
    return report.plan


@dataclass(slots=True, kw_only=True)
class _Heard:
    """What a probe's events said that its report says too."""

    notes: list[str] = field(default_factory=list)
    searches: dict[Purpose, Found] = field(default_factory=dict)
    soak: Soak | None = None

    def hear(self, event: Event) -> None:
        """Remember what `event` says."""
        if isinstance(event, Noted):
            self.notes.append(event.text)
        elif isinstance(event, SoakEnded):
            self.soak = event.soak
        elif isinstance(event, Found):
            self.searches[event.finding.purpose] = event

    def seconds(self, purpose: Purpose) -> float:
        """How long the search for `purpose` took; 0 where there was none."""
        return self.searches[purpose].seconds if purpose in self.searches else 0.0

    def trials(self, purpose: Purpose) -> int:
        """How many trials it needed; likewise."""
        return self.searches[purpose].trials if purpose in self.searches else 0


def probe(
    workload: Workload | str,
    options: Options | None = None,
    *,
    comparison: bool = True,
    check: bool = True,
    resume: Records | None = None,
    observe: Observer = unobserved,
) -> Report:
    """Everything: the largest micro-batch, the curve of memory and throughput, the plan, and the three strategies.

    With `Options.evaluate` also the largest batch for evaluation, and with `train=False` that alone: no timing, comparison,
    check or plan is made. Evaluation is what a loop does between two optimizer steps: `model.eval()` under `torch.no_grad()`,
    with the workload's loss and precision, while the optimizer's state and the last step's gradients are alive. A size that
    fits there also fits without them. Of two batches one follows the other; outputs that a loop collects are not counted.

    comparison: whether to compare strategies at the plan's micro-batch. check: whether to compare accumulation with the
    whole batch on a few samples; a note says why where that fails. Without an effective batch there is no plan.
    Where nothing fits, or no plan exists, the report says so in its last note and its plan is None.

    resume: what an interrupted probe of the same workload with the same options recorded (`profiler.records.read_records`):
    it is taken over, nothing of it runs again, and `observe` is told only what is new. The capacity is the recorded one.

    Raises as `find_accumulation_plan` does, but for NothingFits; UsageError also where the records are those of another
    workload, environment or choice. A live workload is known by its name alone.
    """
    options = options or Options()
    replay = Replay.of(resume)
    heard = _Heard()

    def watch(event: Event) -> None:
        heard.hear(event)
        if not replay.covers(event):
            observe(event)

    with open_prober(workload, options, watch, replay=replay) as (prober, run):
        finding = find_largest(prober, ceiling=options.largest_size) if options.train else None
        evaluation = _evaluated(prober, options, watch) if options.evaluate else None
        note_repeats(prober, options.effective_batch_size, finding, evaluation)
        plan: AccumulationPlan | None = None
        equivalence: Equivalence | None = None
        rows: tuple[Trial, ...] = ()
        if finding is not None and finding.largest_fit == 0:
            watch(Noted(text=why_nothing_fits(prober, finding)))
        elif finding is not None:
            climb(prober, finding.largest_fit)
            time_ladder(prober, finding.largest_fit)
            if check and prober.computes:
                equivalence = _checked(prober, finding.largest_fit, options.effective_batch_size, watch)
            planned = _plan(prober, finding, options, equivalence)
            plan = planned if isinstance(planned, AccumulationPlan) else None
            note_spread(prober)
            if comparison:
                size = plan.micro_batch_sizes[0] if plan is not None else _some_size(prober, finding.largest_fit)
                rows = _compared(prober, size, watch)
            if isinstance(planned, str):
                watch(Noted(text=planned))
        return Report(
            run=run,
            finding=replace(finding, trials=tuple(prober.trials.values())) if finding is not None else None,
            evaluation=evaluation,
            throughput=tuple(prober.throughputs[size] for size in sorted(prober.throughputs)),
            comparison=rows,
            equivalence=equivalence,
            plan=plan,
            soak=heard.soak,
            search_seconds=heard.seconds(Purpose.TRAINING),
            search_trials=heard.trials(Purpose.TRAINING),
            evaluation_search_seconds=heard.seconds(Purpose.EVALUATION),
            evaluation_search_trials=heard.trials(Purpose.EVALUATION),
            notes=tuple(heard.notes),
        )


def _evaluated(prober: Prober, options: Options, observe: Observer) -> Finding:
    """The largest batch for evaluation; where none fits, a note says what one would need."""
    evaluation = find_largest(prober, ceiling=options.largest_size, purpose=Purpose.EVALUATION)
    if evaluation.largest_fit == 0:
        observe(Noted(text=why_nothing_fits(prober, evaluation)))
    else:
        note_falls(prober, evaluation.largest_fit, Purpose.EVALUATION)
    return evaluation


def compare_strategies(
    workload: Workload | str,
    micro_batch_size: int,
    options: Options | None = None,
    *,
    most_steps: int = DEFAULT_MOST_STEPS,
    observe: Observer = unobserved,
) -> Comparison:
    """The peaks of 1, 2, 4, ... micro-batches as whole batch, summed loss and accumulation; see `profiler.comparison`.

    Raises as `find_accumulation_plan` does.
    """
    check_comparison(micro_batch_size, most_steps)
    notes: list[str] = []

    def watch(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Noted) else [])
        observe(event)

    with open_prober(workload, options or Options(), watch) as (prober, run):
        if not prober.try_size(micro_batch_size, "the micro-batch to compare at").fits:
            raise NothingFits(
                f"a micro-batch of {micro_batch_size} does not fit in {format_bytes(prober.capacity_bytes)}, so there is "
                "nothing to compare: use a smaller one, or raise the limit."
            )
        rows = compare(prober, micro_batch_size, most_steps=most_steps)
        return Comparison(run=run, trials=tuple(prober.trials.values()), comparison=rows, notes=tuple(notes))


def check_equivalence(
    workload: Workload | str,
    effective_batch_size: int = DEFAULT_CHECKED_SAMPLES,
    options: Options | None = None,
    *,
    observe: Observer = unobserved,
) -> Equivalence:
    """Whether accumulation gives the gradient of the whole batch for this model and its loss, and if not, why not.

    effective_batch_size: the samples that are checked, 2 or more; they are run as a whole batch, and split in several ways
    as a summed loss and accumulated, in fp64 and in the precision that the workload trains in. options: device, isolation,
    time limits and target options count here, and on a GPU the memory limit. A simulated card computes nothing: there the
    check runs on the CPU, and a note says so.

    Raises UsageError for fewer than 2 samples, NothingFits where they do not fit as a whole batch, and else as
    `find_accumulation_plan` does. That accumulation is not equal is a result, and raises nothing.
    """
    _check_samples(effective_batch_size)
    options = options or Options()
    notes: list[str] = []
    if is_simulated(options.device):
        notes.append(f"{options.device} computes nothing: this was checked on the CPU.")
        options = replace(options, device="cpu", assume=())

    def watch(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Noted) else [])
        observe(event)

    with open_prober(workload, options, watch, sizing=False) as (prober, _):
        equivalence = prober.check(effective_batch_size, thorough=True)
    return replace(equivalence, notes=(*notes, *equivalence.notes))


def _check_samples(effective_batch_size: int) -> None:
    check_effective_batch(effective_batch_size, 1)
    if effective_batch_size < 2:
        raise UsageError(
            f"the effective batch is {effective_batch_size}: one sample cannot be split into micro-batches, so there is "
            "nothing to check. Use 2 or more."
        )


def _checked(
    prober: Prober, largest_fit: int, effective_batch_size: int | None, observe: Observer
) -> Equivalence | None:
    """What a few samples say; None, with a note, where they could not be checked, which is no failure of a probe."""
    # Parts of the smallest size that runs, two at least.
    size = max(2 * prober.smallest_size, min(PROBED_SAMPLES, largest_fit))
    if effective_batch_size is not None and effective_batch_size >= 2:
        size = min(size, max(2, effective_batch_size))
    recorded = prober.replay.note(_NOT_CHECKED)
    if recorded is not None:
        observe(Noted(text=recorded))
        return None
    try:
        return prober.check(size, thorough=False)
    except MicrobatchError as error:
        observe(Noted(text=f"{_NOT_CHECKED}{error}"))
        return None


def _some_size(prober: Prober, largest_fit: int) -> int:
    """A micro-batch of which several fit as one batch."""
    return max(prober.smallest_size, largest_fit // 8 // prober.multiple_of * prober.multiple_of)


def _compared(prober: Prober, size: int, observe: Observer) -> tuple[Trial, ...]:
    """The comparison's rows; what is found already is not lost where one of its trials crashes or hangs."""
    recorded = prober.replay.note(_NOT_COMPARED)
    if recorded is not None:
        prober.replay.comparison.clear()
        observe(Noted(text=recorded))
        return ()
    try:
        return compare(prober, size)
    except TrialError as error:
        observe(Noted(text=f"{_NOT_COMPARED}{error}"))
        return ()


def _plan(
    prober: Prober, finding: Finding, options: Options, equivalence: Equivalence | None
) -> AccumulationPlan | str | None:
    """The plan for the effective batch, or why there is none to be had; None where no effective batch was given."""
    if options.effective_batch_size is None:
        return None
    goal = Goal(
        effective_batch_size=options.effective_batch_size,
        data_parallel_size=options.data_parallel_size,
        headroom=options.headroom,
        equal=options.equal,
        prefer_equal=prober.compiled,
        equivalence=equivalence,
        soak_steps=options.soak_steps,
    )
    try:
        return make_plan(prober, finding, goal)
    except NothingFits as error:
        return str(error)

"""From trials to a plan that was run: which splits to time, which to choose, and the proof."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

from profiler.curve import line_through_last
from profiler.endurance import Unproved, endured
from profiler.equivalence import Decomposition, Equivalence
from profiler.errors import NothingFits
from profiler.events import Noted, Planned, Verified
from profiler.finder import ladder
from profiler.limits import VERIFIED_STEPS
from profiler.multiples import try_size
from profiler.outcomes import Finding, Fits, OutOfMemory, Refused, Throughput
from profiler.plan import (
    AccumulationPlan,
    Candidate,
    better_targets,
    choose,
    equal_steps,
    least_steps,
    split,
)
from profiler.prober import Prober
from profiler.trial import Completed
from profiler.units import format_bytes, format_seconds
from profiler.workers.protocol import TimedOut

# Splits whose time, estimated from the ladder, is within this of the best are worth measuring.
WORTH_TIMING = 0.10
MOST_TIMED = 4
WIDE_SPREAD = 0.10
# A simulated card repeats itself from the second optimizer step on, and with so many micro-batches of a size.
SIMULATED_STEPS = 3
TELLING = 3
# By less than this factor a plan's step and the sum of its parts may differ without a word.
DISAGREEMENT = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the plan must reach, and what it must leave.

    headroom: the share of the capacity that stays unused. equal: only equal micro-batches. prefer_equal: among splits of
    the same speed, equal micro-batches first. equivalence: what a check said of accumulation, for the plan to pass on.
    soak_steps: how many optimizer steps the plan must last on batches as training takes them; None asks for no soak.
    """

    effective_batch_size: int
    data_parallel_size: int
    headroom: float
    equal: bool
    prefer_equal: bool
    equivalence: Equivalence | None = None
    soak_steps: int | None = None


def time_ladder(prober: Prober, largest: int) -> None:
    """Time the sizes of the ladder up to `largest`."""
    for size in ladder(largest, prober.smallest_size):
        prober.time(size, "a point of the curve")


def note_spread(prober: Prober) -> None:
    """Say so where the timing of a size varied by more than WIDE_SPREAD, and what to do."""
    wide = [t for t in prober.throughputs.values() if t.spread > WIDE_SPREAD]
    if wide:
        worst = max(wide, key=lambda throughput: throughput.spread)
        prober.observe(
            Noted(
                text=f"timing varies: the middle half of the windows spreads over {worst.spread:.0%} at micro-batch size "
                f"{worst.micro_batch_size}, and over more than {WIDE_SPREAD:.0%} at {len(wide)} of "
                f"{len(prober.throughputs)} sizes. Stop what else is running and probe again before trusting small "
                "differences."
            )
        )


def make_plan(prober: Prober, finding: Finding, goal: Goal) -> AccumulationPlan:
    """Choose the fastest split that leaves the headroom, run it, and fall back to the next one while it fails.

    After a soak that failed only smaller micro-batches are tried, with twice the accumulation steps where none is left.

    Raises NothingFits where no split leaves the headroom, or none that does survives being run.
    """
    safe_bytes = int(prober.capacity_bytes * (1 - goal.headroom))
    safe_size = _safe_size(prober, finding, safe_bytes)
    candidates = _candidates(prober, _possible_steps(prober, goal, safe_size), goal, safe_bytes)
    failures: list[Unproved] = []
    while candidates:
        chosen, reason = choose(candidates, safe_bytes=safe_bytes, prefer_equal=goal.prefer_equal)
        plan = AccumulationPlan(
            effective_batch_size=goal.effective_batch_size,
            replicas=chosen.replicas,
            reason=reason,
            notes=(
                *(failure.said for failure in failures),
                *_remedies(failures),
                *_advice(goal, chosen, safe_size),
                *_on_weights(goal.equivalence),
            ),
            predicted_peak_bytes=chosen.peak_bytes,
            predicted_step_seconds=chosen.step_seconds,
            equivalence=goal.equivalence.verdict if goal.equivalence is not None else None,
        )
        proved = _verified(prober, plan)
        if goal.soak_steps is not None and isinstance(proved, AccumulationPlan):
            proved = endured(prober, proved, goal.soak_steps, goal.headroom)
        if isinstance(proved, AccumulationPlan):
            for remedy in _remedies(failures):
                prober.observe(Noted(text=remedy))
            prober.observe(Planned(plan=proved))
            return proved
        prober.observe(Noted(text=proved.said))
        failures.append(proved)
        candidates = [candidate for candidate in candidates if candidate is not chosen]
        if proved.soaked:
            candidates = _smaller(prober, candidates, chosen, goal, safe_bytes)
    raise NothingFits(_why_no_plan(goal, failures, most_steps=_most_steps(prober, goal)))


def _remedies(failures: list[Unproved]) -> list[str]:
    """What to do about the failures, each advice once."""
    return list(dict.fromkeys(failure.advice for failure in failures if failure.advice))


def _why_no_plan(goal: Goal, failures: list[Unproved], *, most_steps: int) -> str:
    """The last failure and how many went before it, each with a note of its own; and what would help."""
    last, others = failures[-1], len(failures) - 1
    said = [f"no plan for an effective batch of {goal.effective_batch_size} survived being run.", last.said]
    if others:
        said.append(f"{others} other {'plan' if others == 1 else 'plans'} failed before it.")
    # More headroom leads to smaller micro-batches, and there are none.
    headroom = [] if any(len(failure.sizes) == most_steps for failure in failures) else ["--headroom"]
    time_limit = [] if last.soaked else ["the time limit"]
    return " ".join(
        [*said, *_remedies(failures), f"Raise {' or '.join([*headroom, 'the memory limit', *time_limit])}."]
    )


def _smaller(
    prober: Prober, candidates: list[Candidate], chosen: Candidate, goal: Goal, safe_bytes: int
) -> list[Candidate]:
    """Those of smaller micro-batches than `chosen`, else one of twice the steps or the next more; none after the smallest."""
    size, steps = chosen.replicas[0][0], len(chosen.replicas[0])
    left = [candidate for candidate in candidates if candidate.replicas[0][0] < size]
    most = _most_steps(prober, goal)
    if left or steps == most:
        return left
    more = min(2 * steps, most)
    if goal.equal:
        more = _equal_steps(prober, goal, more)[0]
    return _candidates(prober, [more], goal, safe_bytes)


def _most_steps(prober: Prober, goal: Goal) -> int:
    """The accumulation steps of the smallest micro-batches."""
    return goal.effective_batch_size // prober.smallest_size // goal.data_parallel_size


def _possible_steps(prober: Prober, goal: Goal, safe_size: int) -> list[int]:
    """Accumulation steps worth considering, the fewest first: as few as leave the headroom, one more, and the ladder's.

    Raises NothingFits where the replicas cannot share the batch in micro-batches that small.
    """
    batch, replicas = goal.effective_batch_size, goal.data_parallel_size
    least, most = least_steps(batch, safe_size, replicas), _most_steps(prober, goal)
    if least > most and prober.smallest_size > 1:
        raise NothingFits(
            f"micro-batches of {prober.smallest_size} or more cannot be smaller than {safe_size + 1} and add up to {batch} over "
            f"{replicas} replica(s): use another effective batch, lower --headroom, or raise the limit."
        )
    if least > most:
        below, above = batch // replicas * replicas, -(-batch // replicas) * replicas
        raise NothingFits(
            f"{replicas} replicas that run equally many micro-batches share {batch} samples only with micro-batches of "
            f"{-(-batch // replicas)}, and {safe_size} leave the headroom: use an effective batch of {below} or {above}, lower "
            "--headroom, or raise the limit."
        )
    if goal.equal:
        return _equal_steps(prober, goal, least)
    sizes = list(ladder(safe_size, prober.smallest_size))
    if not prober.computes:  # then the largest that leaves the headroom is the plan, and the line only guesses it
        sizes += range(safe_size // 2 + 1, safe_size)
    others = {least_steps(batch, size, replicas) for size in sizes}
    return sorted(steps for steps in {least, least + 1, most, *others} if least <= steps <= most)


def _equal_steps(prober: Prober, goal: Goal, least: int) -> list[int]:
    """Accumulation steps of equal micro-batches that the model can train; NothingFits where there are none."""
    batch, replicas = goal.effective_batch_size, goal.data_parallel_size
    sizes = {steps: batch // replicas // steps for steps in equal_steps(batch, least, replicas)}
    steps = [count for count, size in sizes.items() if size >= prober.smallest_size and size % prober.multiple_of == 0]
    if not steps:
        raise NothingFits(
            f"no equal micro-batches of {prober.smallest_size} or more, in multiples of {prober.multiple_of}, make {batch} over "
            f"{replicas} replica(s) and leave the headroom: use another effective batch, or leave out --equal."
        )
    return steps


def _safe_size(prober: Prober, finding: Finding, safe_bytes: int) -> int:
    """The largest size that should leave the headroom: by the line, and no less than the largest tried that does.

    It is a multiple as the search's sizes are, and no smaller than the smallest that runs.
    """
    line = line_through_last(prober.line_points())
    crossing = line.crossing(safe_bytes) if line is not None else None
    tried = [size for size, needed in prober.line_points() if needed <= safe_bytes]
    by_line = finding.largest_fit if crossing is None else min(int(crossing), finding.largest_fit)
    return max([prober.smallest_size, by_line // prober.multiple_of * prober.multiple_of, *tried])


def _candidates(prober: Prober, steps: list[int], goal: Goal, safe_bytes: int) -> list[Candidate]:
    """The splits worth measuring, measured: the fewest steps, and those that the ladder's times say are about as fast.

    Raises NothingFits where none leaves the headroom.
    """
    estimates = {count: _estimated_seconds(prober, goal, count) for count in steps}
    times = [seconds for seconds in estimates.values() if seconds is not None]
    by_estimate = sorted(steps[1:], key=lambda count: estimates[count] or 0.0)
    found: list[Candidate] = []
    for count in (*steps[:1], *by_estimate):
        estimate = estimates[count]
        slow = estimate is not None and estimate > min(times) * (1 + WORTH_TIMING)
        if found and (slow or estimate is None or len(found) == MOST_TIMED):
            break
        parts = split(goal.effective_batch_size, count, goal.data_parallel_size, multiple_of=prober.multiple_of)
        why = f"{count * goal.data_parallel_size} of it make {goal.effective_batch_size}"
        outcome = try_size(prober, parts[0][0], why).outcome
        if isinstance(outcome, Fits) and not outcome.allocator_retries and outcome.peak_bytes <= safe_bytes:
            throughput = prober.time(parts[0][0], why) if times else None
            found.append(_candidate(parts, outcome.peak_bytes, throughput))
    if not found:
        smallest = min(trial.outcome.peak_bytes for trial in prober.trials.values() if isinstance(trial.outcome, Fits))
        raise NothingFits(
            f"no micro-batch leaves the headroom of {goal.headroom:.0%}: the smallest peak is {format_bytes(smallest)} and "
            f"{format_bytes(safe_bytes)} of {format_bytes(prober.capacity_bytes)} may be used. Lower --headroom, or raise "
            "the limit."
        )
    return found


def _candidate(replicas: tuple[tuple[int, ...], ...], peak_bytes: int, throughput: Throughput | None) -> Candidate:
    if throughput is None:
        return Candidate(replicas=replicas, peak_bytes=peak_bytes)
    # Sizes within one sample of each other take the same time, to within any measurement of it.
    seconds = len(replicas[0]) * throughput.median_micro_step_seconds + throughput.median_optimizer_seconds
    return Candidate(replicas=replicas, peak_bytes=peak_bytes, step_seconds=seconds, spread=throughput.spread)


def _estimated_seconds(prober: Prober, goal: Goal, steps: int) -> float | None:
    """Seconds of an optimizer step by the timed sizes around its micro-batch; None where nothing was timed."""
    if not prober.throughputs:
        return None
    size = -(-goal.effective_batch_size // (steps * goal.data_parallel_size))
    timed = [prober.throughputs[tried] for tried in sorted(prober.throughputs)]
    above = next((throughput for throughput in timed if throughput.micro_batch_size >= size), timed[-1])
    # Per sample, throughput changes slowly with size; the nearest size above stands for it.
    per_sample = above.median_micro_step_seconds / above.micro_batch_size
    return steps * size * per_sample + above.median_optimizer_seconds


def _verified(prober: Prober, plan: AccumulationPlan) -> AccumulationPlan | Unproved:
    """The plan with what running it measured, or how it failed.

    Each of the two runs is told as soon as it ended, so that one that is interrupted later repeats neither.
    """
    ran = prober.replay.verified(plan.replicas) or _run(prober, plan)
    if isinstance(ran, Unproved):
        return ran
    prober.observe(Verified(plan=ran))
    if prober.timing_setting is prober.setting or ran.step_seconds is not None:
        return ran
    timed = prober.replay.verified(plan.replicas)
    if timed is None:
        # The exact allocator is slow, so the plan's time is taken from a second run.
        seconds = prober.time_plan(plan.micro_batch_sizes, VERIFIED_STEPS)
        if seconds is None:
            return ran
        timed = _with_time(ran, seconds)
    prober.observe(Verified(plan=timed))
    return timed


def _run(prober: Prober, plan: AccumulationPlan) -> AccumulationPlan | Unproved:
    """The plan with the peak of its five steps, and their time where it counts; or how it failed."""
    sizes = plan.micro_batch_sizes
    failure = prober.replay.note(f"The plan {list(sizes)} ")
    if failure is None:
        steps = VERIFIED_STEPS if prober.computes else SIMULATED_STEPS
        ran = prober.run_plan(sizes if prober.computes else telling(sizes), steps)
        if isinstance(ran, Completed) and not ran.fits.allocator_retries:
            proved = replace(plan, peak_bytes=ran.fits.peak_bytes, verified_steps=steps)
            timed = prober.computes and prober.timing_setting is prober.setting
            return _with_time(proved, ran.step_seconds) if timed else proved
        failure = f"The plan {list(sizes)} {_how_failed(ran, steps)}"
    return Unproved(sizes=sizes, said=failure)


def telling(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a plan's micro-batches that show its peak where nothing but their shapes counts: a few of each size.

    After two of a size the third repeats the second's requests, on a simulated card to the byte.
    """
    return tuple(size for size in dict.fromkeys(sizes) for _ in range(min(sizes.count(size), TELLING)))


def _how_failed(ran: Completed | OutOfMemory | Refused | TimedOut, steps: int) -> str:
    match ran:
        case TimedOut(seconds=seconds):
            return (
                f"did not end {steps} optimizer steps within {format_seconds(seconds)}: allow more with "
                "--verification-timeout."
            )
        case Refused(evidence=evidence, message=message):
            return f"could not be run, {evidence}: {message}."
        case OutOfMemory(phase=phase, message=message):
            return f"ran out of memory in its {phase} when it was run: {message}."
        case Completed(fits=fits):
            return f"ran only by {fits.allocator_retries} allocator retries."


def _with_time(plan: AccumulationPlan, seconds: tuple[float, ...]) -> AccumulationPlan:
    """The plan with the time of its steps, all but the first, and a note where that cannot be right."""
    # The first step makes the optimizer's state and loads what is loaded lazily.
    measured = median(seconds[1:]) if len(seconds) > 1 else None
    remarks = _disagreement(plan.predicted_step_seconds, measured)
    return replace(plan, step_seconds=measured, notes=(*plan.notes, *remarks))


def _disagreement(predicted: float | None, measured: float | None) -> list[str]:
    """Says so where the plan's step and its parts took times that cannot both be right."""
    if not predicted or not measured or 1 / DISAGREEMENT < measured / predicted < DISAGREEMENT:
        return []
    return [
        f"a step of the plan took {format_seconds(measured)}, and its parts, timed by themselves, add up to "
        f"{format_seconds(predicted)}: the first is what training takes; for the choice, probe again on a quiet machine."
    ]


def _on_weights(equivalence: Equivalence | None) -> list[str]:
    """That the plan's weights, shares of samples, are not the loss's, where it averages over something else."""
    if equivalence is None or equivalence.decomposes not in (Decomposition.ITEMS, Decomposition.WEIGHTED):
        return []
    return [
        "the loss does not average over samples, so a micro-batch's weight is its share of what it averages over, which is "
        "known with each batch: accumulate, plan.split and plan.windows count it by loss_items. The weights above are shares "
        "of samples."
    ]


def _advice(goal: Goal, chosen: Candidate, safe_size: int) -> list[str]:
    """What the user could change about the target, where equal micro-batches leave more than half of the room unused."""
    size = chosen.replicas[0][0]
    least = least_steps(goal.effective_batch_size, safe_size, goal.data_parallel_size)
    if not goal.equal or 2 * size > safe_size or goal.effective_batch_size % (least * goal.data_parallel_size) == 0:
        return []
    targets = better_targets(goal.effective_batch_size, least, goal.data_parallel_size)
    fitting = [target for target in targets if target <= least * safe_size * goal.data_parallel_size]
    choices = " or ".join(f"{target} ({least} × {target // (least * goal.data_parallel_size)})" for target in fitting)
    return [
        f"{goal.effective_batch_size} has no divisor near the {safe_size} that leave the headroom, so equal micro-batches "
        f"are only {size} large: an effective batch of {choices} divides better."
    ]

"""Whether a plan lasts: its soak, what a failed one means, and whether another setting of the allocator would help."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

from profiler.devices import open_device
from profiler.errors import NothingFits
from profiler.events import Noted, SoakEnded
from profiler.plan import AccumulationPlan
from profiler.prober import Prober
from profiler.soak import Soak, SoakFailure
from profiler.units import format_bytes, format_seconds
from profiler.workers.protocol import TimedOut

WORST_CASE = "--worst-case (worst_case=True) sizes by the largest samples, so that they cannot come as a surprise."


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproved:
    """How a plan of these micro-batches failed when it was run, in words; soaked: in its soak.

    advice: what to do about failures of its kind, which is said once of many; empty where there is none.
    """

    sizes: tuple[int, ...]
    said: str
    soaked: bool = False
    advice: str = ""


def endured(prober: Prober, plan: AccumulationPlan, steps: int, headroom: float) -> AccumulationPlan | Unproved:
    """The verified `plan` with what its soak measured, or how that failed.

    Raises NothingFits where the soak did not end in time: another plan would take as long.
    """
    soak = replace(_soaked(prober, plan, steps), verified_peak_bytes=plan.peak_bytes)
    prober.observe(SoakEnded(soak=soak))
    beginning = f"The plan {in_words(plan.micro_batch_sizes)} failed its soak"
    # What came of it, recorded after all that was run for it.
    known = prober.replay.plan(plan.replicas) or prober.replay.note(beginning)
    soak, notes = _with_remedy(prober, soak, may_run=known is None)
    if isinstance(known, AccumulationPlan):
        return known
    if not soak.passed:
        said = " ".join((f"{beginning}: {_why_failed(soak)}", *(f"{note[0].upper()}{note[1:]}" for note in notes)))
        advice = WORST_CASE if soak.failure is not None and _is_longer(soak, soak.failure) else ""
        return Unproved(sizes=plan.micro_batch_sizes, said=known or said, soaked=True, advice=advice)
    return replace(
        plan,
        soaked_steps=soak.steps_run,
        soaked_peak_bytes=soak.peak_bytes,
        notes=(*plan.notes, *_remarks(soak, prober.capacity_bytes, headroom), *notes),
    )


def _soaked(prober: Prober, plan: AccumulationPlan, steps: int) -> Soak:
    """The soak of the plan, as recorded or run; NothingFits, after a note of its own, where it does not end in time."""
    sizes = plan.micro_batch_sizes
    recorded = prober.replay.soak(sizes, steps)
    if recorded is not None:
        return recorded
    beginning = f"The plan {in_words(sizes)} did not end its soak"
    late = prober.replay.note(beginning)
    if late is None:
        takes = f"; some {format_seconds(steps * plan.step_seconds)}" if plan.step_seconds else ""
        ran = prober.soak(sizes, steps, why=f"on batches as training takes them{takes}")
        if isinstance(ran, Soak):
            return ran
        late = f"{beginning} of {steps} optimizer steps within {format_seconds(ran.seconds)}."
    # Told at once: what else the probe runs comes before its last note.
    prober.observe(Noted(text=late))
    raise NothingFits(
        f"no plan for an effective batch of {plan.effective_batch_size} survived being run. {late} Ask for fewer steps with "
        "--soak, or allow more time with --verification-timeout, which is the limit for every five."
    )


def _with_remedy(prober: Prober, soak: Soak, *, may_run: bool) -> tuple[Soak, list[str]]:
    """The soak, run again under the device's remedy where it fragmented, and a note that says what that gave.

    may_run: False where an interrupted run has recorded what came of the soak, with a remedy or without.
    """
    if soak.again is None:
        remedied = prober.replay.soak(soak.micro_batch_sizes, soak.steps)
        if remedied is None:
            return _tried_again(prober, soak) if may_run else (soak, [])
        soak = remedied
        prober.observe(SoakEnded(soak=soak))
    assert soak.again is not None, "a soak is told once more only with another"
    return soak, [_advice(soak, soak.again.environment or "another setting")]


def _tried_again(prober: Prober, soak: Soak) -> tuple[Soak, list[str]]:
    environment = open_device(prober.setting.device).defragmenting_environment()
    if not environment or not soak.is_fragmented(prober.capacity_bytes):
        return soak, []
    name, value = next(iter(environment.items()))
    setting, unused = f"{name}={value}", format_bytes(soak.unused_bytes or 0)
    other = prober.runner.with_environment(environment)
    if other is None:
        return soak, [
            f"the allocator held {unused} that nothing used; whether {setting} would help cannot be tried in this process: "
            "probe with --isolation process, or train once with it."
        ]
    with closing(other):
        again = prober.soak(soak.micro_batch_sizes, soak.steps, why=f"again with {setting}", runner=other)
    if isinstance(again, TimedOut):
        return soak, [f"with {setting} the soak did not end within {format_seconds(again.seconds)}."]
    soak = replace(soak, again=replace(again, environment=setting, verified_peak_bytes=soak.verified_peak_bytes))
    prober.observe(SoakEnded(soak=soak))
    return soak, [_advice(soak, setting)]


def _advice(soak: Soak, setting: str) -> str:
    """Whether to train with the setting, by both numbers."""
    again = soak.again
    assert again is not None
    if not again.passed:
        return f"{setting} does not help: with it, {_failed_where(again)}."
    if not soak.passed:
        return f"with {setting} the same soak passes, with a {_held(again)}: set it, and probe again with it."
    before, after = soak.peak_reserved_bytes, again.peak_reserved_bytes
    if before is None or after is None or after >= before:
        return f"{setting} does not help: a {_held(again)} with it, and a {_held(soak)} without."
    return (
        f"train with {setting}: over the soak it lowers the reserved peak from {format_bytes(before)} to "
        f"{format_bytes(after)}, by {format_bytes(before - after)}."
    )


def _held(soak: Soak) -> str:
    peak = soak.peak_reserved_bytes
    return f"reserved peak of {format_bytes(peak)}" if peak is not None else "reserved peak that is unknown"


def _why_failed(soak: Soak) -> str:
    """What happened, and on what."""
    failure = soak.failure
    if failure is None:
        return f"{_failed_where(soak)}."
    return f"{_failed_where(soak)}{_on_what(soak, failure)}: {failure.message.rstrip('.')}."


def _failed_where(soak: Soak) -> str:
    failure = soak.failure
    if failure is None:
        return f"it ran only by {soak.allocator_retries} allocator retries"
    step = f"optimizer step {failure.step} of {soak.steps}" if failure.step is not None else f"{soak.steps} steps"
    phase = "" if failure.phase == "worker" else f", in its {failure.phase}"
    return f"it ran out of memory in {step}{phase}"


def _on_what(soak: Soak, failure: SoakFailure) -> str:
    """How the micro-batch at the failure differs from that of the verification."""
    if failure.elements is None or not soak.verified_elements:
        return ""
    if not _is_longer(soak, failure):
        return f", on a micro-batch of {failure.elements:,} numbers, no more than it was verified with"
    return (
        f", on a micro-batch of {failure.elements:,} numbers, {failure.elements / soak.verified_elements:.2g} times the "
        f"{soak.verified_elements:,} that it was verified with: samples longer than the Dataset's first"
    )


def _is_longer(soak: Soak, failure: SoakFailure) -> bool:
    return (failure.elements or 0) > (soak.verified_elements or failure.elements or 0)


def _remarks(soak: Soak, capacity_bytes: int, headroom: float) -> list[str]:
    """What a soak that passed shows all the same."""
    remarks = []
    if soak.not_finite_from is not None:
        remarks.append(
            f"the loss is no finite number from optimizer step {soak.not_finite_from} of the soak on: memory goes on as "
            "before, and training does not. Look at the learning rate, the data and the precision."
        )
    left = 1 - (soak.peak_bytes or 0) / capacity_bytes
    if left < headroom:
        remarks.append(
            f"over the soak the peak rose to {format_bytes(soak.peak_bytes or 0)}, which leaves {left:.1%} of the capacity "
            f"unused and not the headroom of {headroom:.0%}."
        )
    return remarks


def in_words(sizes: tuple[int, ...]) -> str:
    """Micro-batch sizes as count × size, in their order: "2 × 171 + 1 × 170"."""
    return " + ".join(f"{sizes.count(size)} × {size}" for size in dict.fromkeys(sizes))

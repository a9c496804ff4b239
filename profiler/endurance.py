"""Whether a plan lasts: its soak, what a failed one means, and whether another setting of the allocator would help."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from profiler.devices import open_device
from profiler.errors import NothingFits
from profiler.events import SoakEnded
from profiler.plan import AccumulationPlan
from profiler.prober import Prober
from profiler.soak import Soak, SoakFailure
from profiler.units import format_bytes, format_seconds
from profiler.workers.protocol import TimedOut


def endured(prober: Prober, plan: AccumulationPlan, steps: int, headroom: float) -> AccumulationPlan | str:
    """The verified `plan` with what its soak measured, or a sentence that says how that failed.

    Raises NothingFits where the soak did not end in time: another plan would take as long.
    """
    sizes = plan.micro_batch_sizes
    takes = f"; some {format_seconds(steps * plan.step_seconds)}" if plan.step_seconds else ""
    recorded = prober.replay.soak(sizes, steps)
    if recorded is not None and plan.soaked_steps:  # the plan was recorded too, with what its soak measured
        prober.observe(SoakEnded(soak=recorded))
        return plan
    ran = recorded or prober.soak(sizes, steps, why=f"on batches as training takes them{takes}")
    if isinstance(ran, TimedOut):
        raise NothingFits(
            f"the soak of the plan {in_words(sizes)} did not end its {steps} optimizer steps within "
            f"{format_seconds(ran.seconds)}: ask for fewer with --soak, or allow more with --verification-timeout, which is "
            "the limit for every five."
        )
    soak, notes = _with_remedy(prober, replace(ran, verified_peak_bytes=plan.peak_bytes))
    prober.observe(SoakEnded(soak=soak))
    if not soak.passed:
        return " ".join((_why_failed(soak), *(f"{note[0].upper()}{note[1:]}" for note in notes)))
    return replace(
        plan,
        soaked_steps=soak.steps_run,
        soaked_peak_bytes=soak.peak_bytes,
        notes=(*plan.notes, *_remarks(soak, prober.capacity_bytes, headroom), *notes),
    )


def _with_remedy(prober: Prober, soak: Soak) -> tuple[Soak, list[str]]:
    """The soak, run again under the device's remedy where it fragmented, and a note that says what that gave."""
    if soak.again is not None:
        return soak, [_advice(soak, soak.again.environment or "another setting")]
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
    """What happened, on what, and what to do."""
    failure, sizes = soak.failure, soak.micro_batch_sizes
    said = f"The plan {in_words(sizes)} failed its soak: {_failed_where(soak)}"
    if failure is None:
        return f"{said}."
    said += f"{_on_what(soak, failure)}: {failure.message.rstrip('.')}."
    if not _is_longer(soak, failure):
        return said
    return (
        f"{said} --worst-case (worst_case=True) sizes by the largest samples, so that they cannot come as a surprise."
    )


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

"""What the end of a job means: an outcome, or an error that says what to do."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.devices.out_of_memory import Failure, Verdict, classify, confirms, was_killed
from profiler.errors import (
    DeviceUnavailable,
    MicrobatchError,
    ShortBatch,
    TooFewSamples,
    TrialError,
    WorkloadError,
)
from profiler.outcomes import Fits, Outcome, OutOfMemory, Purpose, Refused
from profiler.trial import Completed, Failed
from profiler.units import format_bytes, format_seconds
from profiler.workers.protocol import Died, TimedOut

# How data that has come to its end says so, apart from StopIteration, which is a ShortBatch by then.
_END_OF_DATA = frozenset({"IndexError"})
# What to do about a check that takes too much; a probe's own effective batch is its aim, and stays.
FEWER_SAMPLES = "run `microbatch check` with a smaller --effective-batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What is known about a trial from outside of it, by which suspects are judged.

    predicted_bytes: what the line through earlier sizes says, None without a line. smaller_fits: whether a smaller size
    ran in a worker of its own. largest_ran: the largest of the smaller sizes that have run at all, None where none has.
    is_check: whether it compared accumulation with the whole batch, of `micro_batch_size` samples, and tried no size. purpose: what the size was tried for.
    """

    micro_batch_size: int
    device: str
    capacity_bytes: int
    predicted_bytes: int | None
    smaller_fits: bool
    largest_ran: int | None = None
    is_check: bool = False
    purpose: Purpose = Purpose.TRAINING

    @property
    def device_type(self) -> str:
        """The device's kind, without its index."""
        return self.device.split(":")[0]

    @property
    def trial(self) -> str:
        """What was run, in words."""
        size = self.micro_batch_size
        if self.purpose is Purpose.EVALUATION:
            return f"the evaluation trial at batch size {size}"
        return f"the check with {size} samples" if self.is_check else f"the trial at micro-batch size {size}"

    @property
    def where(self) -> str:
        """The same where something happened in it."""
        plain = self.purpose is Purpose.TRAINING and not self.is_check
        return f"at micro-batch size {self.micro_batch_size}" if plain else f"in {self.trial}"


def outcome_of(reply: Completed | Failed | Died | TimedOut, circumstances: Circumstances) -> Outcome:
    """The trial's outcome; a limit on the size is one where a smaller size ran, else it is the workload's bug.

    Raises the workload's own refusal; WorkloadError, with the user's traceback, for a bug; TrialError for a crash, a
    hang or host memory that ran out on an accelerator; DeviceUnavailable for a device that is gone.
    """
    if isinstance(reply, Completed):
        return _within(reply.fits, circumstances.capacity_bytes)
    if isinstance(reply, Failed) and reply.refusal is not None:
        if isinstance(reply.refusal, ShortBatch) and circumstances.largest_ran is not None:
            return _refused(reply, "the batch maker has no more", at_most=reply.refusal.samples)
        raise reply.refusal
    failure = _failure(reply)
    judgement = classify(failure, device_type=circumstances.device_type)
    if isinstance(reply, Failed) and circumstances.largest_ran is not None:
        if judgement.verdict is Verdict.CEILING:
            return _refused(reply, judgement.evidence)
        if reply.phase == "batch" and not _END_OF_DATA.isdisjoint(failure.errors[0].classes):
            return _refused(
                reply, f"the batch maker gives smaller ones, and no {circumstances.micro_batch_size} samples"
            )
    peak_bytes = reply.peak_bytes if isinstance(reply, Failed) else None
    evidence = judgement.evidence
    if judgement.verdict is Verdict.SUSPECT:
        confirmed = confirms(
            peak_bytes=peak_bytes,
            predicted_bytes=circumstances.predicted_bytes,
            capacity_bytes=circumstances.capacity_bytes,
            smaller_fits=circumstances.smaller_fits,
        )
        if confirmed is None:
            raise error_of(reply, circumstances, judgement.verdict, evidence)
        evidence = f"{evidence}; {confirmed}"
    elif judgement.verdict is not Verdict.CERTAIN:
        raise error_of(reply, circumstances, judgement.verdict, evidence)
    return OutOfMemory(
        phase=reply.phase if isinstance(reply, Failed) else "worker",
        message=first_line(reply),
        evidence=evidence,
        peak_bytes=peak_bytes,
        seconds=reply.seconds if not isinstance(reply, Died) else 0.0,
    )


def _within(fits: Fits, capacity_bytes: int) -> Fits | OutOfMemory:
    """What ran, unless it took more than there is: memory that no limit saw, which another process would not have."""
    if fits.peak_bytes <= capacity_bytes:
        return fits
    peak, capacity = format_bytes(fits.peak_bytes), format_bytes(capacity_bytes)
    return OutOfMemory(
        phase="worker",
        message=f"it ran to its end and took {peak} of {capacity}",
        evidence=f"its peak of {peak} exceeds the capacity",
        peak_bytes=fits.peak_bytes,
        seconds=fits.seconds,
    )


def _refused(reply: Failed, evidence: str, *, at_most: int | None = None) -> Refused:
    return Refused(
        phase=reply.phase, message=first_line(reply), evidence=evidence, at_most=at_most, seconds=reply.seconds
    )


def _failure(reply: Failed | Died | TimedOut) -> Failure:
    if isinstance(reply, Failed):
        return reply.failure
    if isinstance(reply, Died):
        return Failure(errors=(), exit_status=reply.exit_status, stderr=reply.output, timed_out=False)
    return Failure(errors=(), exit_status=None, stderr=reply.output, timed_out=True)


def first_line(reply: Failed | Died | TimedOut) -> str:
    """What the trial itself said, in one line."""
    if isinstance(reply, Failed):
        return next(iter(reply.message.strip().splitlines()), "an error without words")
    if isinstance(reply, Died):
        return f"the worker ended with {_status(reply)}"
    return f"no end within {format_seconds(reply.seconds)}"


def _status(reply: Died) -> str:
    if reply.is_garbled:
        return "something on its pipe that is no result, written there by other code, and had to be killed"
    if reply.exit_status is None:
        return "its pipe closed, and had to be killed"
    return f"exit status {reply.exit_status}"


def error_of(
    reply: Failed | Died | TimedOut, circumstances: Circumstances, verdict: Verdict, evidence: str
) -> MicrobatchError:
    """The error for a trial that failed for another reason than the device's memory."""
    if isinstance(reply, TimedOut):
        return TrialError(
            f"{circumstances.trial} did not end within {format_seconds(reply.seconds)}, and nothing says that memory was "
            "the reason: allow more with --trial-timeout, or "
            f"{FEWER_SAMPLES if circumstances.is_check else 'stop earlier with --ceiling'}."
        )
    if verdict is Verdict.LOST:
        return DeviceUnavailable(
            f"{circumstances.device} was lost {circumstances.where} ({first_line(reply)}; {evidence}): what nvidia-smi and "
            "the system's log say of it comes first; probe again when it is back, or name another with --device."
        )
    if verdict is Verdict.HOST_MEMORY:
        return TrialError(
            f"{circumstances.trial} ran out of host memory outside what is measured on {circumstances.device} "
            f"({first_line(reply)}; {evidence}): use fewer data-loader workers, raise the size of /dev/shm, or free memory "
            "on the host."
        )
    if isinstance(reply, Died):
        capacity = f" (capacity {format_bytes(circumstances.capacity_bytes)})" if not circumstances.is_check else ""
        advice = f": {FEWER_SAMPLES}" if circumstances.is_check else ""
        said = reply.output.strip()
        return TrialError(
            f"the worker died {circumstances.where} with {_status(reply)}{capacity}, and nothing says that memory was the "
            f"reason{advice}."
            + (
                f" Its last words:\n{said[-2000:]}"
                if said
                else " It printed nothing. Run the model at that size by hand."
            )
        )
    known = f" ({evidence})" if verdict is not Verdict.UNKNOWN else ""
    if reply.phase == "batch" and circumstances.largest_ran is not None:
        known += (
            f". Where the data end there, stop at the largest size that ran: --ceiling {circumstances.largest_ran}."
        )
    kind = TooFewSamples if verdict is Verdict.TOO_FEW else WorkloadError
    return kind(
        f"the workload failed {circumstances.where}, in its {reply.phase}: {first_line(reply)}{known}",
        user_traceback=reply.user_traceback,
        phase=reply.phase,
    )


def is_suspect(reply: Completed | Failed | Died | TimedOut, device: str) -> bool:
    """Whether `reply` may be out of memory and has to be confirmed, by a smaller size in a fresh worker."""
    if isinstance(reply, Completed) or (isinstance(reply, Failed) and reply.refusal is not None):
        return False
    return classify(_failure(reply), device_type=device.split(":")[0]).verdict is Verdict.SUSPECT


def how_killed(reply: Completed | Failed | Died | TimedOut, device: str) -> str | None:
    """How a worker was killed where host memory decides, by the system for memory or by anybody; None for other ends."""
    killed = device == "cpu" and isinstance(reply, Died) and was_killed(_failure(reply))
    return first_line(reply) if killed and isinstance(reply, Died) else None


def inspection_error(reply: Failed | Died | TimedOut, device: str) -> MicrobatchError:
    """The error for a workload that could not even be loaded, or a device that could not be asked."""
    if isinstance(reply, Failed):
        verdict = classify(reply.failure, device_type=device.split(":")[0])
        if reply.refusal is None and verdict.verdict is Verdict.LOST:
            return DeviceUnavailable(f"{device} cannot be used: {first_line(reply)} ({verdict.evidence}).")
        return reply.refusal or WorkloadError(
            f"the workload could not be loaded: {first_line(reply)}", user_traceback=reply.user_traceback
        )
    said = f" Its last words:\n{reply.output.strip()[-2000:]}" if reply.output.strip() else ""
    return TrialError(f"loading the workload failed: {first_line(reply)}.{said}")

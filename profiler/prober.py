"""Runs trials one at a time and keeps what they came to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from profiler.checking.job import CheckRequest, check
from profiler.curve import line_through_last
from profiler.equivalence import Equivalence
from profiler.errors import NothingFits, WorkloadError
from profiler.events import Checked, Noted, Observer, SizeTried, Started, Timed
from profiler.judge import FEWER_SAMPLES, Circumstances, first_line, how_killed, is_suspect, outcome_of
from profiler.limits import Limits
from profiler.outcomes import Fits, Outcome, OutOfMemory, Purpose, Refused, Strategy, Throughput, Trial
from profiler.replay import Replay
from profiler.schedules import SIZING_MICRO_BATCHES, Schedule, schedule_for
from profiler.soak import Soak, SoakFailure
from profiler.soaking import Soaked, SoakRequest, soak
from profiler.surprise import after_another_try
from profiler.trial import Completed, Failed, Setting, run_schedule, time_size
from profiler.workers.protocol import Died, TimedOut
from profiler.workers.runner import Runner

# A trial that is predicted to come this close to the capacity decides the answer, and gets a worker of its own.
NEARLY = 0.9
# Timing a size takes about this many times as many steps as a sizing trial.
TIMING_TRIALS = 5
# A check runs its batch two dozen times, the short one of a probe some ten; in fp64, which takes twice as long and more.
CHECK_TRIALS = 10
SHORT_CHECK_TRIALS = 2
_UNTIMED = " could not be timed: "


@dataclass(slots=True, kw_only=True)
class Prober:
    """One workload on one device under one budget: tries sizes, each at most once, and remembers.

    capacity_bytes: what the process may use, in the unit of the device's peaks. timing_setting: the setting for jobs that
    measure time, without the budget where keeping it exactly costs time. compiled: whether the model is compiled.
    multiple_of: every size is a multiple of it. smallest_size: none below it can be trained, as far as is known, and the training
    step of an evaluation trial takes as many. smallest_evaluation: none below it can be evaluated, likewise.
    dataset_samples: how many the workload's Dataset has, None where batches come from elsewhere.
    trials, evaluations: the sizes tried for training, and for evaluation; each is predicted from its own.
    replay: what an interrupted run recorded, which is taken over and not run. own_heap: whether trials run in this
    process and it is its memory that is measured. computes: whether the device does, so that there is time to measure.
    """

    runner: Runner
    setting: Setting
    timing_setting: Setting
    capacity_bytes: int
    compiled: bool
    limits: Limits
    observe: Observer
    multiple_of: int = 1
    smallest_size: int = 1
    smallest_evaluation: int = 1
    dataset_samples: int | None = None
    trials: dict[int, Trial] = field(default_factory=dict)
    evaluations: dict[int, Trial] = field(default_factory=dict)
    throughputs: dict[int, Throughput] = field(default_factory=dict)
    replay: Replay = field(default_factory=Replay)
    own_heap: bool = False
    computes: bool = True

    def tried(self, purpose: Purpose) -> dict[int, Trial]:
        """The sizes that were tried for `purpose`, in the order they ran."""
        return self.trials if purpose is Purpose.TRAINING else self.evaluations

    def smallest(self, purpose: Purpose) -> int:
        """The smallest size that can be run for `purpose`, as far as is known."""
        return self.smallest_size if purpose is Purpose.TRAINING else self.smallest_evaluation

    def try_size(self, size: int, why: str, purpose: Purpose = Purpose.TRAINING) -> Trial:
        """The sizing trial of `size`."""
        tried = self.tried(purpose)
        if size not in tried:
            self._try(size, why, purpose)
            full = isinstance(tried[size].outcome, OutOfMemory)
            if full and self.computes and any(trial.fits for larger, trial in tried.items() if larger > size):
                self.try_again(size, "a larger size fits", purpose)
        return tried[size]

    def try_again(self, size: int, why: str, purpose: Purpose = Purpose.TRAINING) -> Trial:
        """The sizing trial of `size` once more, in place of an out-of-memory that was not to be expected; says what came of it."""
        self._try(size, why, purpose, fresh=True)
        trial = self.tried(purpose)[size]
        predicted = self.predicted_bytes(size, purpose)
        said = after_another_try(trial, predicted, self.capacity_bytes, own_heap=self.own_heap)
        if said is not None:
            self.observe(Noted(text=said))
        return trial

    def _try(self, size: int, why: str, purpose: Purpose, *, fresh: bool = False) -> None:
        trial = self.replay.trial(size, purpose)
        if trial is None:
            self.observe(Started(what=f"{purpose.size} {size}", why=why))
            outcome = self.run(schedule_for(purpose, size, self.smallest_size), size, purpose, fresh=fresh)
            trial = Trial(micro_batch_size=size, outcome=outcome, why=why, purpose=purpose)
        self.tried(purpose)[size] = trial
        self.observe(SizeTried(trial=trial))

    def run(
        self, schedule: Schedule, size: int, purpose: Purpose = Purpose.TRAINING, *, fresh: bool = False
    ) -> Outcome:
        """What `schedule` comes to under the budget; raises for a bug, a crash or a hang (see `profiler.judge`).

        size: the samples whose activations are alive at once, by which its memory is predicted. fresh: in a worker of its
        own, which sizes near the capacity get anyway.
        """
        predicted = self.predicted_bytes(size, purpose)
        # A compiled model is compiled for the sizes that its process has seen, so each size gets a process.
        fresh = fresh or self.compiled or predicted is None or predicted >= NEARLY * self.capacity_bytes
        reply = self._run(schedule, fresh=fresh)
        if not fresh and is_suspect(reply, self.setting.device):
            reply = self._run(schedule, fresh=True)
        return outcome_of(reply, self._circumstances(size, predicted, reply, purpose))

    def _run(self, schedule: Schedule, *, fresh: bool) -> Completed | Failed | Died | TimedOut:
        # The limit is a sizing trial's, of three micro-batches; a schedule of more gets more.
        micro_batches = sum(len(sizes) for sizes in schedule.steps) + len(schedule.evaluations)
        timeout_seconds = self.limits.trial_seconds * max(1.0, micro_batches / SIZING_MICRO_BATCHES)
        return self._scheduled(schedule, timeout_seconds, fresh=fresh)

    def _scheduled(
        self, schedule: Schedule, timeout_seconds: float, *, fresh: bool
    ) -> Completed | Failed | Died | TimedOut:
        """How `schedule` ended; once more where its worker was killed, since the system's memory is one reason among many."""
        reply: Completed | Failed | Died | TimedOut = self.runner.size(
            run_schedule, self.setting, schedule, timeout_seconds=timeout_seconds, fresh=fresh
        )
        how = how_killed(reply, self.setting.device)
        if how is None:
            return reply
        self.observe(Noted(text=f"{how}, as when the system's memory runs out or somebody kills it: tried again."))
        again: Completed | Failed | Died | TimedOut = self.runner.size(
            run_schedule, self.setting, schedule, timeout_seconds=timeout_seconds, fresh=True
        )
        return again

    def run_plan(self, sizes: tuple[int, ...], steps: int) -> Completed | OutOfMemory | Refused | TimedOut:
        """`steps` optimizer steps of accumulation over `sizes`, in a fresh worker under the budget."""
        self.observe(Started(what=f"the plan for {steps} optimizer steps", why="to prove it"))
        schedule = Schedule(strategy=Strategy.ACCUMULATION, steps=(sizes,) * steps)
        reply = self._scheduled(schedule, self.limits.verification_seconds, fresh=True)
        if isinstance(reply, TimedOut):
            return reply
        outcome = outcome_of(reply, self._circumstances(max(sizes), self.predicted_bytes(max(sizes)), reply))
        if isinstance(outcome, Fits):
            assert isinstance(reply, Completed), "only a completed schedule fits"
            return reply
        return outcome

    def soak(self, sizes: tuple[int, ...], steps: int, *, why: str, runner: Runner | None = None) -> Soak | TimedOut:
        """`steps` optimizer steps over `sizes` on batches as training takes them, in a fresh worker under the budget.

        runner: another one to run it in. Raises WorkloadError for a bug, TrialError for a crash.
        """
        self.observe(Started(what=f"a soak of {steps} optimizer steps", why=why))
        reply: Soaked | Died | TimedOut = (runner or self.runner).size(
            soak,
            self.setting,
            SoakRequest(sizes=sizes, steps=steps),
            timeout_seconds=self.limits.soak_seconds(steps),
            fresh=True,
        )
        if isinstance(reply, TimedOut):
            return reply
        if isinstance(reply, Soaked) and reply.failed is None:
            return reply.soak
        ended = reply if isinstance(reply, Died) else reply.failed
        assert ended is not None, "what completed was returned"
        outcome = outcome_of(ended, self._circumstances(max(sizes), self.predicted_bytes(max(sizes)), ended))
        if isinstance(outcome, Refused):
            raise WorkloadError(
                f"a soak of {steps} optimizer steps ended before its time, {outcome.evidence}: {outcome.message}."
            )
        assert isinstance(outcome, OutOfMemory), "only a completed schedule fits"
        return failed_soak(sizes, steps, reply, outcome)

    def time_plan(self, sizes: tuple[int, ...], steps: int) -> tuple[float, ...] | None:
        """Seconds of each of `steps` optimizer steps of accumulation over `sizes`; None, with a note, where it fails."""
        assert self.computes, "a device that computes nothing has no time to measure"
        if self._is_known_untimed("the plan"):
            return None
        self.observe(Started(what=f"the plan's time over {steps} optimizer steps", why="without the sizing allocator"))
        reply = self.runner.time(
            run_schedule,
            self.timing_setting,
            Schedule(strategy=Strategy.ACCUMULATION, steps=(sizes,) * steps),
            timeout_seconds=self.limits.verification_seconds,
            fresh=self.compiled,
        )
        if isinstance(reply, Completed):
            return reply.step_seconds
        self._note_untimed("the plan", reply)
        return None

    def time(self, size: int, why: str) -> Throughput | None:
        """The throughput at `size`, measured once; None, with a note, where it cannot be, and where nothing is computed."""
        if not self.computes:
            return None
        if size not in self.throughputs:
            what = f"micro-batch size {size}"
            if self._is_known_untimed(what):
                return None
            reply = self.replay.timing(size) or self._time(size, why)
            if not isinstance(reply, Throughput):
                self._note_untimed(what, reply)
                return None
            self.throughputs[size] = reply
            self.observe(Timed(throughput=reply))
        return self.throughputs[size]

    def _time(self, size: int, why: str) -> Throughput | Failed | Died | TimedOut:
        self.observe(Started(what=f"timing micro-batch size {size}", why=why))
        reply: Throughput | Failed | Died | TimedOut = self.runner.time(
            time_size,
            self.timing_setting,
            size,
            timeout_seconds=TIMING_TRIALS * self.limits.trial_seconds,
            fresh=self.compiled,
        )
        return reply

    def check(self, batch_size: int, *, thorough: bool) -> Equivalence:
        """Whether accumulation over parts of `batch_size` samples equals the whole batch; thorough: in every way.

        Raises NothingFits where memory runs out, WorkloadError for a bug, TrialError for a crash or a hang.
        """
        recorded = self.replay.check(batch_size)
        if recorded is not None:
            self.observe(Checked(equivalence=recorded))
            return recorded
        why = "whether accumulation equals the whole batch"
        self.observe(Started(what=f"the check with {batch_size} samples", why=why))
        # The CPU's budget stands for a smaller machine's memory, and memory is not the question.
        unlimited = self.setting.device == "cpu"
        reply: Equivalence | Failed | Died | TimedOut = self.runner.size(
            check,
            replace(self.setting, limit_bytes=None) if unlimited else self.setting,
            CheckRequest(batch_size=batch_size, thorough=thorough),
            timeout_seconds=(CHECK_TRIALS if thorough else SHORT_CHECK_TRIALS) * self.limits.trial_seconds,
            fresh=True,
        )
        if not isinstance(reply, Equivalence):
            outcome = outcome_of(reply, self._circumstances_of_check(batch_size))
            assert isinstance(outcome, OutOfMemory), "only a completed schedule fits"
            place = f" in its {outcome.phase}" if outcome.phase != "worker" else ""
            raise NothingFits(
                f"the check with {batch_size} samples ran out of memory{place} ({outcome.message}): {FEWER_SAMPLES}, or take "
                "shorter sequences."
            )
        self.observe(Checked(equivalence=reply))
        return reply

    def predicted_bytes(self, size: int, purpose: Purpose = Purpose.TRAINING) -> int | None:
        """What the line through the last two sizes that fitted says for `size`; None before there are two."""
        line = line_through_last(self.line_points(purpose))
        return None if line is None else int(line.at(size))

    def line_points(self, purpose: Purpose = Purpose.TRAINING) -> list[tuple[int, int]]:
        """(size, bytes needed) of every size that ran without allocator retries, by size."""
        return [
            (size, trial.outcome.needed_bytes)
            for size, trial in sorted(self.tried(purpose).items())
            if isinstance(trial.outcome, Fits) and trial.outcome.label == "fits"
        ]

    def _note_untimed(self, what: str, reply: Failed | Died | TimedOut) -> None:
        self.observe(Noted(text=f"{what}{_UNTIMED}{first_line(reply)}."))

    def _is_known_untimed(self, what: str) -> bool:
        recorded = self.replay.note(f"{what}{_UNTIMED}")
        if recorded is not None:
            self.observe(Noted(text=recorded))
        return recorded is not None

    def _circumstances(
        self,
        size: int,
        predicted_bytes: int | None,
        reply: Completed | Failed | Died | TimedOut,
        purpose: Purpose = Purpose.TRAINING,
    ) -> Circumstances:
        return Circumstances(
            micro_batch_size=size,
            device=self.setting.device,
            capacity_bytes=self.capacity_bytes,
            predicted_bytes=predicted_bytes,
            smaller_fits=is_suspect(reply, self.setting.device) and self._smaller_fits(size, purpose),
            largest_ran=self._largest_ran(size, purpose),
            purpose=purpose,
        )

    def _circumstances_of_check(self, batch_size: int) -> Circumstances:
        return Circumstances(
            micro_batch_size=batch_size,
            device=self.setting.device,
            capacity_bytes=self.capacity_bytes,
            predicted_bytes=None,
            smaller_fits=False,
            is_check=True,
        )

    def _largest_ran(self, below: int, purpose: Purpose) -> int | None:
        """The largest size below `below` that ran, None where none did."""
        return max((size for size, trial in self.tried(purpose).items() if trial.fits and size < below), default=None)

    def _smaller_fits(self, size: int, purpose: Purpose) -> bool:
        """Whether the largest smaller size that fitted fits again in a fresh worker: the set-up itself works."""
        smaller = self._largest_ran(size, purpose)
        if smaller is None:
            return False
        self.observe(Started(what=f"{purpose.size} {smaller} again", why=f"{size} failed in a way that may be memory"))
        return isinstance(self._run(schedule_for(purpose, smaller, self.smallest_size), fresh=True), Completed)


def failed_soak(sizes: tuple[int, ...], steps: int, reply: Soaked | Died, outcome: OutOfMemory) -> Soak:
    """A soak that ran out of memory, with what it measured before, which a worker that died did not tell."""
    if isinstance(reply, Died):
        failure = SoakFailure(step=None, phase=outcome.phase, message=outcome.message)
        return Soak(micro_batch_sizes=sizes, steps=steps, steps_run=0, seconds=outcome.seconds, failure=failure)
    failure = SoakFailure(
        step=reply.soak.steps_run + 1,
        phase=outcome.phase,
        message=outcome.message,
        elements=reply.elements,
        unused_bytes=reply.at_failure.unused_bytes,
    )
    known = [peak for peak in (reply.soak.peak_bytes, outcome.peak_bytes) if peak is not None]
    return replace(reply.soak, peak_bytes=max(known, default=None), failure=failure)

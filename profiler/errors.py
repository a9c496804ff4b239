"""What can go wrong, one class for each thing a caller would do differently.

    MicrobatchError
    ├── UsageError         an argument cannot be used; change the call            (exit status 2)
    ├── WorkloadError      the user's model, batch, loss or optimizer has a bug   (exit status 2)
    │   ├── ShortBatch     the batch maker gave fewer samples than were asked for
    │   ├── TooFewSamples  the model cannot train a micro-batch that small
    │   └── UnknownOfCard  it asks for something of a simulated card that nobody knows
    ├── TrialError         a trial ended in a way that says nothing about memory  (exit status 2)
    ├── NothingFits        not even the smallest micro-batch fits                 (exit status 3)
    └── DeviceUnavailable  the device is absent or cannot do what was asked       (exit status 4)

Every message says what happened, the numbers, and the next step.
"""

from __future__ import annotations


class MicrobatchError(Exception):
    """The root of every error this package raises on purpose."""

    exit_status = 2


class UsageError(MicrobatchError):
    """An argument cannot be used: out of range, contradictory, or a place that cannot be written."""


class WorkloadError(MicrobatchError):
    """The workload cannot be trained at any size: a bug in the user's model, batch, loss or optimizer.

    `user_traceback` is the traceback of the user's own code as text, None where there is none to show. `phase` is what a trial
    was doing (see `Trial`'s outcomes), None where no trial failed.
    """

    def __init__(self, message: str, *, user_traceback: str | None = None, phase: str | None = None) -> None:
        super().__init__(message)
        self.user_traceback = user_traceback
        self.phase = phase


class ShortBatch(WorkloadError):
    """The batch maker gave fewer samples than it was asked for: `samples`, which may be all that it has; None for no batch."""

    def __init__(self, message: str, *, samples: int | None = None) -> None:
        super().__init__(message)
        self.samples = samples


class TooFewSamples(WorkloadError):
    """The workload trains larger micro-batches only: BatchNorm has no variance of a single value."""


class UnknownOfCard(WorkloadError, AttributeError):
    """Code asks for something of a simulated card that nobody knows; to code that looks first (`hasattr`) the card lacks it."""


class TrialError(MicrobatchError):
    """A trial crashed, hung or lost its worker, and nothing says that memory was the reason."""


class NothingFits(MicrobatchError):
    """Not even the smallest micro-batch fits the capacity."""

    exit_status = 3


class DeviceUnavailable(MicrobatchError):
    """The device is not there, or cannot be used here; the message is the reason."""

    exit_status = 4

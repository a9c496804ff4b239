"""How long trials may take."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.errors import UsageError

TRIAL_SECONDS = 120.0
VERIFICATION_SECONDS = 600.0
# Optimizer steps of the run that proves a plan.
VERIFIED_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that a trial, and the run of a whole plan, may take."""

    trial_seconds: float = TRIAL_SECONDS
    verification_seconds: float = VERIFICATION_SECONDS

    def __post_init__(self) -> None:
        for seconds in (self.trial_seconds, self.verification_seconds):
            if not seconds > 0:
                raise UsageError(f"a time limit of {seconds} seconds lets nothing end: it must be positive.")

    def soak_seconds(self, steps: int) -> float:
        """What a soak of `steps` optimizer steps may take: `verification_seconds` for every five, which a verification runs."""
        return self.verification_seconds * max(1.0, steps / VERIFIED_STEPS)

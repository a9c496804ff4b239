"""Find the largest and the fastest micro-batch that fit, and accumulate to an effective batch exactly.

    from profiler import Workload, find_accumulation_plan

    plan = find_accumulation_plan(workload, effective_batch_size=512)

Importing this package imports neither torch, pandas nor matplotlib, and touches no device: a name brings its module when
it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.api import check_equivalence, compare_strategies, find_accumulation_plan, probe
    from profiler.equivalence import Decomposition, Equivalence, Way
    from profiler.errors import (
        DeviceUnavailable,
        MicrobatchError,
        NothingFits,
        TrialError,
        UsageError,
        WorkloadError,
    )
    from profiler.limits import Limits
    from profiler.loop import accumulate
    from profiler.options import Options
    from profiler.outcomes import Finding, Fits, OutOfMemory, Purpose, Strategy, Throughput, Trial
    from profiler.plan import AccumulationPlan
    from profiler.report import Comparison, Report
    from profiler.soak import Soak
    from profiler.workload import Workload

_MODULES = {
    "AccumulationPlan": "plan",
    "Comparison": "report",
    "Decomposition": "equivalence",
    "DeviceUnavailable": "errors",
    "Equivalence": "equivalence",
    "Finding": "outcomes",
    "Fits": "outcomes",
    "Limits": "limits",
    "MicrobatchError": "errors",
    "NothingFits": "errors",
    "Options": "options",
    "OutOfMemory": "outcomes",
    "Purpose": "outcomes",
    "Report": "report",
    "Soak": "soak",
    "Strategy": "outcomes",
    "Throughput": "outcomes",
    "Trial": "outcomes",
    "TrialError": "errors",
    "UsageError": "errors",
    "Way": "equivalence",
    "Workload": "workload",
    "WorkloadError": "errors",
    "accumulate": "loop",
    "check_equivalence": "api",
    "compare_strategies": "api",
    "find_accumulation_plan": "api",
    "probe": "api",
}

__all__ = [
    "AccumulationPlan",
    "Comparison",
    "Decomposition",
    "DeviceUnavailable",
    "Equivalence",
    "Finding",
    "Fits",
    "Limits",
    "MicrobatchError",
    "NothingFits",
    "Options",
    "OutOfMemory",
    "Purpose",
    "Report",
    "Soak",
    "Strategy",
    "Throughput",
    "Trial",
    "TrialError",
    "UsageError",
    "Way",
    "Workload",
    "WorkloadError",
    "accumulate",
    "check_equivalence",
    "compare_strategies",
    "find_accumulation_plan",
    "probe",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

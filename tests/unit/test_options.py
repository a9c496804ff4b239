from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UsageError
from profiler.limits import Limits
from profiler.options import DEFAULT_HEADROOM, Options
from profiler.units import GIB, MIB

HEADROOM = "it is a share of the memory, from 0 to below 1, such as 0.05."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"headroom": -0.01}, f"headroom is -0.01: {HEADROOM}"),
        ({"headroom": 1.0}, f"headroom is 1.0: {HEADROOM}"),
        ({"headroom": 5}, f"headroom is 5: {HEADROOM}"),
        ({"headroom": float("nan")}, f"headroom is nan: {HEADROOM}"),
        ({"headroom": float("inf")}, f"headroom is inf: {HEADROOM}"),
        (
            {"effective_batch_size": 0},
            "the effective batch is 0: it counts samples, so it must be at least 1.",
        ),
        (
            {"effective_batch_size": 3, "data_parallel_size": 4},
            "an effective batch of 3 cannot be shared by 4 replicas: each needs a sample. Use fewer replicas or a larger "
            "batch.",
        ),
        (
            {"effective_batch_size": 8, "data_parallel_size": 0},
            "data_parallel_size is 0: it counts replicas, so it must be at least 1.",
        ),
        ({"data_parallel_size": 0}, "data_parallel_size is 0: it counts replicas, at least 1."),
        ({"data_parallel_size": -3}, "data_parallel_size is -3: it counts replicas, at least 1."),
        (
            {"ceiling": "target"},
            "the ceiling 'target' is a share of the effective batch, and no effective batch was given.",
        ),
        (
            {"ceiling": 0},
            "the ceiling is 0: it is the largest size to try, a whole number of at least 1, or 'target' for the share of the "
            "effective batch.",
        ),
        (
            {"ceiling": -2},
            "the ceiling is -2: it is the largest size to try, a whole number of at least 1, or 'target' for the share of the "
            "effective batch.",
        ),
        *(
            (
                {"soak_steps": steps, "effective_batch_size": 4},
                f"the soak is {steps!r}: it counts optimizer steps, a whole number of at least 1, such as 200.",
            )
            for steps in (0, -1, 2.5, True, "many")
        ),
        (
            {"soak_steps": 200},
            "a soak of 200 steps runs a plan, and there is none without an effective batch: give --effective-batch "
            "(effective_batch_size) too.",
        ),
        (
            {"train": False},
            "neither training nor evaluation is asked for: set train or evaluate to True.",
        ),
        (
            {"train": False, "evaluate": True, "effective_batch_size": 64},
            "an effective batch of 64 is for a plan of training, and only evaluation is asked for: ask for both (--train "
            "--eval), or leave the effective batch out.",
        ),
        ({"isolation": "thread"}, "isolation 'thread' is unknown: use 'process' or 'none'."),
        ({"memory_limit": 0}, "the memory limit is 0 bytes: it must be positive."),
        ({"memory_limit": -1}, "the memory limit is -1 bytes: it must be positive."),
        ({"memory_limit": "0GiB"}, "'0GiB' is less than a byte: an amount of memory must be positive."),
        (
            {"memory_limit": "lots"},
            "'lots' is not an amount of memory: write a number and a unit, such as 512MiB or 2GiB.",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["trial_seconds", "verification_seconds"])
def test_a_time_limit_in_which_nothing_ends_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(UsageError, match=f"a time limit of {seconds} seconds lets nothing end: it must be positive"):
        Limits(**{name: seconds})


@pytest.mark.parametrize(("steps", "seconds"), [(1, 60.0), (5, 60.0), (6, 72.0), (200, 2400.0)])
def test_a_soak_may_take_a_verifications_time_for_every_five_steps(steps: int, seconds: float) -> None:
    assert Limits(verification_seconds=60.0).soak_seconds(steps) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"headroom": 0},
        {"headroom": 0.999},
        {"effective_batch_size": 1},
        {"effective_batch_size": 4, "data_parallel_size": 4},
        {"data_parallel_size": 8},
        {"ceiling": 1},
        {"effective_batch_size": 4, "ceiling": "target"},
        {"isolation": "none"},
        {"effective_batch_size": 4, "soak_steps": 1},
        {"memory_limit": 1},
        {"train": False, "evaluate": True, "ceiling": 64},
        {"train": True, "evaluate": True, "effective_batch_size": 64},
    ],
)
def test_a_value_at_its_bound_is_taken(arguments: dict[str, Any]) -> None:
    options = Options(**arguments)

    assert {name: getattr(options, name) for name in arguments} == arguments


def test_what_is_chosen_where_nothing_is_said() -> None:
    options = Options()

    assert (options.effective_batch_size, options.device, options.limit_bytes, options.largest_size) == (None,) * 4
    assert (options.headroom, options.data_parallel_size, options.equal) == (DEFAULT_HEADROOM, 1, False)
    assert (options.isolation, options.limits, options.soak_steps) == ("process", Limits(), None)
    assert (options.train, options.evaluate) == (True, False)


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, None), (123, 123), ("123", 123), ("512MiB", 512 * MIB), ("1.5g", 3 * GIB // 2)]
)
def test_the_memory_limit_in_bytes(limit: int | str | None, expected: int | None) -> None:
    assert Options(memory_limit=limit).limit_bytes == expected


@pytest.mark.parametrize(
    ("effective", "replicas", "ceiling", "expected"),
    [
        (512, 1, "target", 512),
        (512, 3, "target", 171),
        (512, 512, "target", 1),
        (513, 512, "target", 2),
        (512, 1, 64, 64),
        (512, 8, 4096, 4096),
        (None, 1, 64, 64),
        (512, 1, None, None),
    ],
)
def test_the_largest_size_to_try(effective: int | None, replicas: int, ceiling: Any, expected: int | None) -> None:
    options = Options(effective_batch_size=effective, data_parallel_size=replicas, ceiling=ceiling)

    assert options.largest_size == expected


@given(st.integers(1, 64), st.data())
def test_a_replicas_share_is_the_largest_size_that_a_plan_could_use(replicas: int, data: st.DataObject) -> None:
    effective = data.draw(st.integers(replicas, 2**60))
    size = Options(effective_batch_size=effective, data_parallel_size=replicas, ceiling="target").largest_size

    assert size is not None
    assert size * replicas >= effective
    assert (size - 1) * replicas < effective

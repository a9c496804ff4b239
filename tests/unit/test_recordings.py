from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_recordings import BASE, Traced, recording, small_training

from profiler.simulation.recordings import Difference, Recording, Step, first_difference, from_bytes, to_bytes
from profiler.simulation.snapshots import Reading, steps_of
from profiler.units import MIB

FILES = sorted((Path(__file__).parents[1] / "data" / "recordings").glob("*.jsonl.gz"))
NONE_YET = pytest.param(None, id="none", marks=pytest.mark.skip(reason="no GPU's allocator has been recorded yet"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FILES] or [NONE_YET])
def test_the_model_is_the_recorded_allocator_to_the_byte(path: Path) -> None:
    assert first_difference(from_bytes(path.read_bytes())) is None


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FILES] or [NONE_YET])
def test_recordings_are_small(path: Path) -> None:
    assert path.stat().st_size < 200_000


# --- Replays -------------------------------------------------------------------------------------------------------

# 3 MiB of a shared segment of 20 MiB; 12 MiB of the other 17, of which 5 remain; then a segment of its own.
STEPS = (
    Step("allocate", 3 * MIB - 1, 0, 20 * MIB, 3 * MIB, BASE),
    Step("allocate", 12 * MIB, 0, 20 * MIB, 15 * MIB),
    Step("free", 0, 0, 20 * MIB),
    Step("allocate", 14 * MIB, 0, 34 * MIB, 26 * MIB, BASE + 64 * MIB),
    Step("free", 2, 0, 34 * MIB, 12 * MIB),
    Step("release", 0, 0, 20 * MIB),
)


def test_a_recording_of_what_the_model_does_shows_no_difference() -> None:
    assert first_difference(recording(*STEPS)) is None
    assert first_difference(recording(*STEPS), own_addresses=True) is None


@pytest.mark.parametrize(
    ("index", "changes", "difference"),
    [
        pytest.param(
            1,
            {"active_bytes": 15 * MIB + 512},
            Difference(step=1, what="active", recorded_bytes=15 * MIB + 512, replayed_bytes=15 * MIB),
            id="active bytes",
        ),
        pytest.param(
            3,
            {"reserved_bytes": 36 * MIB},
            Difference(step=3, what="reserved", recorded_bytes=36 * MIB, replayed_bytes=34 * MIB),
            id="reserved bytes",
        ),
        pytest.param(
            5,
            {"reserved_bytes": 34 * MIB},
            Difference(step=5, what="reserved", recorded_bytes=34 * MIB, replayed_bytes=20 * MIB),
            id="a release that released nothing",
        ),
        pytest.param(
            3,
            {"kind": "refused"},
            Difference(step=3, what="given", recorded_bytes=0, replayed_bytes=14 * MIB),
            id="a request that was refused",
        ),
    ],
)
def test_the_first_difference_is_found(index: int, changes: dict[str, Any], difference: Difference) -> None:
    steps = list(STEPS)
    steps[index] = steps[index]._replace(**changes)

    assert first_difference(recording(*steps)) == difference


def test_a_request_that_the_model_refuses_is_a_difference() -> None:
    assert first_difference(recording(*STEPS, capacity_bytes=32 * MIB)) == Difference(
        step=3, what="given", recorded_bytes=14 * MIB, replayed_bytes=0
    )


def test_where_the_driver_put_segments_decides_between_equal_blocks() -> None:
    # 4 MiB are free behind 12 of 16 and behind 20 of 24; the next 4 go to the lower, whose segment then stays.
    steps = (
        Step("allocate", 16 * MIB, 0, 16 * MIB, 16 * MIB, BASE + 64 * MIB),
        Step("free", 0, 0, 16 * MIB),
        Step("allocate", 12 * MIB, 0, 16 * MIB, 12 * MIB),
        Step("allocate", 24 * MIB, 0, 40 * MIB, 36 * MIB, BASE),
        Step("free", 2, 0, 40 * MIB),
        Step("allocate", 20 * MIB, 0, 40 * MIB, 32 * MIB),
        Step("allocate", 4 * MIB, 0, 40 * MIB, 36 * MIB),
        Step("free", 1, 0, 40 * MIB),
        Step("free", 3, 0, 40 * MIB, 4 * MIB),
        Step("release", 0, 0, 24 * MIB),
    )

    assert first_difference(recording(*steps)) is None
    assert first_difference(recording(*steps), own_addresses=True) == Difference(
        step=9, what="reserved", recorded_bytes=24 * MIB, replayed_bytes=16 * MIB
    )


# --- Files ---------------------------------------------------------------------------------------------------------


def test_a_file_holds_the_recording() -> None:
    for made in (recording(*STEPS), small_training().recording()):
        assert from_bytes(to_bytes(made)) == made
        assert to_bytes(made) == to_bytes(from_bytes(to_bytes(made)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(['{"format": 7}'], "is of format 7, and 1 is read here", id="format"),
        pytest.param(['["a",512,0,2097152]', '["f",0,0]', '["f",0,0]'], "Step 2 frees allocation 0", id="freed twice"),
        pytest.param(['["f",0,0]'], "Step 0 frees allocation 0, which is not live", id="freed before it began"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused(lines: list[str], message: str) -> None:
    head = gzip.decompress(to_bytes(recording())).decode().strip()
    content = "\n".join(lines if "format" in lines[0] else [head, *lines])

    with pytest.raises(ValueError, match=message):
        from_bytes(gzip.compress(content.encode()))


# --- Snapshots -----------------------------------------------------------------------------------------------------


def entry(action: str, size: int, address: int = 0, **more: Any) -> dict[str, Any]:
    """As torch writes it, with what is not read here."""
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 1, "frames": [], **more}


def test_a_snapshot_as_torch_writes_it_is_read() -> None:
    trace = [
        entry("segment_alloc", 2 * MIB, BASE),
        entry("alloc", 1000, BASE),
        entry("alloc", 1, BASE + 1024, stream=94_000_000),
        entry("free_requested", 1000, BASE),
        entry("snapshot", 0),
        entry("free_completed", 1000, BASE),
        entry("segment_alloc", 12 * MIB, BASE + 32 * MIB),
        entry("alloc", 12 * MIB, BASE + 32 * MIB),
        entry("free_completed", 12 * MIB, BASE + 32 * MIB),
        entry("segment_free", 12 * MIB, BASE + 32 * MIB),
    ]
    blocks = [
        {"size": 1024, "requested_size": 0, "address": BASE, "state": "inactive", "frames": []},
        {"size": 512, "requested_size": 1, "address": BASE + 1024, "state": "active_allocated", "frames": []},
        {"size": 2 * MIB - 1536, "requested_size": 0, "address": BASE + 1536, "state": "inactive", "frames": []},
    ]
    segment = {
        "device": 0,
        "address": BASE,
        "total_size": 2 * MIB,
        "stream": 0,
        "segment_type": "small",
        "blocks": blocks,
    }
    other = {**segment, "device": 1, "total_size": 20 * MIB}
    snapshot = {"segments": [segment, other], "device_traces": [trace, [entry("alloc", 5)]]}

    steps = steps_of(snapshot, [Reading(0, 0), Reading(2, 1536), Reading(5, 512)])

    assert steps == (
        Step("allocate", 1000, 0, 2 * MIB, None, BASE),
        Step("allocate", 1, 1, 2 * MIB, 1536),
        Step("free", 0, 0, 2 * MIB),
        Step("allocate", 12 * MIB, 0, 14 * MIB, None, BASE + 32 * MIB),
        Step("free", 2, 0, 14 * MIB, 512),
        Step("release", 0, 0, 2 * MIB),
    )


def test_what_was_released_for_a_request_is_told_from_what_the_program_released() -> None:
    made = small_training().recording()

    kinds = [step.kind for step in made.steps]
    assert (kinds.count("release"), kinds.count("refused")) == (1, 1)
    assert first_difference(made) is None


def lost_beginning(snapshot: dict[str, Any]) -> None:
    del snapshot["device_traces"][0][:4]


def lost_weights(snapshot: dict[str, Any]) -> None:
    del snapshot["device_traces"][0][1]


def lost_end(snapshot: dict[str, Any]) -> None:
    snapshot["device_traces"][0].append(entry("segment_alloc", 2 * MIB))


def of_expandable_segments(snapshot: dict[str, Any]) -> None:
    snapshot["device_traces"][0].insert(0, entry("segment_map", 2 * MIB))


def with_sizes_of_blocks(snapshot: dict[str, Any]) -> None:
    for each in snapshot["device_traces"][0]:
        each["size"] = -(-each["size"] // 512) * 512


def without_an_event(snapshot: dict[str, Any]) -> None:
    trace = snapshot["device_traces"][0]
    snapshot["device_traces"][0] = [each for each in trace if each["size"] != 700]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lost_beginning, "frees what it did not allocate, at event", id="no beginning"),
        pytest.param(lost_weights, "lacks the allocation of a live block of 3146240 bytes", id="no weights"),
        pytest.param(lost_end, "reserved bytes and the snapshot has", id="another state"),
        pytest.param(of_expandable_segments, "'segment_map', which is not compared", id="expandable segments"),
        pytest.param(with_sizes_of_blocks, "bytes for a block of .* for which 3145828 were asked", id="block sizes"),
        pytest.param(without_an_event, "events and the allocator counted", id="a lost event"),
    ],
)
def test_a_snapshot_that_cannot_be_trusted_is_refused(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    traced = small_training()
    snapshot = traced.snapshot()
    spoil(snapshot)

    with pytest.raises(ValueError, match=message):
        steps_of(snapshot, traced.readings, capacity_bytes=traced.capacity_bytes)


@st.composite
def histories(draw: st.DrawFn) -> Traced:
    """What may happen in an allocator with little room, read now and then."""
    traced = Traced(capacity_bytes=draw(st.integers(10, 80)) * 2 * MIB)
    live: list[int] = []
    for storage in range(draw(st.integers(1, 40))):
        size_bytes = draw(st.one_of(st.integers(1, 2 * MIB), st.integers(MIB, 40 * MIB)))
        if traced.allocate(storage, size_bytes, draw(st.sampled_from((0, 0, 0, 1)))):
            live.append(storage)
        while draw(st.booleans()) and live:
            traced.free(live.pop(draw(st.integers(0, len(live) - 1))))
        # Right before a request for which there is no room, a release of the program's own cannot be told from the request's.
        if traced.allocator.reserved_bytes + 40 * MIB <= traced.capacity_bytes and draw(st.integers(0, 3)) == 0:
            traced.empty_cache()
        if draw(st.booleans()):
            traced.read()
    return traced


@settings(deadline=None)
@given(traced=histories())
def test_the_model_is_any_recorded_plain_allocator_to_the_byte(traced: Traced) -> None:
    made = traced.recording()

    assert first_difference(made) is None
    assert from_bytes(to_bytes(made)) == made


@settings(deadline=None)
@given(traced=histories(), data=st.data())
def test_a_wrong_byte_is_found_where_it_is(traced: Traced, data: st.DataObject) -> None:
    made = traced.recording()
    index = data.draw(st.integers(0, len(made.steps) - 1))
    step = made.steps[index]
    wrong = step._replace(reserved_bytes=step.reserved_bytes + data.draw(st.sampled_from((-1, 1))))
    steps = (*made.steps[:index], wrong, *made.steps[index + 1 :])

    found = first_difference(Recording(origin=made.origin, steps=steps))

    assert found is not None
    assert (found.step, found.what, found.recorded_bytes) == (index, "reserved", wrong.reserved_bytes)

"""How long a micro-batch takes: warm up, synchronise, windows, aggregate."""

from __future__ import annotations

from math import ceil
from time import perf_counter
from typing import Any

from profiler.devices import Device
from profiler.outcomes import Strategy, Throughput
from profiler.steps import Training, run_step

# Windows are long against a clock's resolution and a scheduler's slice. Where one micro-step alone is longer than
# LONG_SECONDS, fewer windows tell as much, and the user waits.
WINDOWS = 5
WINDOW_SECONDS = 0.1
LONG_WINDOWS = 3
LONG_SECONDS = 0.2
# NVML refreshes its energy counter every 20 to 100 ms.
ENERGY_WINDOW_SECONDS = 1.0


def measure_throughput(training: Training, device: Device, size: int) -> Throughput:
    """Seconds of forward and backward at `size`, and of the optimizer's step, in several windows after a warm-up.

    The batch is made once: making batches is the data loader's time, not the micro-batch's. Gradients are alive while
    they accumulate, as in training. Lazy initialisation, compilation and algorithm search fall into the warm-up.
    """
    run_step(training, Strategy.ACCUMULATION, (size,))
    batch = training.batch(size)
    first = _window(training, device, batch, 1)
    windows = WINDOWS if first < LONG_SECONDS else LONG_WINDOWS
    steps = max(1, ceil(WINDOW_SECONDS / first))
    # A single step that fills a window is one already.
    micro_steps: list[float] = [first] if steps == 1 else []
    optimizer_steps: list[float] = []
    while len(optimizer_steps) < windows:
        if len(micro_steps) == len(optimizer_steps):
            micro_steps.append(_window(training, device, batch, steps) / steps)
        optimizer_steps.append(_optimizer_window(training, device))
    energy_note = device.energy_why_not()
    return Throughput(
        micro_batch_size=size,
        micro_step_seconds=tuple(micro_steps),
        optimizer_seconds=tuple(optimizer_steps),
        joules_per_sample=_joules_per_sample(training, device, batch, size) if energy_note is None else None,
        energy_note=energy_note,
    )


def _window(training: Training, device: Device, batch: Any, steps: int) -> float:
    """Seconds of `steps` forwards and backwards."""
    device.synchronize()
    start = perf_counter()
    for _ in range(steps):
        training.passes.backward(training.passes.forward(batch))
    device.synchronize()
    return perf_counter() - start


def _optimizer_window(training: Training, device: Device) -> float:
    """Seconds of one optimizer step; the gradients are let go of after it, as at the start of the next step."""
    device.synchronize()
    start = perf_counter()
    training.optimizer_step()
    device.synchronize()
    seconds = perf_counter() - start
    training.optimizer.zero_grad(set_to_none=True)
    return seconds


def _joules_per_sample(training: Training, device: Device, batch: Any, size: int) -> float | None:
    """Energy of forward and backward by the device's counter, over a window long enough for it."""
    before = device.energy_joules()
    seconds, steps = 0.0, 0
    while seconds < ENERGY_WINDOW_SECONDS:
        count = max(1, ceil(WINDOW_SECONDS / max(seconds / steps, 1e-6))) if steps else 1
        seconds += _window(training, device, batch, count)
        steps += count
    after = device.energy_joules()
    return None if before is None or after is None else (after - before) / (steps * size)

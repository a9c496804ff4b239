"""Every face of out-of-memory: raised by a device in a whole search, and by a worker to the judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

from faults.fake_device import Card, workload
from faults.test_devices import LARGEST, plug_in
from profiler import Options
from profiler.devices.out_of_memory import Failure
from profiler.errors import MicrobatchError, TrialError, WorkloadError
from profiler.events import unobserved
from profiler.finder import find_largest
from profiler.judge import Circumstances, outcome_of
from profiler.opening import open_prober
from profiler.outcomes import Finding, OutOfMemory, Refused
from profiler.trial import Failed
from profiler.units import GIB, MIB
from profiler.workers.protocol import Died, TimedOut

CPU, CUDA = "cpu", "cuda:0"
# What a failure is, on each device: the answer; the answer if memory was nearly full; an error about the host's memory; the
# workload's own.
FULL, NEARLY, HOST, LIMIT, BUG = "full", "nearly", "host", "limit", "bug"


@dataclass(frozen=True, slots=True)
class Face:
    text: str
    on_cpu: str
    on_cuda: str
    kind: Callable[[str], BaseException] = RuntimeError


def compiled(inner: Exception) -> Callable[[str], BaseException]:
    return lambda text: BackendCompilerFailed(SimpleNamespace(__name__="inductor"), InductorError(inner, None), None)


CUDA_FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB"
CPU_FULL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
FACES = (
    # Certain, of a GPU.
    Face(CUDA_FULL, BUG, FULL, torch.OutOfMemoryError),
    Face(CUDA_FULL, BUG, FULL),
    Face("CUDA error: out of memory", BUG, FULL, torch.AcceleratorError),
    Face("CUDA error: out of memory", BUG, FULL),
    Face("HIP out of memory. Tried to allocate 20.00 MiB", BUG, FULL),
    Face("XPU out of memory. Tried to allocate 512.00 MiB", BUG, FULL),
    Face("MPS backend out of memory (MPS allocated: 1.23 GB, other allocations: 2.00 MB)", BUG, FULL),
    Face("Triton Error [CUDA]: out of memory", BUG, FULL),
    Face("std::bad_alloc: cudaErrorMemoryAllocation: out of memory", BUG, FULL),
    Face("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", BUG, FULL),
    Face("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", BUG, FULL),
    Face("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", BUG, FULL),
    Face("code: ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", BUG, FULL),
    Face("Allocation is out of device memory on current platform.", BUG, FULL),
    Face("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::4194304", BUG, FULL),
    Face("RESOURCE_EXHAUSTED: Attempting to reserve 5.00G at the bottom of memory", BUG, FULL),
    Face("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'", BUG, FULL),
    Face("unhandled cuda error\nhost:7 [0] NCCL WARN Cuda failure 'out of memory'", BUG, FULL),
    Face("Caught OutOfMemoryError in replica 1 on device 1.\nOriginal Traceback", BUG, FULL),
    Face("in the compiler", BUG, FULL, compiled(torch.OutOfMemoryError(CUDA_FULL))),
    # Certain, of the host.
    Face("", FULL, HOST, MemoryError),
    Face("std::bad_alloc", FULL, HOST),
    Face(CPU_FULL, FULL, HOST),
    Face("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes", FULL, HOST),
    Face("level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)", FULL, HOST),
    Face("in the compiler", FULL, HOST, compiled(MemoryError())),
    # The host's, beside what is measured.
    Face("DataLoader worker (pid 4711) is killed by signal: Killed. ", HOST, HOST),
    Face("ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient (shm).", HOST, HOST),
    # Suspect.
    Face("could not create a primitive", NEARLY, BUG),
    Face("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a", BUG, NEARLY),
    Face("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", BUG, NEARLY),
    Face("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", BUG, NEARLY),
    Face("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", BUG, NEARLY),
    Face("Unable to find a valid cuDNN algorithm to run convolution", BUG, NEARLY),
    Face("GET was unable to find an engine to execute this computation", BUG, NEARLY),
    Face("FIND was unable to find an engine to execute this computation", BUG, NEARLY),
    Face("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", BUG, NEARLY),
    Face("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle, opa)`", BUG, NEARLY),
    Face('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1016', BUG, NEARLY),
    Face("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", NEARLY, NEARLY),
    # Never.
    Face("CUDA error: device-side assert triggered", BUG, BUG, torch.AcceleratorError),
    Face("CUDA error: an illegal memory access was encountered", BUG, BUG, torch.AcceleratorError),
    Face("CUDA error: misaligned address", BUG, BUG, torch.AcceleratorError),
    Face("CUDA error: invalid configuration argument", LIMIT, LIMIT, torch.AcceleratorError),
    Face("input tensor must fit into 32-bit index math", LIMIT, LIMIT),
    Face("the grid must have at most 65,535 blocks", LIMIT, LIMIT),
    Face("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", BUG, BUG),
    Face("mat1 and mat2 must have the same dtype, but got Float and Half", BUG, BUG),
    Face("Expected all tensors to be on the same device, but found at least two devices", BUG, BUG),
    Face("Expected more than 1 value per channel when training, got input size [1, 8]", BUG, BUG, ValueError),
    Face("out of resource: shared memory, Required: 196608, Hardware limit: 101376. Reducing block", LIMIT, LIMIT),
    Face("out of resource: shared memory, Required: 1, Hardware limit: 0", LIMIT, LIMIT, torch.OutOfMemoryError),
    # Of no meaning, though it has the words.
    Face("cuda", BUG, BUG),
    Face("beware of CUDA out of memory errors at this size", BUG, BUG),
)
NAMES = [f"{face.kind.__name__}: {face.text[:50]}" for face in FACES]

ERRORS: dict[str, tuple[type[MicrobatchError], str]] = {
    HOST: (TrialError, "ran out of host memory outside what is measured on"),
    BUG: (WorkloadError, "the workload failed at micro-batch size"),
    NEARLY: (WorkloadError, "the workload failed at micro-batch size"),
}


def search(monkeypatch: pytest.MonkeyPatch, card: Card) -> Finding:
    plug_in(card, monkeypatch)
    with open_prober(workload(card), Options(device=CUDA, isolation="none"), unobserved) as (prober, _):
        return find_largest(prober)


@pytest.mark.parametrize("face", FACES, ids=NAMES)
def test_a_search_on_a_gpu_that_says_so_beyond_its_capacity(
    quick_collection: None, monkeypatch: pytest.MonkeyPatch, face: Face
) -> None:
    card = Card(full=lambda: face.kind(face.text))
    if face.on_cuda in (FULL, NEARLY, LIMIT):
        finding = search(monkeypatch, card)
        assert (finding.largest_fit, finding.smallest_misfit) == (LARGEST, LARGEST + 1)
        assert finding.limited_by == ("refusal" if face.on_cuda == LIMIT else "memory")
    else:
        kind, words = ERRORS[face.on_cuda]
        with pytest.raises(MicrobatchError, match=words) as caught:
            search(monkeypatch, card)
        assert isinstance(caught.value, kind)
        assert len(card.refused) == 1


@pytest.mark.parametrize("face", [face for face in FACES if face.on_cuda == NEARLY], ids=lambda face: face.text[:50])
def test_a_search_on_a_gpu_that_says_so_far_below_its_capacity(
    quick_collection: None, monkeypatch: pytest.MonkeyPatch, face: Face
) -> None:
    class Broken(Card):
        def hold(self, phase: str, samples: int) -> None:
            if phase == "forward" and samples > 3:
                raise face.kind(face.text)
            Card.hold(self, phase, samples)

    with pytest.raises(WorkloadError, match="failed at micro-batch size 4, in its forward"):
        search(monkeypatch, Broken())


def circumstances(device: str, *, nearly: bool) -> Circumstances:
    return Circumstances(
        micro_batch_size=8,
        device=device,
        capacity_bytes=GIB,
        predicted_bytes=GIB if nearly else GIB // 2,
        smaller_fits=True,
        largest_ran=4,
    )


def judged(reply: Any, device: str, *, nearly: bool) -> str:
    """What a reply means, in this table's words."""
    try:
        outcome = outcome_of(reply, circumstances(device, nearly=nearly))
    except TrialError as error:
        return HOST if "ran out of host memory" in str(error) else BUG
    except WorkloadError:
        return BUG
    assert isinstance(outcome, OutOfMemory | Refused)
    assert outcome.evidence
    return FULL if isinstance(outcome, OutOfMemory) else LIMIT


def raised(face: Face) -> Failed:
    error = face.kind(face.text)
    return Failed(
        failure=Failure.of(error),
        phase="forward",
        message=f"{type(error).__name__}: {face.text}",
        user_traceback=None,
        refusal=None,
        peak_bytes=MIB,
        seconds=1.0,
    )


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("face", FACES, ids=NAMES)
def test_a_worker_that_reports_it(face: Face, device: str) -> None:
    expected = face.on_cpu if device == CPU else face.on_cuda

    assert judged(raised(face), device, nearly=True) == (FULL if expected == NEARLY else expected)
    assert judged(raised(face), device, nearly=False) == (BUG if expected == NEARLY else expected)


TERMINATED = "terminate called after throwing an instance of "
# (exit status, last words, on the CPU, on a GPU)
DEATHS = [
    (-9, "", FULL, HOST),
    (137, "", FULL, HOST),
    (-7, "", FULL, HOST),
    (-6, f"{TERMINATED}'std::bad_alloc'\n  what():  std::bad_alloc\n", FULL, HOST),
    (-6, f"{TERMINATED}'c10::OutOfMemoryError'\n  what():  {CUDA_FULL}\n", BUG, FULL),
    (-6, "free(): invalid pointer\n", BUG, BUG),
    (1, "\nlibgomp: Thread creation failed: Resource temporarily unavailable\n", FULL, HOST),
    (1, f"Traceback (most recent call last):\n  File ...\ntorch.OutOfMemoryError: {CUDA_FULL}\n", BUG, FULL),
    (1, "Traceback (most recent call last):\n  File ...\nMemoryError\n", FULL, HOST),
    (0, "", BUG, BUG),
    (3, "bye\n", BUG, BUG),
    (-11, "", BUG, BUG),
    (-15, "", BUG, BUG),
    (None, "", BUG, BUG),
]


@pytest.mark.parametrize("nearly", [True, False])
@pytest.mark.parametrize(("exit_status", "said", "on_cpu", "on_cuda"), DEATHS)
def test_a_worker_that_dies_of_it(exit_status: int | None, said: str, on_cpu: str, on_cuda: str, nearly: bool) -> None:
    died = Died(exit_status=exit_status, output=said)

    assert (judged(died, CPU, nearly=nearly), judged(died, CUDA, nearly=nearly)) == (on_cpu, on_cuda)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_time_out_counts_near_the_capacity_alone(device: str) -> None:
    timed_out = TimedOut(seconds=120.0, output="")

    assert judged(timed_out, device, nearly=True) == FULL
    assert judged(timed_out, device, nearly=False) == BUG

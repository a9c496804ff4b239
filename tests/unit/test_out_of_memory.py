from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

from profiler.devices.out_of_memory import ABOUT_CAPACITY, NEARLY_FULL, Failure, Raised, Verdict, classify, confirms
from profiler.units import GIB, MIB

CERTAIN, SUSPECT, HOST, NEVER, CEILING, TOO_FEW, LOST, UNKNOWN = Verdict
DEVICE_TYPES = ("cpu", "cuda")
E = TypeVar("E", bound=BaseException)

CUDA_FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB"
CPU_FULL = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "2147483648 bytes. Error code 12 (Cannot allocate memory)"
)
ASSERTED = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
CUDNN = "cuDNN error: CUDNN_STATUS"
CUBLAS = "CUDA error: CUBLAS_STATUS"
ON_CHIP = "out of resource: shared memory, Required: 196608, Hardware limit: 101376. Reducing block sizes may help."
TERMINATED = "terminate called after throwing an instance of "

# (text of a RuntimeError, verdict on the CPU, verdict on CUDA)
TEXTS = [
    (CUDA_FULL, NEVER, CERTAIN),
    ("HIP out of memory. Tried to allocate 20.00 MiB", NEVER, CERTAIN),
    ("XPU out of memory. Tried to allocate 512.00 MiB", NEVER, CERTAIN),
    ("MPS backend out of memory (MPS allocated: 1.23 GB, other allocations: 2.00 MB)", NEVER, CERTAIN),
    ("CUDA error: out of memory", NEVER, CERTAIN),
    ("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the CUDA documentation", NEVER, CERTAIN),
    ("CUDA driver error: out of memory", NEVER, CERTAIN),
    ("HIP error: out of memory", NEVER, CERTAIN),
    ("Triton Error [CUDA]: out of memory", NEVER, CERTAIN),
    ("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY", NEVER, CERTAIN),
    ("std::bad_alloc: cudaErrorMemoryAllocation: out of memory", NEVER, CERTAIN),
    ("std::bad_alloc: out of memory", NEVER, CERTAIN),
    (f"{CUBLAS}_ALLOC_FAILED when calling `cublasCreate(handle)`", NEVER, CERTAIN),
    (f"{CUDNN}_ALLOC_FAILED", NEVER, CERTAIN),
    (f"{CUDNN}_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", NEVER, CERTAIN),
    ("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", NEVER, CERTAIN),
    ("ze error at zeCommandQueueExecuteCommandLists, code: ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", NEVER, CERTAIN),
    ("Allocation is out of device memory on current platform.", NEVER, CERTAIN),
    ("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::4194304", NEVER, CERTAIN),
    ("RESOURCE_EXHAUSTED: Attempting to reserve 5.00G at the bottom of memory", NEVER, CERTAIN),
    ("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'", NEVER, CERTAIN),
    ("unhandled cuda error\nhost:7 [0] NCCL WARN Cuda failure 'out of memory'", NEVER, CERTAIN),
    ("Caught OutOfMemoryError in replica 1 on device 1.\nOriginal Traceback", NEVER, CERTAIN),
    # host memory: the answer on the CPU, an error on a GPU
    (CPU_FULL, CERTAIN, HOST),
    ("[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried", CERTAIN, HOST),
    ("Could not allocate memory to change Tensor SizesAndStrides!", CERTAIN, HOST),
    ("std::bad_alloc", CERTAIN, HOST),
    ("unable to mmap 4096 bytes from file </tmp/weights.pt>: Cannot allocate memory (12)", CERTAIN, HOST),
    ("level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)", CERTAIN, HOST),
    (f"{CUDNN}_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", CERTAIN, HOST),
    # host memory that belongs to other processes: an error everywhere
    ("DataLoader worker (pid 4711) is killed by signal: Killed. ", HOST, HOST),
    ("DataLoader worker (pid 4711) is killed by signal: Bus error. ", HOST, HOST),
    ("ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient (shm).", HOST, HOST),
    ("unable to open shared memory object </torch_7> in read-write mode: Cannot allocate memory (12)", HOST, HOST),
    ("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)", HOST, HOST),
    # suspects
    ("could not create a primitive", SUSPECT, UNKNOWN),
    ("could not execute a primitive", SUSPECT, UNKNOWN),
    ("can't start new thread", SUSPECT, UNKNOWN),
    ("blas_thread_init: pthread_create failed for thread 1 of 4: Resource temporarily unavailable", SUSPECT, UNKNOWN),
    ("Resource temporarily unavailable", SUSPECT, UNKNOWN),
    (f"{CUDNN}_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.", NEVER, SUSPECT),
    (f"{CUDNN}_INTERNAL_ERROR", NEVER, SUSPECT),
    (f"{CUDNN}_EXECUTION_FAILED", NEVER, SUSPECT),
    (f"{CUDNN}_NOT_INITIALIZED", NEVER, SUSPECT),
    ("Unable to find a valid cuDNN algorithm to run convolution", NEVER, SUSPECT),
    ("GET was unable to find an engine to execute this computation", NEVER, SUSPECT),
    ("FIND was unable to find an engine to execute this computation", NEVER, SUSPECT),
    (f"{CUBLAS}_NOT_INITIALIZED when calling `cublasCreate(handle)`", NEVER, SUSPECT),
    (f"{CUBLAS}_EXECUTION_FAILED when calling `cublasSgemm(handle, opa)`", NEVER, SUSPECT),
    ('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1016', NEVER, SUSPECT),
    ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", SUSPECT, SUSPECT),
    ("Timed out waiting 1800000ms for recv operation to complete", SUSPECT, SUSPECT),
    # never
    (ASSERTED, NEVER, NEVER),
    ("CUDA error: an illegal memory access was encountered", NEVER, NEVER),
    ("CUDA error: misaligned address", NEVER, NEVER),
    ("CUDA error: invalid configuration argument", CEILING, CEILING),
    (
        "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false",
        CEILING,
        CEILING,
    ),
    ("input tensor must fit into 32-bit index math", CEILING, CEILING),
    ("nonzero is not supported for tensors with more than INT_MAX elements", CEILING, CEILING),
    ("the batch must be at most 65,535", CEILING, CEILING),
    ("Expected more than 1 value per channel when training, got input size torch.Size([1, 8])", TOO_FEW, TOO_FEW),
    (ON_CHIP, CEILING, CEILING),
    (f"No valid triton configs. OutOfMemoryError: {ON_CHIP}", CEILING, CEILING),
    ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", NEVER, NEVER),
    ("mat1 and mat2 must have the same dtype, but got Float and Half", NEVER, NEVER),
    ("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!", NEVER, NEVER),
]

NEAR_MISSES = [
    "",
    "cuda",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA initialization: the memory of this GPU is not visible",
    "the replay memory is too small for this batch",
    "out of memory slots: raise num_slots",
    "an episode ran out of memory cells",
    "beware of CUDA out of memory errors at this size",
    "there is not enough memory in the queue",
    "cannot allocate memory cells for 12 heads",
    "the user's MemoryError handler failed",
    "StatusCode.RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)",
    "[Errno 11] Resource temporarily unavailable",
    "could not create a primitive descriptor for the matmul primitive",
    "DataLoader worker (pid 4711) is killed by signal: Segmentation fault. ",
    "unable to open shared memory object </torch_7> in read-write mode: Too many open files (24)",
    "Triton Error [CUDA]: invalid argument",
    "the learning rate schedule has 65535 steps",
]

# (exit status, output, verdict on the CPU, verdict on CUDA)
DEATHS = [
    (-9, "", CERTAIN, HOST),
    (137, "", CERTAIN, HOST),
    (-7, "", CERTAIN, HOST),
    (135, "", CERTAIN, HOST),
    (-6, f"{TERMINATED}'std::bad_alloc'\n  what():  std::bad_alloc\n", CERTAIN, HOST),
    (134, f"{TERMINATED}'std::bad_alloc'\n  what():  std::bad_alloc\n", CERTAIN, HOST),
    (-6, "libc++abi: terminating due to uncaught exception of type std::bad_alloc", CERTAIN, HOST),
    (-6, f"{TERMINATED}'c10::Error'\n  what():  {CPU_FULL}\nException raised from alloc_cpu\n#0 ...", CERTAIN, HOST),
    (
        -6,
        f"{TERMINATED}'c10::Error'\n  what():  {CPU_FULL}\n\nFatal Python error: Aborted\n\nThread 1\n",
        CERTAIN,
        HOST,
    ),
    (-6, f"{TERMINATED}'c10::OutOfMemoryError'\n  what():  {CUDA_FULL}\n", NEVER, CERTAIN),
    (-6, f"{TERMINATED}'thrust::system::detail::bad_alloc'\n  what():  std::bad_alloc: out", NEVER, CERTAIN),
    (-6, f"{TERMINATED}'std::system_error'\n  what():  Resource temporarily unavailable\n", SUSPECT, UNKNOWN),
    (-6, f"{TERMINATED}'c10::AcceleratorError'\n  what():  {ASSERTED}\n", NEVER, NEVER),
    (-6, "Fatal Python error: Cannot recover from MemoryErrors while normalizing exceptions.\n", CERTAIN, HOST),
    (-6, "double free or corruption (out)\n", UNKNOWN, UNKNOWN),
    (-6, "", UNKNOWN, UNKNOWN),
    (1, "\nlibgomp: Thread creation failed: Resource temporarily unavailable\n", CERTAIN, HOST),
    (1, "\nlibgomp: Out of memory allocating 8192 bytes\n", CERTAIN, HOST),
    (1, "OMP: Error #34: System unable to allocate necessary resources for OMP thread:\nOMP: Hint", CERTAIN, HOST),
    (1, "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.\n", CERTAIN, HOST),
    (2, "\nIntel oneMKL FATAL ERROR: memory allocation error.\n", CERTAIN, HOST),
    (1, "Traceback (most recent call last):\n  File ...\nMemoryError\n", CERTAIN, HOST),
    (1, f"Traceback (most recent call last):\n  File ...\ntorch.OutOfMemoryError: {CUDA_FULL}\n", NEVER, CERTAIN),
    (1, "Traceback (most recent call last):\n  File ...\nSystemError: bad call\n", UNKNOWN, UNKNOWN),
    (
        1,
        "Traceback (most recent call last):\nMemoryError\n\nDuring handling of the above exception, another exception "
        "occurred:\n\nTraceback (most recent call last):\nValueError: no report\n",
        CERTAIN,
        HOST,
    ),
    # an out-of-memory that was survived, then another end
    (1, f"skipped a batch: {CPU_FULL}\nTraceback (most recent call last):\nSystemError: bad call\n", UNKNOWN, UNKNOWN),
    (-6, f"skipped a batch: {CUDA_FULL}\nepoch 2\nfree(): invalid pointer\n", UNKNOWN, UNKNOWN),
    (0, "", UNKNOWN, UNKNOWN),
    (1, "", UNKNOWN, UNKNOWN),
    (-11, "", UNKNOWN, UNKNOWN),
    (-11, f"{TERMINATED}'std::bad_alloc'", UNKNOWN, UNKNOWN),
    (139, "", UNKNOWN, UNKNOWN),
    (-15, "", UNKNOWN, UNKNOWN),
]


class Interrupted(Exception):
    """A class of the user's, which can be weakly referenced."""


class Unprintable(RuntimeError):
    def __str__(self) -> str:
        raise ValueError("no text")


def verdicts(failure: Failure) -> tuple[Verdict, ...]:
    return tuple(classify(failure, device_type=device_type).verdict for device_type in DEVICE_TYPES)


def verdicts_on(error: BaseException) -> tuple[Verdict, ...]:
    return verdicts(Failure.of(error))


def caused(error: E, cause: BaseException) -> E:
    error.__cause__ = cause
    return error


def while_handling(error: E, handled: BaseException) -> E:
    error.__context__ = handled
    return error


def raised_by(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(("text", "on_cpu", "on_cuda"), TEXTS, ids=[text[:60] for text, *_ in TEXTS])
def test_texts(text: str, on_cpu: Verdict, on_cuda: Verdict) -> None:
    assert verdicts_on(RuntimeError(text)) == (on_cpu, on_cuda)


@pytest.mark.parametrize("text", NEAR_MISSES)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, Interrupted])
def test_texts_that_only_sound_like_it(kind: type[Exception], text: str) -> None:
    assert verdicts_on(kind(text)) == (UNKNOWN, UNKNOWN)


@pytest.mark.parametrize(
    ("error", "on_cpu", "on_cuda"),
    [
        (torch.OutOfMemoryError(CUDA_FULL), NEVER, CERTAIN),
        (torch.OutOfMemoryError("in other words"), NEVER, CERTAIN),
        (torch.AcceleratorError("CUDA error: out of memory"), NEVER, CERTAIN),
        (torch.AcceleratorError("out of memory in other words"), NEVER, CERTAIN),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), UNKNOWN, UNKNOWN),
        (torch.AcceleratorError(ASSERTED), NEVER, NEVER),
        (torch.OutOfMemoryError(ON_CHIP), CEILING, CEILING),
        (MemoryError(), CERTAIN, HOST),
        (MemoryError("invalid configuration argument"), CERTAIN, HOST),
        (MemoryError("std::bad_alloc: cudaErrorMemoryAllocation: out of memory"), NEVER, CERTAIN),
        (OSError(12, "Cannot allocate memory"), CERTAIN, HOST),
        (OSError(12, "in other words", "/dev/zero"), CERTAIN, HOST),
        (BlockingIOError(11, "Resource temporarily unavailable"), UNKNOWN, UNKNOWN),
        (KeyError("memory"), UNKNOWN, UNKNOWN),
        (Unprintable(), UNKNOWN, UNKNOWN),
    ],
)
def test_classes(error: Exception, on_cpu: Verdict, on_cuda: Verdict) -> None:
    assert verdicts_on(error) == (on_cpu, on_cuda)


def test_a_subclass_counts_as_its_base() -> None:
    class ArrayMemoryError(MemoryError):
        pass

    class OutOfMemoryError(RuntimeError):  # the name alone says nothing
        pass

    assert verdicts_on(ArrayMemoryError("Unable to allocate 30.5 MiB for an array")) == (CERTAIN, HOST)
    assert verdicts_on(OutOfMemoryError("slots")) == (UNKNOWN, UNKNOWN)


def test_cupys_memory_error_is_the_gpus() -> None:
    classes = ("cupy.cuda.memory.OutOfMemoryError", "MemoryError", "Exception", "BaseException", "object")

    assert verdicts(Failure(errors=(Raised(classes=classes, text="Out of memory allocating"),))) == (NEVER, CERTAIN)


@pytest.mark.parametrize(("exit_status", "output", "on_cpu", "on_cuda"), DEATHS)
def test_deaths(exit_status: int, output: str, on_cpu: Verdict, on_cuda: Verdict) -> None:
    failure = Failure(errors=(), exit_status=exit_status, stderr=output, timed_out=False)

    assert verdicts(failure) == (on_cpu, on_cuda)


def test_a_time_out_is_a_suspect_whatever_was_printed() -> None:
    failure = Failure(errors=(), exit_status=None, stderr=ASSERTED, timed_out=True)

    assert verdicts(failure) == (SUSPECT, SUSPECT)


def test_nothing_known_is_unknown() -> None:
    assert verdicts(Failure(errors=())) == (UNKNOWN, UNKNOWN)


@pytest.mark.parametrize(
    ("error", "on_cpu"),
    [
        (lambda: torch.empty(2**50), CERTAIN),
        (lambda: bytes(2**60), CERTAIN),
        (lambda: nn.Linear(3, 2)(torch.ones(4, 5)), NEVER),
        (lambda: torch.ones(2, 3) + torch.ones(4, 5), NEVER),
        (lambda: torch.ones(2, 3) @ torch.ones(3, 2, dtype=torch.float64), NEVER),
        (lambda: nn.BatchNorm1d(3)(torch.ones(1, 3)), TOO_FEW),
        (lambda: torch.ones(2).view(3), NEVER),
        (lambda: torch.ones(2)[3], UNKNOWN),
        (lambda: torch.load("/no/such/file"), UNKNOWN),
    ],
)
def test_what_torch_really_raises(error: Callable[[], object], on_cpu: Verdict) -> None:
    assert classify(Failure.of(raised_by(error)), device_type="cpu").verdict is on_cpu


@pytest.mark.parametrize(
    ("inner", "on_cpu", "on_cuda"),
    [
        (torch.OutOfMemoryError(CUDA_FULL), NEVER, CERTAIN),
        (MemoryError(), CERTAIN, HOST),
        (RuntimeError(CPU_FULL), CERTAIN, HOST),
        (RuntimeError(ON_CHIP), CEILING, CEILING),
        (ValueError("no lowering for memory"), UNKNOWN, UNKNOWN),
    ],
)
def test_the_compilers_errors_mean_what_is_inside(inner: Exception, on_cpu: Verdict, on_cuda: Verdict) -> None:
    wrapped = [
        InductorError(inner, None),
        BackendCompilerFailed(SimpleNamespace(__name__="inductor"), inner, None),
        BackendCompilerFailed(SimpleNamespace(__name__="inductor"), InductorError(inner, None), None),
    ]
    without_inner = [RuntimeError(str(error)) for error in wrapped]  # as text that went through another process

    for error in (*wrapped, *without_inner):
        assert verdicts_on(error) == (on_cpu, on_cuda), repr(error)


CHAINS = [
    # what stands behind an error of the user's counts
    (caused(ValueError("a"), RuntimeError(CPU_FULL)), (CERTAIN, HOST)),
    (while_handling(ValueError("b"), MemoryError()), (CERTAIN, HOST)),
    (caused(ValueError("c"), while_handling(KeyError("c"), caused(KeyError("c"), MemoryError()))), (CERTAIN, HOST)),
    # a suspect is certain where certainty stands behind it
    (while_handling(RuntimeError("could not create a primitive"), MemoryError()), (CERTAIN, HOST)),
    (while_handling(RuntimeError(f"{CUDNN}_INTERNAL_ERROR"), RuntimeError(ASSERTED)), (NEVER, NEVER)),
    # the actual error decides: what was being handled comes after what was raised
    (while_handling(RuntimeError(CPU_FULL), RuntimeError(ON_CHIP)), (CERTAIN, HOST)),
    (while_handling(RuntimeError(ON_CHIP), RuntimeError(CPU_FULL)), (CEILING, CEILING)),
    (while_handling(RuntimeError(ASSERTED), torch.OutOfMemoryError(CUDA_FULL)), (NEVER, NEVER)),
    (while_handling(RuntimeError(CPU_FULL), torch.OutOfMemoryError(CUDA_FULL)), (CERTAIN, HOST)),
    # a cause is as actual as its effect, and then a bug comes first
    (caused(torch.OutOfMemoryError(CUDA_FULL), RuntimeError(ASSERTED)), (NEVER, NEVER)),
    (caused(RuntimeError(ASSERTED), torch.OutOfMemoryError(CUDA_FULL)), (NEVER, NEVER)),
    # groups are as good as their members
    (ExceptionGroup("g", [ValueError("d"), MemoryError()]), (CERTAIN, HOST)),
    (ExceptionGroup("g", [ExceptionGroup("h", [caused(KeyError("e"), RuntimeError(CPU_FULL))])]), (CERTAIN, HOST)),
    (ExceptionGroup("g", [MemoryError(), RuntimeError(ASSERTED)]), (NEVER, NEVER)),
    (BaseExceptionGroup("g", [KeyboardInterrupt(), MemoryError()]), (CERTAIN, HOST)),
    (ExceptionGroup("g", [ValueError("f")]), (UNKNOWN, UNKNOWN)),
]


@pytest.mark.parametrize(("error", "expected"), CHAINS)
def test_the_whole_chain_is_walked(error: BaseException, expected: tuple[Verdict, ...]) -> None:
    assert verdicts_on(error) == expected


def test_a_context_that_was_suppressed_does_not_count() -> None:
    def load() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("use another file") from None

    assert verdicts_on(raised_by(load)) == (UNKNOWN, UNKNOWN)


def test_the_handlers_between_are_counted() -> None:
    handled = while_handling(KeyError("first"), OSError("before it"))
    error = while_handling(caused(ValueError("last"), TypeError("why")), handled)
    error.__suppress_context__ = False  # as if both were shown

    found = [(raised.classes[0], raised.handlers) for raised in Failure.of(error).errors]
    assert found == [("ValueError", 0), ("TypeError", 0), ("KeyError", 1), ("OSError", 2)]


def test_cycles_end() -> None:
    first, second = ValueError("first"), MemoryError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__ = first.__context__ or second
    alone = InductorError(ValueError("third"), None)
    alone.inner_exception = alone

    assert verdicts_on(first) == (CERTAIN, HOST)
    assert len(Failure.of(first).errors) == 2
    assert len(Failure.of(alone).errors) == 1


def test_long_chains_end() -> None:
    error: BaseException = MemoryError()
    for _ in range(5000):
        error = while_handling(ValueError("again"), error)

    assert verdicts_on(error) == (CERTAIN, HOST)
    assert len(Failure.of(error).errors) == 5001


def test_a_failure_survives_pickling() -> None:
    error = caused(Interrupted("the user's class, which another process may not know"), MemoryError())
    failure = Failure.of(error)
    copy = pickle.loads(pickle.dumps(failure))

    assert copy == failure
    assert verdicts(copy) == (CERTAIN, HOST)
    assert f"{__name__}.Interrupted" in copy.errors[0].classes
    assert all(type(name) is str for raised in copy.errors for name in (*raised.classes, raised.text))


def fail_holding(kept: list[weakref.ref[object]]) -> None:
    tensor = torch.ones(8)
    kept.append(weakref.ref(tensor))
    error = Interrupted("with a tensor in its frame")
    kept.append(weakref.ref(error))
    try:
        raise error
    finally:
        del error


@pytest.fixture
def _without_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collection")
def test_neither_the_exception_nor_its_frames_are_kept() -> None:
    kept: list[weakref.ref[object]] = []
    failure = None
    try:
        fail_holding(kept)
    except Interrupted as error:
        failure = Failure.of(error)

    assert failure is not None
    assert failure.errors[0].text == "with a tensor in its frame"
    assert [reference() for reference in kept] == [None, None]


def test_evidence_names_what_was_recognised_and_what_it_means() -> None:
    def evidence(error: BaseException, device_type: str) -> str:
        return classify(Failure.of(error), device_type=device_type).evidence

    killed = Failure(errors=(), exit_status=-9)

    assert evidence(RuntimeError(CPU_FULL), "cpu") == (
        'RuntimeError says "DefaultCPUAllocator: can\'t allocate memory": host memory ran out'
    )
    assert evidence(torch.OutOfMemoryError(CUDA_FULL), "cuda") == (
        "torch.OutOfMemoryError was raised: the GPU is out of memory"
    )
    assert evidence(RuntimeError("could not create a primitive"), "cpu") == (
        'RuntimeError says "could not create a primitive": libraries also say this when host memory is short'
    )
    assert classify(killed, device_type="cpu").evidence == "the worker was ended by SIGKILL: host memory ran out"


def test_the_module_does_without_torch() -> None:
    code = "import sys, profiler.devices.out_of_memory; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("peak_bytes", "predicted_bytes", "smaller_fits", "expected"),
    [
        (500 * MIB, None, True, "a smaller size fits, and memory was nearly full (peak 500 MiB of 512 MiB)"),
        (
            300 * MIB,
            530 * MIB,
            True,
            "a smaller size fits, and the line through smaller sizes predicts 530 MiB of 512 MiB",
        ),
        (
            500 * MIB,
            2 * GIB,
            True,
            "a smaller size fits, and memory was nearly full (peak 500 MiB of 512 MiB) and the line through smaller "
            "sizes predicts 2 GiB of 512 MiB",
        ),
        (None, 530 * MIB, True, "a smaller size fits, and the line through smaller sizes predicts 530 MiB of 512 MiB"),
        (500 * MIB, 530 * MIB, False, None),
        (300 * MIB, None, True, None),
        (300 * MIB, 400 * MIB, True, None),
        (None, None, True, None),
    ],
)
def test_what_confirms_a_suspicion(
    peak_bytes: int | None, predicted_bytes: int | None, smaller_fits: bool, expected: str | None
) -> None:
    found = confirms(
        peak_bytes=peak_bytes,
        predicted_bytes=predicted_bytes,
        capacity_bytes=512 * MIB,
        smaller_fits=smaller_fits,
    )

    assert found == expected


def test_the_thresholds_of_a_confirmation() -> None:
    def confirmed(**numbers: int) -> bool:
        known: dict[str, int | None] = {"peak_bytes": None, "predicted_bytes": None, **numbers}
        return confirms(capacity_bytes=1000, smaller_fits=True, **known) is not None

    assert confirmed(peak_bytes=int(1000 * NEARLY_FULL))
    assert not confirmed(peak_bytes=int(1000 * NEARLY_FULL) - 1)
    assert confirmed(predicted_bytes=int(1000 * ABOUT_CAPACITY))
    assert not confirmed(predicted_bytes=int(1000 * ABOUT_CAPACITY) - 1)

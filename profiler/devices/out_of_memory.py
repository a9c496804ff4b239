"""Is a failure out of memory? The one place that recognises it, by class first, by text second, and by the device.

The worker turns what was raised into a `Failure`, plain data without exceptions, since a traceback keeps the tensors of
its frames alive. `classify` looks it up in one table, where host memory that ran out is the answer on the CPU and an
error on a GPU, and the memory of a GPU is no limit of the CPU. Standard library only: classes are compared by name.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from profiler.units import format_bytes

# A suspect was refused what it asked for, so its peak stays below the capacity by as much: a tenth is left for that.
NEARLY_FULL = 0.9
# A peak rises faster than the line through smaller sizes, never slower, and workspaces and fragments come on top, so a
# line that ends a tenth under the capacity may mean all of it. Trials predicted above it run in workers of their own.
ABOUT_CAPACITY = 0.9


class Verdict(StrEnum):
    """What a failure says about the memory of the device that was tried."""

    CERTAIN = "certain"  # it was out of memory
    SUSPECT = "suspect"  # it may have been: `confirms` decides
    HOST_MEMORY = "host"  # host memory ran out, and that is not what was being measured
    NEVER = "never"  # it is known, and something else
    CEILING = "ceiling"  # another limit on the size than memory
    TOO_FEW = "too few"  # a limit from below: larger sizes can be trained
    LOST = "lost"  # the device itself is gone
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """One exception as data: the qualified names of its class and bases, nearest first, and its text.

    handlers: 0 for the exception that ended the trial, its causes and the members of its group; 1 for one that was
    being handled when such a one was raised, and so on.
    """

    classes: tuple[str, ...]
    text: str
    handlers: int = 0

    @classmethod
    def of(cls, error: BaseException, handlers: int) -> Raised:
        """`error` without its traceback."""
        names = tuple(f"{base.__module__}.{base.__qualname__}".removeprefix("builtins.") for base in type(error).mro())
        return cls(classes=names, text=_text(error), handlers=handlers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a trial ended: by exceptions, by its worker's death (exit_status and the end of its output), or by no end."""

    errors: tuple[Raised, ...]
    exit_status: int | None = None
    stderr: str = ""
    timed_out: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What was raised, with everything behind it; `error` itself is not kept."""
        return cls(errors=tuple(Raised.of(link, handlers) for link, handlers in _chain(error)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict and the reason for it, in words that can follow a colon."""

    verdict: Verdict
    evidence: str


@dataclass(frozen=True, slots=True)
class _Meaning:
    words: str
    on_cpu: Verdict
    on_cuda: Verdict

    def verdict_on(self, device_type: str) -> Verdict:
        return self.on_cpu if device_type == "cpu" else self.on_cuda

    def judgement(self, what: str, device_type: str) -> Judgement:
        return Judgement(verdict=self.verdict_on(device_type), evidence=f"{what}: {self.words}")


_BUG = _Meaning("a mistake in the workload, not memory", Verdict.NEVER, Verdict.NEVER)
_GONE = _Meaning("the device itself failed or is gone", Verdict.UNKNOWN, Verdict.LOST)
_CEILING = _Meaning("another limit than the device's memory", Verdict.CEILING, Verdict.CEILING)
_TOO_FEW = _Meaning("the model trains larger micro-batches only", Verdict.TOO_FEW, Verdict.TOO_FEW)
_GPU_FULL = _Meaning("the GPU is out of memory", Verdict.NEVER, Verdict.CERTAIN)
_HOST_FULL = _Meaning("host memory ran out", Verdict.CERTAIN, Verdict.HOST_MEMORY)
# Data-loader workers and shared memory are outside the budget of a CPU trial too.
_HELPER_FULL = _Meaning("host memory outside the worker ran out", Verdict.HOST_MEMORY, Verdict.HOST_MEMORY)
_GPU_SUSPECT = _Meaning("GPU libraries also say this when memory is short", Verdict.NEVER, Verdict.SUSPECT)
_HOST_SUSPECT = _Meaning("libraries also say this when host memory is short", Verdict.SUSPECT, Verdict.UNKNOWN)
_STALL = _Meaning("a lack of memory can be the reason", Verdict.SUSPECT, Verdict.SUSPECT)


@dataclass(frozen=True, slots=True)
class _Rule:
    """Knows an exception by its class (any, if none is named) and by its text (one of the expressions)."""

    meaning: _Meaning
    texts: tuple[str, ...] = ("",)
    classes: frozenset[str] = frozenset()

    def match(self, error: Raised) -> str | None:
        """The recognised part of the text, empty where the class was enough; None if the rule does not apply."""
        if self.classes and self.classes.isdisjoint(error.classes):
            return None
        found = re.search("|".join(self.texts), error.text, re.MULTILINE)
        return None if found is None else " ".join(found[0].split())


# The first rule that knows an exception speaks for it. Rules without a class read the last words of a dead worker too.
_RULES = (
    # Errors that leave the CUDA context unusable (CUDA runtime API, cudaError_t).
    _Rule(_BUG, (r"device-side assert triggered|an illegal memory access was encountered|misaligned address",)),
    # A card that fell off its bus, was reset or taken away (CUDA runtime API, NVML): no size and no code is the reason.
    _Rule(
        _GONE,
        (
            r"no CUDA-capable device is detected|No CUDA GPUs are available|GPU is lost|GPU has fallen off the bus",
            r"CUDA-capable device\(s\) is/are busy or unavailable|uncorrectable (?:NVLink|ECC) error",
        ),
    ),
    # Triton: the on-chip memory of one kernel. Before the classes, since torch's compiler can name it OutOfMemoryError.
    _Rule(_CEILING, (r"out of resource: [\w ]*",)),
    # Device memory by class. CuPy's is a MemoryError as well, so it comes before the host's.
    _Rule(_GPU_FULL, classes=frozenset({"torch.OutOfMemoryError", "cupy.cuda.memory.OutOfMemoryError"})),
    _Rule(_GPU_FULL, (r"\bout of memory\b",), frozenset({"torch.AcceleratorError"})),
    # Device memory by text: torch's allocators, DataParallel, Thrust (its bad_alloc is the device's), CUDA and HIP,
    # Triton, NCCL, NVIDIA's libraries, oneAPI, Habana, XLA (gRPC, which shares its status, writes StatusCode first).
    _Rule(
        _GPU_FULL,
        (
            r"(?:^|: +)(?:CUDA|HIP|XPU) out of memory\.|MPS backend out of memory \(MPS allocated:",
            r"Caught OutOfMemoryError in replica \d+ on device \d+|thrust::\S*\bbad_alloc\b|\bbad_alloc: out of memory",
            r"(?:CUDA|HIP)(?: driver)? error: out of memory\b|\bcudaErrorMemoryAllocation\b",
            r"Triton Error \[\w+\]: out of memory\b|Cuda failure (?:\d+ )?'out of memory'|\bCUDA_ERROR_OUT_OF_MEMORY\b",
            r"\b(?:CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_(?:INTERNAL_ERROR_DEVICE_)?ALLOC(?:ATION)?_FAILED\b",
            r"\b(?:UR|ZE)_RESULT_ERROR_OUT_OF_DEVICE_MEMORY\b|Allocation is out of device memory on current platform",
            r"MODULE:PT_DEVMEM Allocation failed|(?<!StatusCode\.)\bRESOURCE_EXHAUSTED\b",
        ),
    ),
    # Host memory of other processes: torch's data loader and its shared memory (/dev/shm).
    _Rule(
        _HELPER_FULL,
        (
            r"DataLoader worker \(pid \d+\) is killed by signal: (?:Killed|Bus error)",
            r"Unexpected bus error encountered in worker|unable to write to file </torch_",
            r"unable to (?:open|allocate) shared memory.*: (?:Cannot allocate memory|No space left on device)",
        ),
    ),
    # Host memory: Python, torch's CPU allocator and tensor headers, C++, errno ENOMEM, cuDNN, oneAPI; then libraries
    # that end the process. OpenMP's threads start before the budget does, so a limit on the number of processes, which
    # would read the same, has shown by then.
    _Rule(_HOST_FULL, classes=frozenset({"MemoryError"})),
    _Rule(
        _HOST_FULL,
        (
            r"(?:^|: )(?:[\w.]+\.)?(?:_Array)?MemoryError(?=:|$)|Cannot recover from MemoryErrors",
            r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|Could not allocate memory .*SizesAndStrides",
            r"\bbad_alloc\b|\[Errno 12\]|Cannot allocate memory(?: \(12\)|\)|$)",
            r"\bCUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED\b|\b(?:UR|ZE)_RESULT_ERROR_OUT_OF_HOST_MEMORY\b",
            r"libgomp: (?:Thread creation failed|Out of memory)|OMP: Error #34: System unable to allocate",
            r"OpenBLAS error: Memory allocation still failed|MKL FATAL ERROR: memory allocation error",
        ),
    ),
    # Other ceilings: the grid of a kernel launch (65,535 blocks in y and z), 32-bit indexing.
    _Rule(
        _CEILING,
        (
            r"invalid configuration argument|canUse32BitIndexMath|\b32-bit ind(?:ex|ices)|\bINT_MAX\b",
            r"(?:\bthan|\bmost|\bexceeds?|<=?) (?:65,?53[56]|2\^31|2,?147,?483,?64[78])\b",
        ),
    ),
    # BatchNorm's lower bound on the size (torch.nn.functional); InstanceNorm's is on the sample, which no size mends.
    _Rule(_TOO_FEW, (r"Expected more than 1 value per channel when training",)),
    # Mismatches of shape, dtype and device, as torch words them.
    _Rule(
        _BUG,
        (
            r"Expected more than 1 spatial element|Expected all tensors to be on the same device",
            r"shapes cannot be multiplied|must match the size of tensor|size mismatch|is invalid for input of size",
            r"expected scalar type|have the same dtype|\" not implemented for '",
        ),
    ),
    # cuDNN and cuBLAS without a workspace or a handle, and the caching allocator when it cannot ask NVML about memory.
    _Rule(
        _GPU_SUSPECT,
        (
            r"\bCUDNN_STATUS_(?:NOT_SUPPORTED|INTERNAL_ERROR)|\bCU(DNN|BLAS)_STATUS_(EXECUTION_FAILED|NOT_INITIALIZED)",
            r"Unable to find a valid cuDNN algorithm to run convolution|\b(?:GET|FIND) was unable to find an engine",
            r"NVML_SUCCESS == .*INTERNAL ASSERT FAILED at \"[^\"]*CUDACachingAllocator",
        ),
    ),
    # oneDNN without its scratch memory (a missing descriptor is another matter: an operation that it does not support);
    # a thread without its stack (EAGAIN, which a limit on the number of processes gives as well).
    _Rule(
        _HOST_SUSPECT,
        (
            r"could not (?:create|execute) a primitive(?! descriptor)|can't start new thread|pthread_create failed",
            r"(?:^|what\(\):\s+)Resource temporarily unavailable",
        ),
    ),
    # Collectives of NCCL and Gloo.
    _Rule(_STALL, (r"caught collective operation timeout|Timed out waiting \d+ms for (?:recv|send) operation",)),
)

# Linux's out-of-memory killer, and a page that Linux could not provide.
_SIGNALS = {9: "SIGKILL", 7: "SIGBUS"}
# Where C++, Python or a library begins to say why the process ends. What was printed before is a log, in which an
# out-of-memory may have been survived. A traceback that continues another is part of it, and so is Python's "Aborted".
_LAST_WORDS = re.compile(
    r"^(?:terminate called|libc\+\+abi: terminating|Fatal Python error: (?!Aborted)|libgomp: |OMP: Error|OpenBLAS error"
    r"|(?<!another exception occurred:\n\n)(?<!direct cause of the following exception:\n\n)Traceback \(most recent)",
    re.MULTILINE,
)
# Between exceptions of one standing: a bug is reported, whatever else went wrong with it.
_PRECEDENCE = (
    Verdict.LOST,
    Verdict.NEVER,
    Verdict.TOO_FEW,
    Verdict.CEILING,
    Verdict.CERTAIN,
    Verdict.HOST_MEMORY,
    Verdict.SUSPECT,
)


def classify(failure: Failure, *, device_type: str) -> Judgement:
    """What `failure` says about the memory of the device, "cpu" or "cuda", that was tried."""
    if failure.timed_out:
        return _STALL.judgement("the trial reached its time limit", device_type)
    if failure.exit_status is not None:
        return _classify_death(failure.exit_status, failure.stderr, device_type)
    return _classify_errors(failure.errors, device_type)


def was_killed(failure: Failure) -> bool:
    """Whether the worker was ended by a signal that memory is only one reason for: it says nothing about a size by itself."""
    return failure.exit_status is not None and _signal_of(failure.exit_status) in _SIGNALS


def confirms(
    *, peak_bytes: int | None, predicted_bytes: int | None, capacity_bytes: int, smaller_fits: bool
) -> str | None:
    """Why a suspect counts: a smaller size ran, and the peak or the line is near the capacity. None if it does not."""
    reasons, capacity = [], format_bytes(capacity_bytes)
    if peak_bytes is not None and peak_bytes >= NEARLY_FULL * capacity_bytes:
        reasons.append(f"memory was nearly full (peak {format_bytes(peak_bytes)} of {capacity})")
    if predicted_bytes is not None and predicted_bytes >= ABOUT_CAPACITY * capacity_bytes:
        reasons.append(f"the line through smaller sizes predicts {format_bytes(predicted_bytes)} of {capacity}")
    return f"a smaller size fits, and {' and '.join(reasons)}" if smaller_fits and reasons else None


def _classify_errors(errors: Iterable[Raised], device_type: str) -> Judgement:
    """The verdict on what ended the trial, or on what was being handled where the former says nothing for certain."""
    known = [
        (judgement.verdict is Verdict.SUSPECT, error.handlers, _PRECEDENCE.index(judgement.verdict), judgement)
        for error in errors
        if (judgement := _recognise(error, device_type)) is not None
    ]
    if not known:
        return Judgement(verdict=Verdict.UNKNOWN, evidence="nothing in it is known to mean memory")
    return min(known, key=lambda candidate: candidate[:3])[-1]


def _recognise(error: Raised, device_type: str) -> Judgement | None:
    who = error.classes[0] if error.classes else "the end of the worker's output"
    for rule in _RULES:
        text = rule.match(error)
        if text is not None and rule.meaning.verdict_on(device_type) is not Verdict.UNKNOWN:
            return rule.meaning.judgement(f'{who} says "{text}"' if text else f"{who} was raised", device_type)
    return None


def _classify_death(exit_status: int, output: str, device_type: str) -> Judgement:
    """A process that exits or aborts says why, one that is killed cannot; shells add 128 to the signal's number."""
    signal = _signal_of(exit_status)
    if signal in _SIGNALS:
        return _HOST_FULL.judgement(f"the worker was ended by {_SIGNALS[signal]}", device_type)
    said = _last_words(output) if signal in (0, 6) else ""  # it exited, or SIGABRT
    return _classify_errors([Raised(classes=(), text=said)], device_type)


def _signal_of(exit_status: int) -> int:
    return -exit_status if exit_status < 0 else max(exit_status - 128, 0)


def _last_words(output: str) -> str:
    starts = [match.start() for match in _LAST_WORDS.finditer(output)]
    return output[starts[-1] :] if starts else output.strip().rpartition("\n")[2]


def _chain(error: BaseException) -> Iterator[tuple[BaseException, int]]:
    """`error` and every exception behind it, each once, nearest first, with the handlers in between."""
    waiting, seen = deque([(error, 0)]), set[int]()
    while waiting:
        link, handlers = waiting.popleft()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link, handlers
        waiting.extendleft((reason, handlers) for reason in reversed(_reasons(link)))
        if link.__context__ is not None and not link.__suppress_context__:
            waiting.append((link.__context__, handlers + 1))


def _reasons(error: BaseException) -> list[BaseException]:
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    # torch's compiler raises BackendCompilerFailed and InductorError "from None" and keeps the reason here.
    inner = vars(error).get("inner_exception")
    return [reason for reason in (error.__cause__, inner, *members) if isinstance(reason, BaseException)]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of the user's that cannot print itself is still known by its name
        return ""

"""Arguments and options that several subcommands share, as types for typer."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from profiler.errors import UsageError
from profiler.limits import VERIFICATION_SECONDS, Limits
from profiler.options import DEFAULT_HEADROOM, Options
from profiler.targets import TargetOptions

DEFAULT_TARGET = "digits-resnet"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

Target = Annotated[
    str,
    typer.Argument(
        help="What is trained: an example (digits-cnn, digits-resnet, text-gpt), an architecture (torchvision:resnet50, "
        "timm:vit_base_patch16_224, hf:gpt2), or your own path/to/file.py:factory or package.module:factory.",
        show_default=True,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda:N, or sim:NAME for a card that is not here, such as sim:rtx4090 or sim:24GiB (`microbatch devices` "
        "lists them): everything is predicted. Default: the first GPU that can be used, else the CPU.",
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        metavar="SIZE",
        help="Budget, such as 2GiB, enforced. Default: all that is free on a GPU, 512MiB on the CPU.",
    ),
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, tf32, bf16 or fp16 (autocast). Default: the workload's own.")
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Pass the model through torch.compile, or not.")
]
WorstCase = Annotated[
    bool, typer.Option("--worst-case", help="Take the largest samples of the workload's Dataset, not its first.")
]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="For torchvision: and timm: names.")]
SequenceLength = Annotated[int | None, typer.Option("--sequence-length", help="For hf: names.")]
Classes = Annotated[int | None, typer.Option("--classes", help="Number of classes, for architectures that classify.")]
TrialTimeout = Annotated[
    float, typer.Option("--trial-timeout", metavar="SECONDS", help="Time limit of one trial.", show_default=True)
]
VerificationTimeout = Annotated[
    float,
    typer.Option(
        "--verification-timeout",
        metavar="SECONDS",
        help="Time limit of running the plan, and of every five steps of its soak.",
        show_default=True,
    ),
]
Isolation = Annotated[
    str, typer.Option("--isolation", help="process: trials in workers. none: trials in this process.")
]
Assume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume",
        metavar="FILE:LINE=VALUE",
        help="On a simulated card: the number that a line of the model gives, or how many elements it selects, such as "
        "model.py:42=7 or model.py:42=12.5%. May be given several times.",
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="DIR",
        help="Go on with an interrupted run from its folder, as it began: give the folder alone. --json, --quiet and time "
        "limits may be given anew.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="Where results go. Default: a new folder in results/runs/."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the files of an earlier run in --output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def options(
    *,
    device: str | None,
    precision: str | None,
    compile: bool | None,
    worst_case: bool,
    image_size: int | None,
    sequence_length: int | None,
    classes: int | None,
    trial_timeout: float,
    isolation: str,
    assume: list[str] | None = None,
    effective_batch: int | None = None,
    memory_limit: str | None = None,
    headroom: float = DEFAULT_HEADROOM,
    data_parallel_size: int = 1,
    equal: bool = False,
    ceiling: str | None = None,
    multiple_of: int = 1,
    soak: int | None = None,
    verification_timeout: float = VERIFICATION_SECONDS,
    train: bool = False,
    evaluate: bool = False,
) -> Options:
    """What was typed as `Options`: first what every subcommand has that trains, then what probe alone has.

    Raises UsageError for a value out of range.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is unknown: use one of {', '.join(PRECISIONS)}.")
    return Options(
        train=train or not evaluate,
        evaluate=evaluate,
        effective_batch_size=effective_batch,
        device=device,
        memory_limit=memory_limit,
        headroom=headroom,
        data_parallel_size=data_parallel_size,
        ceiling=parse_ceiling(ceiling),
        multiple_of=multiple_of,
        equal=equal,
        soak_steps=soak,
        isolation=cast(Literal["process", "none"], isolation),
        assume=tuple(assume or ()),
        limits=Limits(trial_seconds=trial_timeout, verification_seconds=verification_timeout),
        target_options=TargetOptions(
            image_size=image_size,
            sequence_length=sequence_length,
            classes=classes,
            precision=cast(Literal["fp32", "tf32", "bf16", "fp16"] | None, precision),
            compile=compile,
            worst_case=worst_case,
        ),
        command=command_line(),
    )


def parse_ceiling(text: str | None) -> int | Literal["target"] | None:
    """The ceiling as `Options` takes it; UsageError for what is neither a number nor "target"."""
    if text is None or text == "target":
        return cast(Literal["target"] | None, text)
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"the ceiling {text!r} is no size: use a whole number, or 'target' for the effective batch.")
    return int(text)


def command_line() -> str:
    """What was typed, as it can be typed again."""
    return shlex.join(["microbatch", *sys.argv[1:]])

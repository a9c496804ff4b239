"""The parts of `benchmarks.gpu`: what each runs, and how long it should take on an H100."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.finders import EXAMPLES, OWN_TARGETS

ALL = "all"
# The context with its kernels lies inside the budget and takes more than half of it. Should it take all, the second.
SMALL = ("960MiB", "1536MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """The tests marked gpu."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`microbatch probe` under the first of `budgets` with which it succeeds."""

    name: str
    target: str
    budgets: tuple[str, ...]
    effective_batch: int
    precision: str = "fp32"
    compare: bool = True
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The search for the largest micro-batch alone, under each of `budgets`, in workers of one server."""

    name: str
    target: str
    budgets: tuple[str, ...]
    precision: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`microbatch check` of each target: whether accumulation equals the whole batch, on this device's kernels."""

    name: str
    targets: tuple[str, ...]
    precision: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finders:
    """`benchmarks.finders` on each target under one budget; a finder whose library is missing is a row that says so."""

    name: str
    targets: tuple[str, ...]
    budget: str
    precision: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recordings:
    """`benchmarks.gpu_recordings` of each target: what the allocator did, and whether its model does the same."""

    name: str
    targets: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """`benchmarks.gpu_prediction`: what the simulated card says, beside everything that the parts before measured."""

    name: str
    seconds: float


Part = Tests | Probe | Search | Check | Finders | Recordings | Prediction

RESNET, VIT, GPT = "torchvision:resnet50", "timm:vit_base_patch16_224", "hf:gpt2"
PARTS: tuple[Part, ...] = (
    Tests(name="tests", seconds=80),
    Check(name="checks", targets=EXAMPLES, precision="bf16", seconds=40),
    Probe(name="digits-resnet", target="digits-resnet", budgets=SMALL, effective_batch=256, seconds=60),
    Recordings(name="recordings", targets=("digits-resnet", GPT, RESNET, VIT), seconds=110),
    Probe(name="resnet50", target=RESNET, budgets=("24GiB",), effective_batch=512, precision="bf16", seconds=95),
    Search(name="gpt2-search", target=GPT, budgets=(ALL, "24GiB"), precision="bf16", seconds=75),
    Search(name="vit-search", target=VIT, budgets=(ALL, "24GiB"), precision="bf16", seconds=70),
    Search(name="resnet50-search", target=RESNET, budgets=(ALL, "16GiB"), precision="bf16", seconds=65),
    Probe(name="text-gpt", target="text-gpt", budgets=SMALL, effective_batch=256, compare=False, seconds=45),
    Probe(name="digits-cnn", target="digits-cnn", budgets=SMALL, effective_batch=256, compare=False, seconds=40),
    Search(name="gpt2-16GiB", target=GPT, budgets=("16GiB",), precision="bf16", seconds=35),
    Search(name="vit-16GiB", target=VIT, budgets=("16GiB",), precision="bf16", seconds=35),
    Prediction(name="prediction", seconds=150),
    Recordings(name="recordings-small", targets=("text-gpt", "digits-cnn"), seconds=50),
    Search(name="gpt2-budgets", target=GPT, budgets=("8GiB", "40GiB", "80GiB"), precision="bf16", seconds=100),
    Search(name="vit-budgets", target=VIT, budgets=("8GiB", "40GiB", "80GiB"), precision="bf16", seconds=95),
    Search(
        name="resnet50-budgets",
        target=RESNET,
        budgets=("8GiB", "24GiB", "40GiB", "80GiB"),
        precision="bf16",
        seconds=120,
    ),
    Probe(name="gpt2", target=GPT, budgets=("24GiB",), effective_batch=256, precision="bf16", seconds=110),
    Probe(name="vit", target=VIT, budgets=("24GiB",), effective_batch=512, precision="bf16", seconds=95),
    Finders(name="finders-small", targets=EXAMPLES, budget=SMALL[1], precision="fp32", seconds=520),
    Finders(name="finders-own", targets=OWN_TARGETS, budget="2GiB", precision="fp32", seconds=530),
    Finders(name="finders-large", targets=(RESNET, GPT), budget="24GiB", precision="bf16", seconds=500),
)

"""The order of the check: the batch as it trains, every way to its gradient, then what makes them differ."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import inf, isfinite

import torch
from torch import nn
from torch._dynamo import OptimizedModule

from profiler.checking.causes import find_causes
from profiler.checking.counts import samples_are_alike, shows_no_padding
from profiler.checking.decomposition import Counter, shares
from profiler.checking.draws import FixedDraws, module_names
from profiler.checking.facts import NUMPY, PYTHON, Facts
from profiler.checking.fields import Fields
from profiler.checking.gradients import gradients_of, norm
from profiler.checking.padding import collated_apart
from profiler.checking.state import batch_in_float64, copied, in_float64, modules_in, state_kept
from profiler.checking.subject import Subject, in_a_line
from profiler.checking.ways import Split, reference_of, splits_of, way, whole_way
from profiler.checking.words import in_words
from profiler.equivalence import Equivalence, Way
from profiler.errors import WorkloadError
from profiler.outcomes import Strategy
from profiler.parts import count_items
from profiler.steps import Training
from profiler.trial import check_finite

LARGEST_LEAST = 8
_DTYPES = {torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


def equivalence_of(training: Training, samples: int, *, thorough: bool) -> Equivalence:
    """Whether accumulation over parts of a batch of `samples` equals the whole batch, for this workload as it trains.

    thorough: every way, in fp64 and in the training precision; else a backward a part alone, in one precision.
    Raises whatever the workload raises in a whole batch, and WorkloadError where its loss is no number, where no part of
    the batch runs, or where `loss_items` gives what is no count.
    """
    declares = training.workload.loss_items is not None
    subject = _subject(training, samples)
    count = _counter(training, subject)
    steady = subject.is_steady()
    random_modules = _drawing(subject)
    least, too_small = _least(subject)
    subject = _with_fields(subject, least) if random_modules else subject
    splits = splits_of(samples, least, thorough=thorough)
    trained: tuple[Way, ...] = ()
    if thorough and subject.precision != "fp64":
        trained = _ways(subject, splits, count, thorough=True)
    with ExitStack() as stack:
        exact, why_not_exact = _exact(subject, stack)
        deciding = trained if trained and exact is subject else _ways(exact, splits, count, thorough=thorough)
        padded: Way | None = None
        if thorough and all(each.equal for each in deciding):
            sizes = splits[0]
            padded = collated_apart(exact, training.workload.make_batch, sizes, shares(sizes, count))
        found, causes = find_causes(exact, splits, least, count if declares else None)
    return in_words(
        Facts(
            samples=samples,
            precision=exact.precision,
            declares=declares,
            counted=(float(count(range(samples))), sum(float(count((place,))) for place in range(samples))),
            ways=deciding if deciding is trained else (*deciding, *trained),
            found=found,
            causes=causes,
            random_modules=random_modules,
            too_small=f"micro-batches of {least - 1}: {too_small}" if too_small else "",
            why_not_exact=why_not_exact,
            padded=padded,
            steady=steady,
            shows_no_padding=shows_no_padding(subject.batch, samples),
            alike=samples_are_alike(subject.batch, samples),
        )
    )


def _subject(training: Training, samples: int) -> Subject:
    """The workload on one batch, which ran once as it trains, so that a bug in it shows as that bug."""
    model = _uncompiled(training.model)
    passes = replace(training.passes, model=model, scaler=None)
    batch = copied(training.batch(samples))
    with state_kept(model):
        loss = passes.forward(copied(batch))
        passes.backward(loss)
        check_finite(float(loss.detach()))
        if not isfinite(norm(gradients_of(model))):
            raise WorkloadError(
                f"the loss of {samples} samples is a number, and its gradient is not: with it nothing can be compared. Look for "
                "roots, logarithms and divisions of zero."
            )
    model.zero_grad(set_to_none=True)
    subject = Subject(
        passes=passes,
        model=model,
        batch=batch,
        samples=samples,
        precision=_precision(model, training.workload.precision),
    )
    measured = subject.tried(subject.measure_rounding) if subject.precision != "fp64" else 0.0
    return subject.altered(rounding=inf if isinstance(measured, str) else measured)


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model itself where torch.compile wraps it: what is compared is arithmetic, and modes see no compiled operators."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(model, OptimizedModule) and isinstance(inner, nn.Module) else model


def _precision(model: nn.Module, declared: str) -> str:
    """What the model really trains in: a model of another type than fp32 without autocast has its own."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    only = next(iter(dtypes)) if len(dtypes) == 1 else None
    return _DTYPES.get(only, declared) if only is not None and declared == "fp32" else declared


def _counter(training: Training, subject: Subject) -> Counter:
    """What samples count by the workload's `loss_items`, asked once for each part; their number where it has none.

    Raises WorkloadError for what is no count, and where the whole batch counts nothing.
    """
    workload, phase = training.workload, training.phase
    if workload.loss_items is None:
        return len
    known: dict[tuple[int, ...], float] = {}

    def count(places: Sequence[int]) -> float:
        key = tuple(places)
        if key not in known:
            phase.name = "loss_items"
            (known[key],) = count_items([subject.take(places)], [len(key)], workload.loss_items)
        return known[key]

    if not count(range(subject.samples)):
        raise WorkloadError(
            f"loss_items counts nothing in a batch of {subject.samples} samples, so no part has a share of it: check what it "
            "counts, and the batch."
        )
    return count


def _drawing(subject: Subject) -> tuple[str, ...]:
    """The modules that draw random numbers in a forward, and other sources that change in it."""
    numpy = sys.modules.get("numpy")
    with module_names(subject.model) as where:
        states: list[tuple[object, ...]] = []
        watched = subject.altered(draws=FixedDraws(where), before_forward=(lambda: states.append(_states()),))
        watched.forward(range(subject.samples))
    names = list(watched.draws.drew)
    before, after = states[0], _states()
    names += [PYTHON] if before[0] != after[0] else []
    names += [NUMPY] if numpy is not None and before[1:] != after[1:] else []
    return tuple(names)


def _with_fields(subject: Subject, least: int) -> Subject:
    """The subject whose draws follow its samples, as far as the shapes that it draws show where those lie."""
    fields = Fields(samples=subject.samples)
    learning = subject.altered(draws=FixedDraws(fields=fields))
    shapes: list[dict[int, tuple[int, ...]]] = []
    for places in (range(subject.samples), range(least)):
        fields.seen = {}
        subject.tried(partial(learning.forward, places))
        shapes.append(fields.seen)
    fields.learn(shapes[0], shapes[1], least)
    return learning.altered()


def _states() -> tuple[object, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    _, keys, place, *rest = numpy.random.get_state()
    return (random.getstate(), keys.tobytes(), place, *rest)


def _least(subject: Subject) -> tuple[int, str]:
    """The smallest part that runs, and why a smaller one does not, "" where one sample does."""
    why = ""
    for size in range(1, min(LARGEST_LEAST, subject.samples // 2) + 1):
        got = subject.tried(partial(subject.part, range(size)))
        if not isinstance(got, str):
            return size, why
        why = why or got
    raise WorkloadError(
        f"a batch of {subject.samples} samples runs, and no smaller one of up to {min(LARGEST_LEAST, subject.samples // 2)} does: "
        f"{why}. Check more samples (--effective-batch {2 * subject.samples}), and that every tensor of the batch has its "
        "samples along dimension 0, where it is cut."
    )


def _exact(subject: Subject, stack: ExitStack) -> tuple[Subject, str]:
    """The subject in fp64, for as long as `stack` is open; itself, with the reason, where the model does not allow it."""
    if subject.precision == "fp64":
        return subject, ""
    with ExitStack() as trial:
        try:
            trial.enter_context(in_float64([subject.model, *modules_in(subject.passes.loss)]))
            passes = replace(subject.passes, autocast_dtype=None)
            exact = subject.altered(batch=batch_in_float64(subject.batch), passes=passes, precision="fp64")
            whole = exact.part(range(subject.samples))
            why = "" if isfinite(whole.loss) else "its loss is not a number there"
        except Exception as error:  # a type that a kernel does not have, memory for twice the bytes: all say no
            why = in_a_line(error)
        if not why:
            stack.enter_context(trial.pop_all())
            return exact, ""
    return subject, why


def _ways(subject: Subject, splits: tuple[Split, ...], count: Counter, *, thorough: bool) -> tuple[Way, ...]:
    weights = {sizes: shares(sizes, count) for sizes in splits}
    reference = reference_of(subject, splits[-1], weights[splits[-1]])
    strategies = (Strategy.SUMMED_LOSS, Strategy.ACCUMULATION) if thorough else (Strategy.ACCUMULATION,)
    others = (way(subject, reference, strategy, sizes, weights[sizes]) for strategy in strategies for sizes in splits)
    return (whole_way(subject, reference), *others)

"""What makes accumulation differ from the whole batch: how the loss decomposes, and the modules that break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

from profiler.checking.decomposition import Counter, Found, Measured, decompose, places_of
from profiler.checking.holding import held
from profiler.checking.mixing import mixing_modules
from profiler.checking.modules import batch_norms, frozen_statistics, hooked_parameters, keeping_state, without_hooks
from profiler.checking.state import put_state, state_of
from profiler.checking.subject import Part, Subject
from profiler.checking.ways import Split, deviation
from profiler.equivalence import Decomposition, Way

T = TypeVar("T")
# Each round takes some passes, and what is to be done is clear before.
MOST_ROUNDS = 4


class Kind(StrEnum):
    """What a module does that breaks the identity."""

    BATCH_NORM = "normalises by the micro-batch"
    STATE = "keeps state"
    HOOKS = "changes gradients"
    MIXING = "mixes samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Modules (of HOOKS, parameters) that break the identity, by qualified name, with their classes.

    active: how far they alone move the gradient of equal parts, relative to the whole one's norm; frozen: how far it is
    off without them. None where that could not be measured. breaks: whether they move it by more than rounding.
    is_model: whether it is the model itself, and no module in it. cannot_freeze: whether layers keep no statistics that
    evaluation mode would use.
    """

    kind: Kind
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    active: float | None = None
    frozen: float | None = None
    breaks: bool = True
    is_model: bool = False
    cannot_freeze: bool = False


def find_causes(
    subject: Subject, splits: tuple[Split, ...], least: int, declared: Counter | None
) -> tuple[Found, tuple[Cause, ...]]:
    """How the loss decomposes with everything switched off that could break it, and what breaks it switched on alone.

    declared: the workload's own `loss_items`, None where it counts samples.
    """
    present = _present(subject)
    with _quiet(subject, *present) as quiet:
        found, mixing = _decomposed(quiet, splits, least, declared)
        frozen = _deviation(quiet, splits[0], found) if present else None
    # Without weights that make the rest add up there is nothing that one cause alone could be measured against.
    known = found.decomposes is not Decomposition.NO and not mixing
    causes = [
        _measured_cause(subject, cause, present, splits[0], found, frozen) if known else _unmeasured(cause)
        for cause in present.values()
    ]
    if mixing:
        causes.append(_cause(subject, Kind.MIXING, mixing))
    return found, tuple(causes)


def _decomposed(
    subject: Subject, splits: tuple[Split, ...], least: int, declared: Counter | None
) -> tuple[Found, tuple[str, ...]]:
    """How the loss decomposes, behind modules that mix samples where there are any, and which those are.

    The first that mixes hides those behind it, so it is held and the search goes on.
    """
    mixing: tuple[str, ...] = ()
    found = decompose(subject, _measured(subject, splits), declared)
    for _ in range(MOST_ROUNDS if found.decomposes is Decomposition.NO else 0):
        more = _behind(subject, mixing, lambda behind: mixing_modules(behind, least))
        if isinstance(more, str) or not set(more) - set(mixing):
            break
        mixing = tuple(dict.fromkeys((*mixing, *more)))
        got = _behind(
            subject, mixing, lambda behind: decompose(behind, _measured(behind, splits), declared, pairs=False)
        )
        if isinstance(got, str):  # nothing behind them is trained
            break
        found = got
        if found.decomposes is not Decomposition.NO:
            break
    return found, mixing


def _behind(subject: Subject, mixing: tuple[str, ...], look: Callable[[Subject], T]) -> T | str:
    """What `look` sees behind those modules; the reason where it cannot be run there."""

    def behind() -> T:
        with held(subject, mixing) as quiet:
            return look(quiet)

    return subject.tried(behind)


def _present(subject: Subject) -> dict[Kind, Cause]:
    """What may break it, before it is measured."""
    norms = tuple(batch_norms(subject))
    found = {Kind.BATCH_NORM: norms, Kind.STATE: keeping_state(subject), Kind.HOOKS: hooked_parameters(subject.model)}
    return {
        kind: Cause(kind=kind, names=names) if kind is Kind.HOOKS else _cause(subject, kind, names)
        for kind, names in found.items()
        if names
    }


def _cause(subject: Subject, kind: Kind, names: tuple[str, ...]) -> Cause:
    modules = subject.modules()
    classes = [type(modules[name]).__name__ for name in names]
    shown = tuple(name or class_name for name, class_name in zip(names, classes, strict=True))  # "" is the model itself
    return Cause(
        kind=kind,
        names=shown,
        classes=tuple(dict.fromkeys(classes)),
        is_model=names == ("",),
        cannot_freeze=kind is Kind.BATCH_NORM and any(modules[name].running_mean is None for name in names),
    )


def _measured_cause(
    subject: Subject, cause: Cause, present: dict[Kind, Cause], sizes: Split, found: Found, frozen: Way | None
) -> Cause:
    with _quiet(subject, *(kind for kind in present if kind is not cause.kind)) as alone:
        active = _deviation(alone, sizes, found)
    return replace(
        cause,
        active=active.gradient_difference if active is not None else None,
        frozen=frozen.gradient_difference if frozen is not None else None,
        # BatchNorm always does, if not on this batch: its samples may be alike.
        breaks=active is None or not active.equal or cause.kind is Kind.BATCH_NORM,
    )


def _unmeasured(cause: Cause) -> Cause:
    """BatchNorm and hooks are taken to break it; state may be harmless."""
    return replace(cause, breaks=cause.kind is not Kind.STATE)


def _deviation(subject: Subject, sizes: Split, found: Found) -> Way | None:
    got: Way | str = subject.tried(lambda: deviation(subject, sizes, found.weights(sizes)))
    return None if isinstance(got, str) else got


@contextmanager
def _quiet(subject: Subject, *off: Kind) -> Iterator[Subject]:
    """The subject with those kinds of causes switched off."""
    if not off:
        yield subject
        return
    changes: dict[str, Any] = {}
    with ExitStack() as stack:
        if Kind.BATCH_NORM in off:
            stack.enter_context(frozen_statistics(subject))
        if Kind.HOOKS in off:
            stack.enter_context(without_hooks(subject.model))
        if Kind.STATE in off:
            before = state_of(subject.model)
            changes = {"before_forward": (lambda: put_state(subject.model, before),)}
        yield subject.altered(**changes)


def _measured(subject: Subject, splits: tuple[Split, ...]) -> Measured:
    """The whole batch and the parts of the two splits that tell most, where they run; the smallest parts last."""
    divisions = []
    for sizes in splits[-2:]:
        parts = [subject.tried(partial(subject.part, places)) for places in places_of(sizes)]
        ran = tuple(part for part in parts if isinstance(part, Part))
        if len(ran) == len(parts):
            divisions.append(ran)
    return Measured(whole=subject.part(range(subject.samples)), divisions=tuple(divisions), exact=subject.exact)

"""What was found, in sentences: the verdict, its reasons, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from profiler.checking.advice import advice
from profiler.checking.causes import Cause, Kind
from profiler.checking.facts import NUMPY, PYTHON, Facts, listed
from profiler.checking.subject import FP64_ROUNDING, NEARLY
from profiler.equivalence import Decomposition, Equivalence, Way

# Above what fp64 rounds, whatever the parts contribute to the gradient.
EXACT = 16 * FP64_ROUNDING
# More than rounding in fp32 makes of a gradient, whatever the model.
FAR = 0.02
# What one module does, and what several do.
DOES = {
    Kind.BATCH_NORM: ("normalises each micro-batch by itself", "normalise each micro-batch by itself"),
    Kind.STATE: ("changes its state at every forward", "change their state at every forward"),
    Kind.MIXING: ("lets the samples of a batch see each other", "let the samples of a batch see each other"),
}


def in_words(facts: Facts) -> Equivalence:
    """The equivalence that these facts amount to."""
    deciding = [way for way in facts.ways if way.precision == facts.precision and len(way.split) > 1]
    ran = [way for way in deciding if way.gradient_difference is not None or way.loss is not None]
    normed = any(cause.kind is Kind.BATCH_NORM and cause.breaks for cause in facts.causes)
    exactly = bool(ran) and all(way.equal for way in deciding)
    apart = _far_apart(facts) if exactly else 0.0
    equal = exactly and not normed and not apart
    breaking = tuple(cause for cause in facts.causes if cause.breaks) if not equal else ()
    short = "" if equal else "; ".join(_short(facts, breaking)) or _unexplained(deciding, apart)
    return Equivalence(
        batch_size=facts.samples,
        equal=equal,
        decomposes=_kind(facts, equal=equal),
        items=facts.found.items,
        modules=tuple(dict.fromkeys(name for cause in breaking for name in cause.names)),
        random_modules=facts.random_modules,
        ways=tuple(_explained(way, facts, short) for way in facts.ways),
        verdict="equal" if equal else f"not equal: {short}",
        reasons=tuple(_reasons(facts, breaking)),
        advice=" ".join(advice(facts, breaking, equal=equal)),
        notes=tuple(_notes(facts, equal=equal)),
    )


def _kind(facts: Facts, *, equal: bool) -> Decomposition:
    """How the loss decomposes; where all weighted ways are equal it does by what is declared, whatever parts unweighted do."""
    if equal and facts.found.decomposes is Decomposition.NO:
        return Decomposition.ITEMS if facts.declares else Decomposition.SAMPLES
    return facts.found.decomposes


def _far_apart(facts: Facts) -> float:
    """By how much ways differ in fp32 where they do not in fp64, if that is more than rounding ever makes; else 0."""
    fp32 = [way.gradient_difference or 0.0 for way in facts.ways if way.precision == "fp32"]
    most = max(fp32, default=0.0)
    return most if facts.precision == "fp64" and most > FAR else 0.0


def _unexplained(ways: list[Way], apart: float) -> str:
    if apart:
        return f"gradients differ by {apart:.2g} of their norm in fp32, and not in fp64"
    failed = [way.why for way in ways if way.why and not way.equal]
    return f"a part {failed[0]}" if failed else "beyond rounding, for a reason that was not found"


def _explained(way: Way, facts: Facts, short: str) -> Way:
    if way.equal or way.why:
        return way
    return replace(way, why=short or f"the rounding of {way.precision}: equal in {facts.precision}")


def _short(facts: Facts, breaking: tuple[Cause, ...]) -> Iterator[str]:
    """The verdict's clauses."""
    wrong_loss = not facts.declared_right
    for cause in breaking:
        yield _short_of(cause, alone=len(breaking) == 1 and not wrong_loss)
    if wrong_loss and not facts.hidden:
        yield _short_of_loss(facts)
    if facts.doubtful and not facts.steady:
        yield "two runs of the same batch differ already"
    elif facts.doubtful:
        yield f"or for random numbers from {' and '.join(facts.other_draws)} alone"


def _short_of(cause: Cause, *, alone: bool) -> str:
    count = len(cause.names)
    if cause.kind is Kind.BATCH_NORM:
        after = "equal with their statistics frozen" if count > 1 else "equal with its statistics frozen"
        what = f"{_norm(cause)} normalises each micro-batch by itself ({_layers(count)})"
        return f"{what}; {after}" if alone else what
    if cause.kind is Kind.HOOKS:
        return f"hooks on {count} parameter{_s(count)} change each micro-batch's gradient, as clipping per part does"
    if cause.kind is Kind.STATE:
        return f"{listed(cause.names)} change{'' if count > 1 else 's'} state at every forward, so that later parts see another model"
    named = f"the model itself ({cause.names[0]})" if cause.is_model else listed(cause.names)
    return f"{named} let{'' if count > 1 else 's'} the samples of a micro-batch see each other"


def _short_of_loss(facts: Facts) -> str:
    declared = "over loss_items" if facts.declares else "over samples"
    match facts.found.decomposes:
        case Decomposition.SUM:
            return f"the loss is summed, not averaged {declared}"
        case Decomposition.SAMPLES:
            return "the loss is averaged over samples, not over loss_items"
        case Decomposition.ITEMS:
            return f"the loss is averaged over items, counted by {facts.found.items}, not {declared}"
        case Decomposition.WEIGHTED:
            return f"the loss is a weighted mean, not one {declared}"
    if facts.found.losses_add_up:
        return "the losses of the parts add up to the whole one, and their gradients do not"
    return f"the loss is not averaged {declared}, nor over anything else"


def _reasons(facts: Facts, breaking: tuple[Cause, ...]) -> Iterator[str]:
    mixed = [cause for cause in breaking if cause.kind is Kind.MIXING]
    yield from map(_what_it_does, mixed)
    yield _how_it_decomposes(facts)
    whole, together = facts.counted
    if abs(whole - together) > NEARLY * max(whole, together):
        yield f"loss_items gives {whole:g} for the whole batch, and {together:g} for its samples one by one: it is no count."
    yield from (_what_it_does(cause) for cause in breaking if cause not in mixed)
    drawing = tuple(name for name in facts.random_modules if name not in (PYTHON, NUMPY))
    if drawing:
        yield (
            f"random numbers are drawn in {listed(drawing)}: each micro-batch draws its own. For the comparison dropout was "
            "switched off, and other draws were the same for a sample in every way."
        )
    if facts.other_draws:
        yield (
            f"numbers are drawn from {' and '.join(facts.other_draws)}, which cannot be switched off: every forward began "
            "at the same seed, and a difference may be theirs alone."
        )


def _what_it_does(cause: Cause) -> str:
    if cause.kind is Kind.HOOKS:
        return f"hooks change each micro-batch's gradient of {listed(cause.names)}{_measured(cause)}."
    classes = ", ".join(cause.classes)
    named = "the model itself" if cause.is_model else listed(cause.names)
    one, several = DOES[cause.kind]
    return f"{named} ({classes}) {one if len(cause.names) == 1 else several}{_measured(cause)}."


def _how_it_decomposes(facts: Facts) -> str:
    if facts.hidden and not facts.steady:
        return "whether the loss decomposes cannot be seen, for the same batch has another loss in a second run."
    if facts.hidden:
        return "whether the loss decomposes cannot be seen behind modules that let samples see each other."
    behind = "behind that, with its output held at the whole batch's, " if facts.mixed else ""
    return behind + _decomposition(facts)


def _decomposition(facts: Facts) -> str:
    items = facts.found.items
    match facts.found.decomposes:
        case Decomposition.SAMPLES:
            return "the loss is averaged over samples: f(batch) = sum of (samples of the part / samples) f(part)."
        case Decomposition.ITEMS:
            return f"the loss is averaged over items, counted by {items}: f(batch) = sum of (items of the part / items) f(part)."
        case Decomposition.WEIGHTED:
            return f"the loss is a weighted mean: f(batch) = sum of (weight of the part / weight) f(part), where weights are {items}."
        case Decomposition.SUM:
            return "the loss is a sum: f(batch) = sum of f(part), with no weights."
    if facts.found.losses_add_up:
        return (
            "the losses of parts add up to the whole one within rounding, and their gradients do not: a small term of the loss "
            "does not decompose, or something changes gradients in the backward."
        )
    return (
        "the loss does not decompose: no weights of the parts give the whole. It may compare samples with each other "
        "(contrastive, in-batch negatives, mining, ranking, covariances), average its terms over different items, be a root or "
        "a ratio of means, or add a term that is counted once to a sum."
    )


def _measured(cause: Cause) -> str:
    if cause.active is None:
        return ""
    off = "with statistics frozen" if cause.kind is Kind.BATCH_NORM else "without that"
    without = "" if cause.frozen is None else f", and by {cause.frozen:.1g} {off}"
    return f"; the gradient of equal micro-batches is off by {cause.active:.2g} of its norm{without}"


def _notes(facts: Facts, *, equal: bool) -> Iterator[str]:
    if facts.why_not_exact:
        yield f"fp64 could not be used, so {facts.precision} decides: {facts.why_not_exact}."
    if facts.too_small:
        yield f"not every micro-batch size runs; {facts.too_small}."
    for cause in facts.causes:
        if cause.kind is Kind.STATE and not cause.breaks:
            yield f"{listed(cause.names)} {'keeps' if len(cause.names) == 1 else 'keep'} running state, which is updated once for every micro-batch."
    if facts.padded is not None:
        yield _about_padding(facts.padded)
    if facts.alike:
        yield (
            "the samples of this batch hold the same numbers, which hides what depends on the other samples: check with real "
            "samples, or with random ones."
        )
    if facts.shows_no_padding and not facts.declares and facts.found.decomposes is Decomposition.SAMPLES:
        yield (
            "no sample of this batch has more of its integers left out than another. If the loss leaves some out (padding, an "
            "ignored class), check a batch in which they differ: by their number it would average."
        )
    most = max((way.gradient_difference or 0.0 for way in facts.ways if way.precision == facts.precision), default=0.0)
    if equal and facts.precision == "fp64" and most > EXACT:
        yield (
            f"gradients differ by up to {most:.1g} of their norm, and no parameter's by more than fp32 rounds: more than fp64 does, "
            "as for weights that were summed in fp32, or a small constant in the loss's denominator."
        )
    if equal and any(not way.equal for way in facts.ways):
        yield f"in the training precision some ways differ by more than the bound; in {facts.precision} they are equal, so it is rounding."


def _about_padding(padded: Way) -> str:
    apart = "micro-batches that are each padded by themselves, as a data loader pads them,"
    if padded.equal:
        return f"{apart} were compared too, and are equal."
    if padded.gradient_difference is None:
        return f"{apart} could not be compared: {padded.why}."
    return (
        f"{apart} are not equal: their gradient is off by {padded.gradient_difference:.2g} of its norm, so padding changes what "
        "the model computes. Give the model a mask of the padding, or cut whole batches into parts (accumulate, plan.split)."
    )


def _norm(cause: Cause) -> str:
    return "SyncBatchNorm" if cause.classes == ("SyncBatchNorm",) else "BatchNorm"


def _layers(count: int, what: str = "layer") -> str:
    return f"{count} {what}{_s(count)}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"

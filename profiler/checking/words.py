"""What was found, in sentences: the verdict, its reasons, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from profiler.checking.causes import Cause, Kind
from profiler.checking.decomposition import Found
from profiler.equivalence import Decomposition, Equivalence, Way

NAMES_SHOWN = 4
PYTHON, NUMPY = "Python's random", "NumPy's random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the check measured.

    samples: of the checked batch. precision: of the ways that decide. declares: whether the workload has `loss_items`.
    counted: what it declares for the whole batch, and for its samples together. too_small: which micro-batches cannot be
    run, and why. why_not_exact: why fp64 could not be used. padded: micro-batches that are collated by themselves, where that
    gives other shapes.
    """

    samples: int
    precision: str
    declares: bool
    counted: tuple[float, float]
    ways: tuple[Way, ...]
    found: Found
    causes: tuple[Cause, ...]
    random_modules: tuple[str, ...]
    too_small: str
    why_not_exact: str
    padded: Way | None = None


def in_words(facts: Facts) -> Equivalence:
    """The equivalence that these facts amount to."""
    deciding = [way for way in facts.ways if way.precision == facts.precision and len(way.split) > 1]
    ran = [way for way in deciding if way.gradient_difference is not None or way.loss is not None]
    equal = bool(ran) and all(way.equal for way in deciding)
    breaking = tuple(cause for cause in facts.causes if cause.breaks) if not equal else ()
    short = (
        "" if equal else "; ".join(_short(facts, breaking)) or "not within rounding, for a reason that was not found"
    )
    return Equivalence(
        batch_size=facts.samples,
        equal=equal,
        decomposes=facts.found.decomposes,
        items=facts.found.items,
        modules=tuple(dict.fromkeys(name for cause in breaking for name in cause.names)),
        random_modules=facts.random_modules,
        ways=tuple(_explained(way, facts, short) for way in facts.ways),
        verdict="equal" if equal else f"not equal: {short}",
        reasons=tuple(_reasons(facts, breaking)),
        advice=" ".join(_advice(facts, breaking, equal=equal)),
        notes=tuple(_notes(facts, equal=equal)),
    )


def _explained(way: Way, facts: Facts, short: str) -> Way:
    if way.equal or way.why:
        return way
    return replace(way, why=short or f"the rounding of {way.precision}: equal in {facts.precision}")


def _others_draw(facts: Facts) -> list[str]:
    return [name for name in facts.random_modules if name in (PYTHON, NUMPY)]


def _declared_right(facts: Facts) -> bool:
    """Whether the weights that the workload declares are those by which its loss decomposes."""
    if facts.declares:
        return facts.found.items == "loss_items(batch)"
    return facts.found.decomposes is Decomposition.SAMPLES


def _hidden(facts: Facts) -> bool:
    """Whether modules that mix samples hide how the loss decomposes."""
    mixed = any(cause.kind is Kind.MIXING for cause in facts.causes)
    return mixed and facts.found.decomposes is Decomposition.NO


def _short(facts: Facts, breaking: tuple[Cause, ...]) -> Iterator[str]:
    """The verdict's clauses."""
    wrong_loss = not _declared_right(facts)
    for cause in breaking:
        yield _short_of(cause, alone=len(breaking) == 1 and not wrong_loss)
    if wrong_loss and not _hidden(facts):
        yield _short_of_loss(facts)
    if facts.found.decomposes is Decomposition.NO and _others_draw(facts):
        yield f"or for random numbers from {' and '.join(_others_draw(facts))} alone"


def _short_of(cause: Cause, *, alone: bool) -> str:
    count = len(cause.names)
    if cause.kind is Kind.BATCH_NORM:
        after = "equal with their statistics frozen" if count > 1 else "equal with its statistics frozen"
        what = f"{_norm(cause)} normalises each micro-batch by itself ({_layers(count)})"
        return f"{what}; {after}" if alone else what
    if cause.kind is Kind.HOOKS:
        return f"hooks on {count} parameter{_s(count)} change each micro-batch's gradient, as clipping per part does"
    if cause.kind is Kind.STATE:
        return f"{_named(cause)} change{'' if count > 1 else 's'} state at every forward, so that later parts see another model"
    return f"{_named(cause)} let{'' if count > 1 else 's'} the samples of a micro-batch see each other"


def _short_of_loss(facts: Facts) -> str:
    declared = "over loss_items" if facts.declares else "over samples"
    match facts.found.decomposes:
        case Decomposition.SUM:
            return f"the loss is summed, not averaged {declared}"
        case Decomposition.SAMPLES:
            return "the loss is averaged over samples, not over loss_items"
        case Decomposition.ITEMS:
            return f"the loss is averaged over {facts.found.items}, not {declared}"
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
    if abs(whole - together) > 1e-9 * max(whole, together):
        yield f"loss_items gives {whole:g} for the whole batch, and {together:g} for its samples one by one: it is no count."
    yield from (_what_it_does(cause) for cause in breaking if cause not in mixed)
    drawing = tuple(name for name in facts.random_modules if name not in (PYTHON, NUMPY))
    if drawing:
        yield (
            f"random numbers are drawn in {_listed(drawing)}: each micro-batch draws its own. They were switched off for the "
            "comparison, every draw replaced by its expected value."
        )
    if _others_draw(facts):
        yield (
            f"numbers are drawn from {' and '.join(_others_draw(facts))}, which cannot be switched off: every forward began "
            "at the same seed, and a difference may be theirs alone."
        )


def _what_it_does(cause: Cause) -> str:
    classes = ", ".join(cause.classes) or _layers(len(cause.names), "parameter")
    return f"{_named(cause)} ({classes}): {cause.kind.value}{_measured(cause)}."


def _how_it_decomposes(facts: Facts) -> str:
    if _hidden(facts):
        return "whether the loss decomposes cannot be seen behind modules that let samples see each other."
    mixed = any(cause.kind is Kind.MIXING for cause in facts.causes)
    behind = "behind that, with its output held at the whole batch's, " if mixed else ""
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
        return "the loss decomposes, and its gradient does not: something changes gradients in the backward."
    return (
        "the loss does not decompose: no weights of the parts give the whole, so it compares samples with each other "
        "(contrastive, in-batch negatives, mining, ranking, covariances), or averages its terms over different items."
    )


def _measured(cause: Cause) -> str:
    if cause.active is None:
        return ""
    off = "with statistics frozen" if cause.kind is Kind.BATCH_NORM else "without that"
    without = "" if cause.frozen is None else f", and by {cause.frozen:.1g} {off}"
    return f"; the gradient of equal micro-batches is off by {cause.active:.2g} of its norm{without}"


def _advice(facts: Facts, breaking: tuple[Cause, ...], *, equal: bool) -> Iterator[str]:
    if equal:
        if facts.declares:
            yield "Weight each micro-batch's loss by its share of the batch's items: accumulate() and plan.split() do."
        else:
            yield "Weight each micro-batch's loss by its share of the samples: plan.weights, which accumulate() applies."
        return
    if facts.found.decomposes is Decomposition.NO and _others_draw(facts):
        yield "Draw random numbers with torch, where the check can switch them off, and check again."
    for cause in breaking:
        yield _advice_of(cause)
    if not _declared_right(facts) and not _hidden(facts):
        yield _advice_on_loss(facts)


def _advice_of(cause: Cause) -> str:
    if cause.kind is Kind.BATCH_NORM:
        plain = "Replace BatchNorm by GroupNorm, or freeze its statistics (module.eval() on each, after model.train())"
        if "SyncBatchNorm" in cause.classes:
            return f"{plain}; SyncBatchNorm joins replicas, not the micro-batches of one."
        return f"{plain}; or accept that each micro-batch is normalised by itself, and keep micro-batches large."
    if cause.kind is Kind.HOOKS:
        return (
            "Remove the hooks, and clip or step once, after the last micro-batch's backward: the clip of a sum is not the sum "
            "of clips."
        )
    if cause.kind is Kind.STATE:
        return (
            f"Let {_listed(cause.names)} change state once for each optimizer step: in evaluation mode after the first "
            "micro-batch, and in training mode again for the next step."
        )
    return (
        f"Make {_listed(cause.names)} see one sample at a time (GroupNorm, LayerNorm, statistics from elsewhere), or train "
        "with whole batches."
    )


def _advice_on_loss(facts: Facts) -> str:
    items = facts.found.items
    match facts.found.decomposes:
        case Decomposition.SUM:
            return (
                f"Divide the loss by what it sums over, so that it is a mean (reduction='mean', or / {facts.samples} for a "
                f"batch of {facts.samples} samples); or give every part the weight 1 and divide the sum once."
            )
        case Decomposition.SAMPLES:
            return "Leave loss_items out: the share of samples is the right weight."
        case Decomposition.ITEMS:
            return f"Pass loss_items=lambda batch: int({items}), so that each part's weight is its share of them."
        case Decomposition.WEIGHTED:
            expression, _, _ = (items or "").partition(", ")
            if "[batch" in expression or expression.startswith("batch"):
                return (
                    f"Pass loss_items=lambda batch: float({expression}), so that each part's weight is its share of it."
                )
            return "Pass loss_items that gives the sum of the weights in a batch, so that each part's weight is its share of it."
    if facts.found.losses_add_up:
        return "Look for what changes gradients in the backward (hooks, custom autograd functions, clipping) and do it once a step."
    return (
        "Accumulation cannot reach it. Compute the embeddings of all parts first and the loss over all of them, then "
        "backpropagate part by part (gradient caching, Gao et al. 2021, arXiv:2101.06983); or use a loss that averages over "
        "samples; where the loss has terms averaged over different items, accumulate each term by its own count."
    )


def _notes(facts: Facts, *, equal: bool) -> Iterator[str]:
    if facts.why_not_exact:
        yield f"fp64 could not be used, so {facts.precision} decides: {facts.why_not_exact}."
    if facts.too_small:
        yield f"not every micro-batch size runs; {facts.too_small}."
    for cause in facts.causes:
        if cause.kind is Kind.STATE and not cause.breaks:
            yield f"{_listed(cause.names)} keeps running state, which is updated once for every micro-batch."
    if facts.padded is not None:
        yield _about_padding(facts.padded)
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


def _named(cause: Cause) -> str:
    return _listed(cause.names)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _s(count: int) -> str:
    return "" if count == 1 else "s"

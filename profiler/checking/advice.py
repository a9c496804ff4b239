"""What to do about what was found."""

from __future__ import annotations

from collections.abc import Iterator

from profiler.checking.causes import Cause, Kind
from profiler.checking.facts import Facts, listed
from profiler.equivalence import Decomposition

CONTRASTIVE = (
    "No weights of parts reach it. If it compares samples, compute the embeddings of all parts first and the loss over all of "
    "them, then backpropagate part by part (gradient caching, Gao et al. 2021, arXiv:2101.06983; "
    "examples/contrastive_by_parts.py). If it has terms averaged over different items, accumulate each term by its own count. "
    "Else use a loss that averages over samples."
)
WITHIN = (
    "If the model computes its loss itself and that compares samples, see gradient caching (Gao et al. 2021, arXiv:2101.06983; "
    "examples/contrastive_by_parts.py). Otherwise make its forward see one sample at a time (GroupNorm, LayerNorm, no statistics "
    "or lengths of the batch), or train with whole batches."
)


def advice(facts: Facts, breaking: tuple[Cause, ...], *, equal: bool) -> Iterator[str]:
    """What to do, a sentence or two for each thing that is not right."""
    if equal:
        if facts.declares:
            yield "Weight each micro-batch's loss by its share of the batch's items: accumulate() and plan.split() do."
        else:
            yield "Weight each micro-batch's loss by its share of the samples: plan.weights, which accumulate() applies."
        return
    if facts.doubtful and not facts.steady:
        yield (
            "Find what makes two runs of the same batch differ: state that the model keeps in attributes and not in buffers, or "
            "a generator of random numbers of its own. Switch it off, and check again."
        )
        return
    if facts.doubtful:
        yield "Draw random numbers with torch, where the check can switch them off, and check again."
    for cause in breaking:
        yield WITHIN if cause.is_model and cause.kind is Kind.MIXING else _advice_of(cause)
    if not facts.declared_right and not facts.hidden:
        yield _advice_on_loss(facts)
    elif not breaking:
        yield (
            "Look for what differs from forward to forward or changes gradients in the backward: counters and other state in "
            "attributes, hooks on the loss or on activations, casts that fp64 has not."
        )


def _advice_of(cause: Cause) -> str:
    if cause.kind is Kind.BATCH_NORM:
        plain = "Replace BatchNorm by GroupNorm, or freeze its statistics (module.eval() on each, after model.train())"
        if cause.cannot_freeze:
            plain = (
                "Replace BatchNorm by GroupNorm; evaluation mode does not freeze layers with track_running_stats=False, which keep "
                "no statistics: make them with track_running_stats=True first"
            )
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
            f"Let {listed(cause.names)} change state once for each optimizer step, and not in the other micro-batches: move the "
            "update out of the forward, or, where evaluation mode stops it, call eval() on that module after the first one."
        )
    return (
        f"Make {listed(cause.names)} see one sample at a time (GroupNorm, LayerNorm, statistics from elsewhere), or train "
        "with whole batches."
    )


def _advice_on_loss(facts: Facts) -> str:
    items = facts.found.items
    match facts.found.decomposes:
        case Decomposition.SUM:
            return (
                "Divide the loss by the samples of the batch that it is given, not by a constant (reduction='mean', or "
                "loss / len(targets)); or keep the sum, and give every part the weight 1 in a loop of your own."
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
            return (
                "Pass loss_items that gives the sum of the weights in a batch, so that each part's weight is its share of it. If "
                "the weights come from the model's outputs or are drawn in the loss, no batch holds them: divide by the samples instead, or "
                "draw them where the batch is made."
            )
    if facts.found.losses_add_up:
        return "Look for what changes gradients in the backward (hooks, custom autograd functions, clipping) and do it once a step."
    return CONTRASTIVE

"""The committed plans for cards that are not here: a language model, an image model and a user's own file on three of them.

results/<model>_sim-<card>/   a probe's folder, and output.txt: what it printed

    python -m benchmarks.simulated_runs    # with the extra `models`: it asks torchvision for resnet50
"""

from __future__ import annotations

from benchmarks.reference_runs import run_probe

EFFECTIVE_BATCH = "512"
TARGETS = {"gpt2": "hf:gpt2", "resnet50": "torchvision:resnet50", "denoiser": "examples/denoiser.py:workload"}
CARDS = ("t4", "rtx4090", "h100-80gb")
# Folders, and what was probed there on which card.
SIMULATED = {
    f"results/{name}_sim-{card}": (target, f"sim:{card}") for name, target in TARGETS.items() for card in CARDS
}


def main() -> None:
    """Run each; end with the first status that is not 0."""
    for folder, (target, device) in SIMULATED.items():
        run_probe(target, ("--effective-batch", EFFECTIVE_BATCH), folder, device=device)


if __name__ == "__main__":
    main()

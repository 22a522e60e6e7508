"""What is logged of a step: each loss term over the rows that carry it, in all processes."""

import math
from collections.abc import Mapping, Sequence

import torch

from ..objective import recovered


def term_sums(
    loss: torch.Tensor, terms: Mapping[str, torch.Tensor], states: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """(N + 1, 2): for each term its sum and the number of rows that carry it; last the loss, and 1."""
    sums = [torch.stack([term.detach().sum(), recovered(states[name]).sum()]) for name, term in terms.items()]
    return torch.stack([*sums, torch.stack([loss.detach(), torch.ones_like(loss)])]).double()


def check_finite(sums: torch.Tensor, names: Sequence[str], step: int) -> None:
    """Called before anything is changed by the step.

    Raises:
        FloatingPointError: naming the term that is not finite, and the step.
    """
    for name, total in zip([*names, "total"], sums[:, 0].tolist(), strict=True):
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss term {name!r} is {total} at step {step}; the last checkpoint stays. "
                "Look at the data, or lower the learning rate."
            )


def term_logs(sums: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Means; a term that no row carries is left out."""
    *terms, (loss, count) = sums.tolist()
    logs = {"loss": loss / count}
    for name, (total, rows) in zip(names, terms, strict=True):
        logs[f"{name}_rows"] = rows
        if rows:
            logs[f"{name}_loss"] = total / rows
    return logs

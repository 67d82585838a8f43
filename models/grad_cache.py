"""GradCache (Gao et al. 2021): the exact gradient of a contrastive loss over a batch whose activations do not fit.

The loss couples all rows, so gradients of parts cannot just be added up as in plain accumulation. Three passes instead:
(1) each part goes through the towers without a graph, only its embeddings stay; (2) the loss over all embeddings gives
their gradients; (3) each part goes through again, with a graph, and its embeddings' gradients are sent back. Activations exist for
one part at a time; the price is one more forward pass. A part is called twice and must draw the same random numbers both times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Part = Callable[[], tuple[Tensor, ...]]


def backward(parts: Sequence[Part], loss_of: Callable[..., Tensor], synchronise: Callable[[bool], None]) -> Tensor:
    """Add the gradient of `loss_of(all rows of the first output, all of the second, ...)` to the parameters' own.

    Args:
        parts: forward passes over parts of the rows; each gives tensors [rows, ...], the same way every time.
        loss_of: a scalar of the parts' outputs, concatenated.
        synchronise: called before each backward pass through the towers; its argument says whether it is the last one.

    Returns:
        The loss, without a graph.
    """
    if len(parts) == 1:
        synchronise(True)
        loss = loss_of(*parts[0]())
        loss.backward()
        return loss.detach()
    with torch.no_grad():
        found = [part() for part in parts]
    whole = [torch.cat(outputs).requires_grad_() for outputs in zip(*found, strict=True)]
    loss = loss_of(*whole)
    loss.backward()
    sizes = [[len(output) for output in outputs] for outputs in zip(*found, strict=True)]
    pieces = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in whole]
    gradients = zip(*(piece.split(rows) for piece, rows in zip(pieces, sizes, strict=True)), strict=True)
    for number, (part, own) in enumerate(zip(parts, gradients, strict=True), start=1):
        synchronise(number == len(parts))
        torch.autograd.backward(part(), own)
    return loss.detach()

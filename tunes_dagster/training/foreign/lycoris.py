"""LoHa and LoKr (LyCORIS, and peft under the same names) as plain LoRAs, exactly where their rank allows it.

LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098) is (A₁B₁)∘(A₂B₂), which is a LoRA of the product of the ranks: its rows
and columns are those of the Khatri-Rao products. LoKr (Yeh et al. 2024, arXiv 2309.14859) is W₁⊗W₂, whose singular
values are the products of those of the factors: what is left out is known before it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Adapters are stacked at the largest rank among them, so it costs memory for every layer.
MOST_RANK = 256
# Of the norm of an adapter's product, what may be left out: below the precision of float16.
_NOTHING = 3e-4


def loha_pair(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """Return a LoHa as (A `[rank, in…]`, B `[out, rank]`) and the share of its norm that is left out."""
    a1, b1 = _factor(parts, "1")
    a2, b2 = _factor(parts, "2")
    kernel = b1.shape[1:]
    b1, b2 = b1.flatten(1), b2.flatten(1)
    rows = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    columns = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    a, b, lost = _narrowed(columns, rows)
    return a.view(-1, *kernel), b, lost


def _factor(parts: Mapping[str, Tensor], number: str) -> tuple[Tensor, Tensor]:
    """Return (rows `[out, rank]`, columns `[rank, in…]`) of one of a LoHa's two products."""
    a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
    core = parts.get(f"hada_t{number}")
    if core is None:
        return a, b
    return a.T, torch.einsum("ijkl,jr->irkl", core, b)


def lokr_pair(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """Return a LoKr as (A `[rank, in…]`, B `[out, rank]`) and the share of its norm that is left out."""
    first, second = _whole(parts, "lokr_w1"), _whole(parts, "lokr_w2")
    kernel = second.shape[2:]
    u1, s1, v1 = torch.linalg.svd(first, full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(second.flatten(1), full_matrices=False)
    values = torch.outer(s1, s2).flatten()
    kept, lost = _kept(values)
    i, j = kept // len(s2), kept % len(s2)
    root = values[kept].sqrt()
    b = (u1[:, None, i] * u2[None, :, j]).flatten(0, 1) * root
    a = (v1[i, :, None] * v2[j, None, :]).flatten(1) * root[:, None]
    return a.view(len(kept), -1, *kernel), b, lost


def _whole(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a factor of a LoKr, whichever way it is written."""
    if name in parts:
        return parts[name]
    a, b, core = parts[f"{name}_a"], parts[f"{name}_b"], parts.get("lokr_t2")
    if core is not None:
        return torch.einsum("ijkl,ip,jr->prkl", core, a, b)
    return a @ b


def _narrowed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return a pair of a rank that can be stacked, and the share of the norm of `b @ a` that is left out."""
    if a.shape[0] <= min(64, MOST_RANK, a.shape[1], b.shape[0]):
        return a, b, 0.0
    qb, rb = torch.linalg.qr(b)
    qa, ra = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    kept, lost = _kept(values)
    root = values[kept].sqrt()
    return (v[kept] * root[:, None]) @ qa.T, qb @ (u[:, kept] * root), lost


def _kept(values: Tensor) -> tuple[Tensor, float]:
    """Return which singular values are kept, largest first, and the share of the norm of the others."""
    ordered, order = values.sort(descending=True)
    squares = ordered.double().square()
    total = float(squares.sum())
    if not total:
        return order[:1], 0.0
    left = (squares.flip(0).cumsum(0).flip(0) / total).clamp(min=0).sqrt()
    enough = int((left > _NOTHING).sum())
    count = max(1, min(enough, MOST_RANK))
    lost = float(left[count]) if count < enough else 0.0
    return order[:count], lost

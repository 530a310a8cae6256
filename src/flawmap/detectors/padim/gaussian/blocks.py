"""Distances of training images from the model fitted without them, where blocks of positions share a covariance.

An image enters a block once for each of its positions p, and is left out whole: a change of rank b^2. Let D be the rows
x - mean(p) of what is left out, of a group of images at all positions of the block, G = D Sigma^-1 D^T, nu the degrees
of freedom, nu' those without the group, c = nu / nu', kappa = (1 - a) / nu for a sharing of a, and M the matrix of
blocks I + 1 1^T / (n(p) - m(p)), one for each position, which n(p) images show, and m(p) of the group. Then

    Sigma_without = c (Sigma - kappa D^T M D),

but for what regularises, as for one position (`flawmap.detectors.padim.gaussian.leave_one_out`). An image's row less
the mean without the group is u = D^T M e_j, that of a changed copy y of it u = y + D^T 1 / (n(p) - m(p)), and with
B = M^(1/2) G M^(1/2) the Woodbury identity gives

    d2_without = [ u^T Sigma^-1 u + kappa w^T (I - kappa B)^-1 w ] / c,    w = M^(1/2) D Sigma^-1 u.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flawmap.detectors.padim.embedding import CHUNK_BYTES, Hierarchy
from flawmap.detectors.padim.gaussian.factor import Factor, products_in_blocks
from flawmap.detectors.padim.gaussian.leave_one_out import SMALLEST


def spread_over_members(hierarchy: Hierarchy, per_cell: Tensor) -> Tensor:
    """Values of each cell of the coarsest level (cells, ...), at each block of the finest grid (., b^2, ...)."""
    if hierarchy.blocks is None:
        raise ValueError("no positions share a covariance")
    covariances = hierarchy.covariances
    return covariances.to_positions(per_cell[hierarchy.blocks.members[0]][covariances.coarsest_of_cells[-1]])


def left_out_distances(
    factor: Factor,
    columns: Sequence[Tensor],
    count: int | Tensor,
    *,
    n_together: int = 1,
    n_left_out: int | None = None,
    shown: Tensor | None = None,
    sharing: float = 0.0,
) -> Tensor:
    """Squared distances (P, B) of training images from the model without each, from their embeddings and the model.

    A batch is k = `n_together` parts of one image of each set; the first `n_left_out` of a set are left out together,
    None for all, and the others are changed copies of the first. `count` is that of images the model is of, or those
    that show each cell of the coarsest level (cells,); `shown` (cells, B) is 1 where an image shows one, or None.
    """
    blocks, batch = factor.hierarchy.blocks, columns[0].shape[1]
    if blocks is None:
        raise ValueError("no positions share a covariance")
    n_members, n_left_out = blocks.n_members, n_together if n_left_out is None else n_left_out
    products = products_in_blocks(factor, columns, n_together)
    n_bytes = 8 * 8 * products[0].numel()
    counts = None  # (blocks, 1, b^2)
    if isinstance(count, Tensor):
        counts = spread_over_members(factor.hierarchy, count)[:, None]
    present = None
    if shown is not None:
        spread = spread_over_members(factor.hierarchy, shown)
        present = spread.view(*spread.shape[:2], n_together, -1).permute(0, 3, 2, 1)[:, :, :n_left_out]
    found = products.new_empty(len(products), n_members, batch)
    for start in range(0, len(products), step := max(1, CHUNK_BYTES // n_bytes)):
        here = slice(start, start + step)
        squared = leave_out_of_blocks(
            products[here],
            count if counts is None else counts[here],
            n_left_out=n_left_out,
            n_members=n_members,
            shown=None if present is None else present[here],
            sharing=sharing,
        )
        found[here] = squared.permute(0, 3, 2, 1).flatten(2)
    return blocks.unfold(found)


def leave_out_of_blocks(
    products: Tensor,
    count: int | Tensor,
    *,
    n_left_out: int = 1,
    n_members: int,
    shown: Tensor | None = None,
    sharing: float = 0.0,
) -> Tensor:
    """Squared distances (..., k, b^2) of k images in a block of `n_members` positions, from the model without a group.

    From their inner products (..., k * b^2, k * b^2) under the model of all. The first `n_left_out` images are the
    group; the others are changed copies of the first, if that is the group. `count` is that of images, or (..., b^2)
    of those that show each position; `shown` (..., n_left_out, b^2) is 1 where an image of the group shows a position,
    else 0; None for all. Both broadcast.
    """
    gram, n_rows = products.double(), products.shape[-1]
    m, n_out = n_members, n_left_out * n_members
    device = gram.device
    same = torch.eye(m, dtype=gram.dtype, device=device)
    present = gram.new_ones(n_left_out, m) if shown is None else shown.to(gram.dtype)
    if shown is not None:
        copies = present[..., :1, :].expand(*present.shape[:-2], n_rows // m - n_left_out, m)
        rows = torch.cat([present, copies], dim=-2).flatten(-2)
        gram = gram * rows[..., None] * rows[..., None, :]
    count = torch.as_tensor(count, dtype=gram.dtype, device=device)
    left = present.sum(dim=-2)
    total = count + torch.zeros_like(left)
    left = left + torch.zeros_like(total)
    rest = (total - left).clamp(min=1)
    lost = (total - 1).clamp(min=0) - (total - left - 1).clamp(min=0)
    freedom = (total - 1).clamp(min=0).sum(dim=-1)
    without, freedom = (freedom - lost.sum(dim=-1)).clamp(min=1), freedom.clamp(min=1)
    kappa = ((1 - sharing) / freedom)[..., None, None]

    # rows and columns of M are (image of the group, position)
    at_position = (present[..., None, None] * same[:, None, :] * present[..., None, None, :, :]).flatten(-4, -3)
    at_position = at_position.flatten(-2)
    scale = (((1 + left / rest).sqrt() - 1) / left.clamp(min=1)).repeat(*(1,) * (left.ndim - 1), n_left_out)
    root = torch.eye(n_out, dtype=gram.dtype, device=device) + scale[..., None] * at_position
    # u in units of the rows: the row itself, and a share of those of the group at its position
    share = (same[:, None, :] * present[..., None, :, :] / rest[..., :, None, None]).flatten(-2)
    share = share.repeat(*(1,) * (share.ndim - 2), n_rows // m, 1)
    among = gram[..., :n_out, :n_out]
    with_group = gram[..., :n_out] + share @ among  # (rows, n_out): u^T Sigma^-1 D^T
    own = gram.diagonal(dim1=-2, dim2=-1) + (share * (gram[..., :n_out] + with_group)).sum(dim=-1)
    white = _solve(kappa * (root @ among @ root), root @ with_group.transpose(-1, -2))
    squared = own + kappa[..., 0] * white.square().sum(dim=-2)
    found: Tensor = (squared.clamp(min=0) * (without / freedom)[..., None]).to(products.dtype)
    return found.view(*found.shape[:-1], n_rows // m, m)


def _solve(taken: Tensor, right: Tensor) -> Tensor:
    """C^-1 right, where C C^T = I - taken, whose eigenvalues are at least SMALLEST, if need be by force."""
    left = torch.eye(taken.shape[-1], dtype=taken.dtype, device=taken.device) - taken
    lower, failed = torch.linalg.cholesky_ex(left)
    tiny = (failed > 0) | (lower.diagonal(dim1=-2, dim2=-1).amin(dim=-1) ** 2 < SMALLEST)
    if bool(tiny.any()):
        values, vectors = torch.linalg.eigh(left[tiny])
        mended = vectors * values.clamp(min=SMALLEST)[..., None, :] @ vectors.transpose(-1, -2)
        lower[tiny] = torch.linalg.cholesky_ex(mended)[0]
    solved: Tensor = torch.linalg.solve_triangular(lower, right.expand(*lower.shape[:-1], -1), upper=False)
    return solved


def leave_each_out_of_blocks(white: Tensor, count: int | Tensor, *, sharing: float = 0.0) -> Tensor:
    """Squared distances (blocks, b^2, N) of images from the model without each, from whitened ones (blocks, b^2, N, d).

    `count` may differ by position (blocks, b^2); an image that does not show one is 0 there.
    """
    rows, n_members = white.transpose(1, 2), white.shape[1]
    shown = (rows != 0).any(dim=3)
    counts = count[:, None] if isinstance(count, Tensor) else count
    products = rows @ rows.transpose(2, 3)
    squared = leave_out_of_blocks(products, counts, n_members=n_members, shown=shown[:, :, None], sharing=sharing)
    return (squared[:, :, 0] * shown).transpose(1, 2)


def leave_set_out_of_blocks(white: Tensor, count: int | Tensor, *, sharing: float = 0.0) -> Tensor:
    """Squared distances (blocks, b^2, m) of a group of any size, whitened (blocks, b^2, m, d), from the model without.

    `count` may differ by position (blocks, b^2); an image that does not show one is 0 there. It is the inverse of d x d
    that is taken.
    """
    n_members, m, d = white.shape[1:]
    shown = (white != 0).any(dim=3)
    left = shown.sum(dim=2)
    total = torch.as_tensor(count, dtype=white.dtype, device=white.device).expand(len(white), n_members)
    rest, freedom = (total - left).clamp(min=1), (total - 1).clamp(min=0).sum(dim=1).clamp(min=1)
    without = (total - left - 1).clamp(min=0).sum(dim=1).clamp(min=1)
    shifted = (white + white.sum(dim=2, keepdim=True) / rest[..., None, None]).flatten(1, 2)
    kappa = ((1 - sharing) / freedom)[:, None, None]
    lower = (1 + SMALLEST) * torch.eye(d, dtype=white.dtype, device=white.device)
    lower = torch.linalg.cholesky_ex(lower - kappa * white.flatten(1, 2).transpose(1, 2) @ shifted)[0]
    inverse = torch.linalg.solve_triangular(lower, shifted.transpose(1, 2), upper=False)
    squared: Tensor = inverse.square().sum(dim=1) * (without / freedom)[:, None]
    return squared.view(-1, n_members, m) * shown

"""Registration of surfaces by LDDMM: a sphere is shot along a geodesic of a Hamiltonian until it meets its target.

The momentum is learnt through second derivatives. Cost and gradient are compared with dense PyTorch, the mapped
surface with its target: python examples/torch_lddmm.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farsum.torch import Pm, Vi, Vj

WIDTH, RESOLUTION = 0.6, 0.3  # of the deformations, and of what the surfaces are compared by
TIMES, BALANCE = 3, 0.01

# hamiltonian(q, p): the energy of points q (V, D) that move with the momenta p (V, D).
# varifold(c, n, d, m): the inner product of surfaces with centres c (F, D) and d of faces and their normals n and m.
Hamiltonian = Callable[[Tensor, Tensor], Tensor]
Varifold = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> int:
    vertices, faces = icosphere(2)
    target = bent(vertices)
    print(f"  a sphere of {len(vertices)} vertices and {len(faces)} faces")

    # Second derivatives first: a momentum that is not 0, so that every term counts.
    drawn = torch.Generator().manual_seed(0)
    momentum = 0.1 * torch.randn(vertices.shape, dtype=torch.float64, generator=drawn)
    momentum.requires_grad_()
    found = cost(momentum, vertices, target, faces, lazy_energy, lazy_varifold)
    truth = cost(momentum, vertices, target, faces, dense_energy, dense_varifold)
    check("cost of a momentum", found.detach()[None], truth.detach()[None])
    slope, true_slope = (torch.autograd.grad(value, momentum)[0] for value in (found, truth))
    check("its gradient", slope, true_slope)

    with torch.no_grad():
        momentum.zero_()
    optimiser = torch.optim.LBFGS([momentum], max_iter=12, line_search_fn="strong_wolfe")
    costs: list[float] = []

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = cost(momentum, vertices, target, faces, lazy_energy, lazy_varifold)
        value.backward()
        costs.append(value.item())
        return value

    begun = time.perf_counter()
    optimiser.step(loss)
    took = time.perf_counter() - begun
    print(f"  {len(costs)} geodesics in {took:.2f} s: cost {costs[0]:.4f} before, {min(costs):.4f} after")

    mapped, carried = (shot(energy, vertices, momentum.detach()) for energy in (lazy_energy, dense_energy))
    check("vertices at the end of the geodesic", mapped[0], carried[0])
    energies = [lazy_energy(q, p)[None] for q, p in ((vertices, momentum.detach()), mapped)]
    check("energy along the geodesic", energies[1], energies[0], 1e-2)

    before, after = (float((v - target).norm(dim=1).mean()) for v in (vertices, mapped[0]))
    print(f"  mean distance to the vertices of the target: {before:.3f} before, {after:.3f} after")
    if not (min(costs) < 0.1 * costs[0] and after < 0.5 * before):
        sys.exit("the sphere should come near its target")
    return 0


def cost(
    momentum: Tensor, vertices: Tensor, target: Tensor, faces: Tensor, energy: Hamiltonian, varifold: Varifold
) -> Tensor:
    """The energy of the geodesic, and how far from the target it ends."""
    q, _ = shot(energy, vertices, momentum)
    mine, theirs = faces_of(q, faces), faces_of(target, faces)
    apart = varifold(*mine, *mine) - 2 * varifold(*mine, *theirs) + varifold(*theirs, *theirs)
    return BALANCE * energy(vertices, momentum) + apart


def shot(energy: Hamiltonian, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Position and momentum at time 1, by steps of the midpoint rule along q' = dH/dp, p' = -dH/dq."""
    h = 1 / TIMES
    for _ in range(TIMES):
        dq, dp = flow(energy, q, p)
        dq, dp = flow(energy, q + h / 2 * dq, p + h / 2 * dp)
        q, p = q + h * dq, p + h * dp
    return q, p


def flow(energy: Hamiltonian, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    followed = q.requires_grad or p.requires_grad
    with torch.enable_grad():
        q, p = (x if x.requires_grad else x.detach().requires_grad_() for x in (q, p))
        of_q, of_p = torch.autograd.grad(energy(q, p), (q, p), create_graph=followed)
    return of_p, -of_q


def faces_of(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """The centre and the normal of each face, the normal as long as the face is large."""
    a, b, c = vertices[faces].unbind(1)
    return (a + b + c) / 3, torch.linalg.cross(b - a, c - a) / 2


# ── energies and inner products, lazily and densely ───────────────────────────────────────────────


def lazy_energy(q: Tensor, p: Tensor) -> Tensor:
    K_ij = (-Vi(q).sqdist(Vj(q)) / (2 * WIDTH**2)).exp()
    found: Tensor = (p * (K_ij @ p)).sum() / 2
    return found


def dense_energy(q: Tensor, p: Tensor) -> Tensor:
    K = torch.exp(-(q[:, None] - q).square().sum(-1) / (2 * WIDTH**2))
    return (p * (K @ p)).sum() / 2


def lazy_varifold(c: Tensor, n: Tensor, d: Tensor, m: Tensor) -> Tensor:
    """The sum over pairs of faces of a kernel of their places, their areas, and the square of the cosine between them."""
    areas, other_areas = (v.norm(dim=1, keepdim=True) for v in (n, m))
    near = (-Vi(c).sqdist(Vj(d)) * Pm(1 / (2 * RESOLUTION**2))).exp()
    found: Tensor = (near * (Vi(n / areas) | Vj(m / other_areas)) ** 2 * Vi(areas) * Vj(other_areas)).sum(
        axis=1
    )
    return found.sum()


def dense_varifold(c: Tensor, n: Tensor, d: Tensor, m: Tensor) -> Tensor:
    areas, other_areas = (v.norm(dim=1, keepdim=True) for v in (n, m))
    near = torch.exp(-(c[:, None] - d).square().sum(-1) / (2 * RESOLUTION**2))
    return (near * (n @ m.T).square() / (areas * other_areas.T)).sum()


# ── the surfaces ──────────────────────────────────────────────────────────────────────────────────


def icosphere(rounds: int) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) on the unit sphere and faces (F, 3): an icosahedron, each face cut into four in each round."""
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, a, b * golden) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    points = [np.roll(corner, k) for k in range(3) for corner in corners]
    # The corners of an icosahedron with edges of length 2; three that are all so near are a face.
    faces = [
        (a, b, c) for a, b, c in combinations(range(12), 3)
        if max(np.linalg.norm(points[k] - points[m]) for k, m in ((a, b), (b, c), (c, a))) < 2.1
    ]  # fmt: skip
    for _ in range(rounds):
        middle: dict[tuple[int, int], int] = {}
        cut = []
        for face in faces:
            halves = []
            for k, m in zip(face, (*face[1:], face[0]), strict=True):
                edge = (min(k, m), max(k, m))
                if edge not in middle:
                    middle[edge] = len(points)
                    points.append((points[k] + points[m]) / 2)
                halves.append(middle[edge])
            (a, b, c), (ab, bc, ca) = face, halves
            cut += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = cut
    return torch.from_numpy(np.stack([p / np.linalg.norm(p) for p in points])), torch.tensor(faces)


def bent(vertices: Tensor) -> Tensor:
    """The sphere drawn out along one axis and bent about another."""
    x, y, z = vertices.unbind(1)
    return torch.stack([0.8 * x + 0.3 * z**2, 0.8 * y, 1.25 * z + 0.15 * y * x], dim=1)


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-9) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.asarray(found) - np.asarray(truth)).max() / np.abs(np.asarray(truth)).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    print(f"  {what}: relative error {error:.0e}")


if __name__ == "__main__":
    sys.exit(main())

"""Monte Carlo and local minimisation of Lennard-Jones clusters.

Reduced units throughout: energies in epsilon, lengths in sigma, temperatures in
epsilon/k.
A configuration is an array of positions with shape ``(atoms, 3)``. Everything
here is a plain function or value: no agent, no I/O, no global random state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

# Lowest known energies in ε, by number of atoms; each entry is a claim made by
# others, which is what makes it a check.
# Source: D. J. Wales, J. P. K. Doye et al., The Cambridge Cluster Database,
# https://www-wales.ch.cam.ac.uk/~jon/structures/LJ/tables.150.html
PUBLISHED_MINIMA: dict[int, float] = {
    2: -1.000000,
    3: -3.000000,
    4: -6.000000,
    5: -9.103852,
    6: -12.712062,
    7: -16.505384,
    8: -19.821489,
    9: -24.113360,
    10: -28.422532,
    11: -32.765970,
    12: -37.967600,
    13: -44.326801,
    14: -47.845157,
    15: -52.322627,
    16: -56.815742,
    17: -61.317995,
    18: -66.530949,
    19: -72.659782,
    20: -77.177043,
    21: -81.684571,
    22: -86.809782,
    23: -92.844472,
    24: -97.348815,
    25: -102.372663,
    26: -108.315616,
    31: -133.586422,
    38: -173.928427,
}


def energy(positions: Array) -> float:
    """Total energy of a configuration."""
    return float(_pair_energies(positions).sum() / 2)


def energy_and_gradient(positions: Array) -> tuple[float, Array]:
    """Total energy and its derivative by every coordinate."""
    delta = positions[:, None, :] - positions[None, :, :]
    squared = np.einsum("ijk,ijk->ij", delta, delta)
    np.fill_diagonal(squared, np.inf)
    inverse = 1.0 / squared
    sixth = inverse**3
    total = 2.0 * float((sixth * (sixth - 1.0)).sum())
    factor = (-48.0 * sixth * sixth + 24.0 * sixth) * inverse
    return total, np.einsum("ij,ijk->ik", factor, delta)


def container_radius(atoms: int) -> float:
    """Radius of the sphere that keeps atoms from evaporating for good.

    A close-packed crystal has one atom per sigma cubed, so this is the radius of a
    compact cluster and room for one atom to leave its surface and come back.
    """
    return float((3.0 * atoms / (4.0 * np.pi)) ** (1.0 / 3.0)) + 0.75


def random_configuration(atoms: int, radius: float, rng: np.random.Generator) -> Array:
    """Draw positions inside the container with no two atoms overlapping badly."""
    positions = np.empty((atoms, 3))
    placed = 0
    distance = 0.9
    while placed < atoms:
        point = rng.normal(size=3)
        point *= radius * rng.random() ** (1 / 3) / np.linalg.norm(point)
        apart = np.linalg.norm(positions[:placed] - point, axis=1)
        if placed == 0 or apart.min() > distance:
            positions[placed] = point
            placed += 1
        else:
            # Random packing jams long before it is dense: ask for a little less.
            distance *= 0.999
    return positions


def temperature_ladder(lowest: float, highest: float, replicas: int) -> list[float]:
    """Geometric ladder, which suits a heat capacity that hardly varies."""
    return [float(t) for t in np.geomspace(lowest, highest, replicas)]


@dataclass
class Sampler:
    """Metropolis sampling of one cluster at one temperature.

    One sweep proposes one move of each atom in turn. A move costs O(atoms):
    the pair energies of the current configuration are kept, so only the row of
    the moved atom is computed.

    Invariant: ``energy`` belongs to ``positions``, to rounding of the sum.
    """

    positions: Array
    temperature: float
    radius: float
    rng: np.random.Generator
    step: float = 0.15
    energy: float = field(init=False)
    _pairs: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.replace(self.positions)

    def replace(self, positions: Array) -> None:
        """Go on from another configuration, at this temperature."""
        self.positions = np.array(positions, dtype=np.float64)
        self._pairs = _pair_energies(self.positions)
        self.energy = float(self._pairs.sum() / 2)

    def sweep(self, sweeps: int) -> tuple[float, float]:
        """Run ``sweeps`` sweeps; return (acceptance, mean energy after a sweep)."""
        atoms = len(self.positions)
        moves = self.rng.uniform(-self.step, self.step, (sweeps, atoms, 3))
        thresholds = -self.temperature * np.log1p(-self.rng.random((sweeps, atoms)))
        accepted = 0
        summed = 0.0
        for sweep_moves, sweep_thresholds in zip(
            moves, thresholds.tolist(), strict=True
        ):
            accepted += self._one_sweep(sweep_moves, sweep_thresholds)
            summed += self.energy
        # Rounding of many small differences does not accumulate across calls.
        self.energy = float(self._pairs.sum() / 2)
        return accepted / (sweeps * atoms), summed / sweeps

    def adapt(self, acceptance: float, target: float = 0.4) -> None:
        """Move the step towards the wanted acceptance.

        Only while equilibrating: a step that depends on the past spoils the
        distribution that is sampled.
        """
        factor = min(1.25, max(0.8, (acceptance + 0.05) / (target + 0.05)))
        self.step = float(min(self.radius, max(0.01, self.step * factor)))

    def _one_sweep(self, moves: Array, thresholds: list[float]) -> int:
        positions, pairs = self.positions, self._pairs
        ones, limit = np.ones(3), self.radius**2
        trials = positions + moves
        inside = (trials * trials).dot(ones) <= limit
        accepted = 0
        for atom in np.flatnonzero(inside).tolist():
            delta = positions - trials[atom]
            squared = (delta * delta).dot(ones)
            squared[atom] = np.inf
            inverse = 1.0 / squared
            sixth = inverse * inverse * inverse
            row = 4.0 * sixth * (sixth - 1.0)
            change = float(np.add.reduce(row) - np.add.reduce(pairs[atom]))
            # Metropolis: accept if u < exp(-change / T), both sides as -T log.
            if change < thresholds[atom]:
                positions[atom] = trials[atom]
                pairs[atom] = row
                pairs[:, atom] = row
                self.energy += change
                accepted += 1
        return accepted


def swap_probability(
    temperature_a: float, energy_a: float, temperature_b: float, energy_b: float
) -> float:
    """Metropolis probability of exchanging two replicas' configurations."""
    exponent = (1 / temperature_a - 1 / temperature_b) * (energy_a - energy_b)
    return float(np.exp(min(0.0, exponent)))


def quench(
    positions: Array, *, tolerance: float = 1e-6, max_steps: int = 1000
) -> tuple[float, Array]:
    """Follow the gradient down to the local minimum (inherent structure).

    Limited-memory BFGS with a bounded step instead of a line search, which is
    what cluster optimisers do: the landscape is rough far from a minimum and
    nearly quadratic close to it.

    Args:
        positions: Start; not changed.
        tolerance: Stop at this root mean square gradient, in epsilon/sigma.
        max_steps: Stop here in any case.
    """
    x = positions.ravel().copy()
    value, gradient = _flat(x)
    history: list[tuple[Array, Array]] = []
    for _ in range(max_steps):
        if np.sqrt(gradient.dot(gradient) / len(gradient)) < tolerance:
            break
        direction = _bfgs_direction(gradient, history)
        x_new, value_new, gradient_new = _bounded_step(x, value, direction)
        if value_new > value:
            if not history:
                break  # not even the plain gradient descends: rounding is reached
            history = []
            continue
        s, y = x_new - x, gradient_new - gradient
        # Negative curvature has no place in a positive definite approximation.
        if s.dot(y) > 1e-12:
            history = [*history[-9:], (s, y)]
        x, value, gradient = x_new, value_new, gradient_new
    return value, x.reshape(-1, 3)


def _flat(x: Array) -> tuple[float, Array]:
    value, gradient = energy_and_gradient(x.reshape(-1, 3))
    return value, gradient.ravel()


def _bfgs_direction(gradient: Array, history: list[tuple[Array, Array]]) -> Array:
    """Two-loop recursion over the remembered (step, gradient change) pairs."""
    direction = -gradient
    weights = []
    for s, y in reversed(history):
        weight = s.dot(direction) / s.dot(y)
        direction = direction - weight * y
        weights.append(weight)
    if history:
        s, y = history[-1]
        direction = direction * (s.dot(y) / y.dot(y))
    else:
        direction = direction * 0.002
    for (s, y), weight in zip(history, reversed(weights), strict=True):
        direction = direction + s * (weight - y.dot(direction) / s.dot(y))
    if direction.dot(gradient) > 0:
        return np.negative(direction)
    return direction


def _bounded_step(
    x: Array, value: float, direction: Array, longest: float = 0.4
) -> tuple[Array, float, Array]:
    """Step along ``direction``, shortened until the energy does not rise."""
    length = float(np.linalg.norm(direction))
    scale = min(1.0, longest / length)
    shortest = 1e-9 * scale
    while True:
        x_new = x + scale * direction
        value_new, gradient_new = _flat(x_new)
        if value_new <= value or scale < shortest:
            return x_new, value_new, gradient_new
        scale *= 0.2


def _pair_energies(positions: Array) -> Array:
    delta = positions[:, None, :] - positions[None, :, :]
    squared = np.einsum("ijk,ijk->ij", delta, delta)
    np.fill_diagonal(squared, np.inf)
    sixth = squared**-3
    return np.asarray(4.0 * sixth * (sixth - 1.0))

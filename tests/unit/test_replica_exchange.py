"""The physics of the demonstration, against closed forms and published numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from academy.demo import physics
from academy.demo.settings import Settings, Simulation

Array = NDArray[np.float64]

EXAMPLE = Path(__file__).parents[2] / "examples" / "hpc" / "replica_exchange.toml"


def cluster(atoms: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    radius = physics.container_radius(atoms)
    return physics.random_configuration(atoms, radius, rng)


def sampler(atoms: int, temperature: float, seed: int = 1) -> physics.Sampler:
    return physics.Sampler(
        positions=cluster(atoms, seed),
        temperature=temperature,
        radius=physics.container_radius(atoms),
        rng=np.random.default_rng(seed),
    )


def dimer_mean_energy(temperature: float, radius: float) -> float:
    """Canonical mean energy of two atoms in a sphere, by numerical integration.

    The weight of a distance is the one of two uniform points in a ball.
    Source: https://mathworld.wolfram.com/BallLinePicking.html
    """
    r = np.linspace(0.5, 2 * radius, 200_001)
    s = r / radius
    weight = 3 * s**2 - 9 / 4 * s**3 + 3 / 16 * s**5
    potential = 4 * (r**-12 - r**-6)
    boltzmann = weight * np.exp(-potential / temperature)
    return float((potential * boltzmann).sum() / boltzmann.sum())


def test_two_atoms_at_the_bottom_of_the_well_have_energy_minus_one() -> None:
    dimer = np.array([[0.0, 0.0, 0.0], [0.0, 2 ** (1 / 6), 0.0]])
    energy, gradient = physics.energy_and_gradient(dimer)
    assert physics.energy(dimer) == pytest.approx(-1.0, abs=1e-12)
    assert energy == pytest.approx(-1.0, abs=1e-12)
    assert gradient == pytest.approx(np.zeros((2, 3)), abs=1e-12)


def test_the_gradient_is_the_derivative_of_the_energy() -> None:
    positions = cluster(6)
    _, gradient = physics.energy_and_gradient(positions)
    step = 1e-6
    numerical = np.empty_like(gradient)
    for index in np.ndindex(*positions.shape):
        shifted = positions.copy()
        shifted[index] += step
        upper = physics.energy(shifted)
        shifted[index] -= 2 * step
        numerical[index] = (upper - physics.energy(shifted)) / (2 * step)
    assert gradient == pytest.approx(numerical, rel=1e-5, abs=1e-5)


def test_the_kept_energy_is_the_energy_of_the_kept_positions() -> None:
    replica = sampler(13, 0.35)
    for _ in range(5):
        replica.sweep(40)
        assert replica.energy == pytest.approx(physics.energy(replica.positions))


def test_no_atom_leaves_the_container() -> None:
    replica = sampler(7, 2.0)
    replica.sweep(300)
    assert np.linalg.norm(replica.positions, axis=1).max() <= replica.radius


def test_the_same_seed_samples_the_same_energies() -> None:
    first, second = sampler(13, 0.3, seed=7), sampler(13, 0.3, seed=7)
    assert [first.sweep(20) for _ in range(4)] == [second.sweep(20) for _ in range(4)]
    assert first.positions.tolist() == second.positions.tolist()


@pytest.mark.parametrize("temperature", [0.25, 0.6])
def test_sampling_two_atoms_gives_the_canonical_mean_energy(temperature: float) -> None:
    replica = sampler(2, temperature)
    replica.step = 0.8
    replica.sweep(500)
    means = np.array([replica.sweep(200)[1] for _ in range(120)])
    exact = dimer_mean_energy(temperature, replica.radius)
    # Five standard errors; the seed is fixed, so this never turns by chance.
    assert abs(means.mean() - exact) < 5 * means.std() / np.sqrt(len(means))
    assert means.mean() == pytest.approx(exact, abs=0.02)


def test_swapping_leaves_the_mean_energy_of_each_temperature_canonical() -> None:
    temperatures = (0.25, 0.6)
    cold, hot = (sampler(2, t, seed) for seed, t in enumerate(temperatures))
    cold.step = hot.step = 0.8
    draws = np.random.default_rng(3)
    sampled = []
    for _ in range(2500):
        sampled.append((cold.sweep(10)[1], hot.sweep(10)[1]))
        if draws.random() < physics.swap_probability(
            cold.temperature, cold.energy, hot.temperature, hot.energy
        ):
            colder, hotter = cold.positions.copy(), hot.positions.copy()
            cold.replace(hotter)
            hot.replace(colder)
    blocks = np.array(sampled).reshape(50, 50, 2).mean(axis=1)
    for index, temperature in enumerate(temperatures):
        exact = dimer_mean_energy(temperature, cold.radius)
        error = blocks[:, index].std() / np.sqrt(len(blocks))
        assert abs(blocks[:, index].mean() - exact) < 5 * error


def test_a_swap_that_cools_the_lower_energy_is_certain() -> None:
    assert physics.swap_probability(0.2, -1.0, 0.3, -2.0) == 1.0


def test_swapping_there_and_back_balances_in_detail() -> None:
    cold, hot, low, high = 0.2, 0.3, -2.0, -1.5
    there = physics.swap_probability(cold, low, hot, high)
    back = physics.swap_probability(cold, high, hot, low)
    weight = np.exp(-low / cold - high / hot)
    weight_back = np.exp(-high / cold - low / hot)
    assert there * weight == pytest.approx(back * weight_back)


def test_a_quench_ends_where_no_force_is_left_and_below_its_start() -> None:
    start = cluster(19)
    kept = start.copy()
    energy, positions = physics.quench(start)
    _, gradient = physics.energy_and_gradient(positions)
    assert np.abs(gradient).max() < 1e-5
    assert energy == pytest.approx(physics.energy(positions))
    assert energy < physics.energy(start)
    assert np.array_equal(start, kept)


def test_a_quench_of_the_perturbed_icosahedron_is_the_published_minimum() -> None:
    golden = (1 + np.sqrt(5)) / 2
    corners = [
        np.roll([0.0, a, b * golden], shift)
        for shift in range(3)
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    icosahedron = np.array([[0.0, 0.0, 0.0], *corners]) * 0.57
    icosahedron += np.random.default_rng(5).normal(scale=0.03, size=(13, 3))
    energy, _ = physics.quench(icosahedron)
    assert energy == pytest.approx(physics.PUBLISHED_MINIMA[13], abs=1e-6)


@pytest.mark.parametrize("atoms", [2, 3, 4, 5, 6, 7])
def test_quenching_what_is_sampled_finds_the_published_minimum(atoms: int) -> None:
    replica = sampler(atoms, 0.3)
    lowest = min(
        physics.quench(replica.positions)[0] for _ in range(60) if replica.sweep(20)
    )
    assert lowest == pytest.approx(physics.PUBLISHED_MINIMA[atoms], abs=1e-6)


def test_the_ladder_is_geometric_from_the_lowest_to_the_highest() -> None:
    ladder = np.array(Simulation(replicas=5).temperatures)
    ratios = ladder[1:] / ladder[:-1]
    assert ladder[[0, -1]] == pytest.approx([0.15, 0.40])
    assert ratios == pytest.approx(np.full(4, ratios[0]))


def test_the_example_file_states_the_defaults() -> None:
    assert Settings.from_toml(EXAMPLE) == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[simulation]\natom = 7", "unknown key simulation.atom; did you mean atoms?"),
        ("[simulaton]", "unknown key simulaton; did you mean simulation?"),
        ("[simulation]\natoms = 1.5", "simulation.atoms must be int, not 1.5"),
        ("[simulation]\natoms = true", "simulation.atoms must be int, not True"),
        ("[simulation]\nreplicas = 1", "replicas must be at least 2, not 1"),
        ("[simulation]\nhighest_temperature = 0.1", "lowest_temperature < "),
        ("[executor]\nagents_per_worker = 0", "must be at least 1, not 0"),
        ("executor = 3", "executor must be a table: [executor]"),
        ("[simulation", "is not valid TOML"),
    ],
)
def test_a_wrong_input_file_is_refused_with_the_key_and_its_neighbours(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "input.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        Settings.from_toml(path)
    assert str(path) in str(refused.value)


def test_a_parsl_file_is_looked_for_beside_the_input_file(tmp_path: Path) -> None:
    path = tmp_path / "input.toml"
    path.write_text('[executor]\nparsl_config = "slurm.py"')
    assert Settings.from_toml(path).executor.parsl_config == tmp_path / "slurm.py"

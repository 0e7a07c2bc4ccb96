"""Replica exchange Monte Carlo of a Lennard-Jones cluster, with agents."""

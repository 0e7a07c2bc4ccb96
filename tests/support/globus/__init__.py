"""A real Globus Compute endpoint and SDK, without the cloud.

`ComputeLab` starts the endpoint and a RabbitMQ, and stands in for the service between
them and their clients.
"""

from tests.support.globus.lab import VENV, ComputeLab

__all__ = ["VENV", "ComputeLab"]

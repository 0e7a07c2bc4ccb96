"""A Globus Compute of our own: a real endpoint and broker, a stand-in for the cloud."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

import psutil
from globus_compute_sdk import Client
from globus_compute_sdk.sdk.client import _ComputeWebClient
from globus_sdk import AccessTokenAuthorizer

from tests.support.globus import rabbitmq
from tests.support.globus.broker import Broker
from tests.support.globus.cloud import Cloud
from tests.support.slurm.daemons import Cleaner, Daemons, refusal

ROOT = Path(__file__).parents[3]
VENV = ROOT / ".venv" / "globus-endpoint"
"""What scripts/globus-endpoint-venv makes: the endpoint's environment."""

TEMPLATE = Path(__file__).with_name("template.yaml.j2").read_text()

# The service's address is fixed in the SDK: this is the one thing that is changed.
_CONFIG = """\
import os
import globus_compute_sdk.sdk.client as client
client.get_web_service_url = lambda envname=None: os.environ["TEST_COMPUTE_URL"]
from globus_compute_endpoint.endpoint.config import CoreEndpointConfig
config = CoreEndpointConfig(
    email="ada@example.org",
    heartbeat_period=5,
    # A user endpoint that is told to end is not started again.
    mu_child_ep_grace_period_s=0,
    debug=True,
)
"""


class ComputeLab:
    """The real endpoint, with RabbitMQ, and a stand-in for the service.

    Use it as a context manager; it is up within five seconds. When this process is
    killed, all its processes are, and its directory is removed.

    Args:
        template: the endpoint's template for its user endpoints.
        schema: for what goes into it.
        env: of the endpoint, and of what it starts.

    Attributes:
        cloud: the stand-in.
        endpoint_id: of the endpoint.
        directory: of all.
    """

    @staticmethod
    def missing() -> str | None:
        """Say what keeps this from running here, if anything does."""
        if not (VENV / "bin" / "globus-compute-endpoint").exists():
            return f"no endpoint in {VENV}; `make test` installs it"
        return rabbitmq.missing() or refusal()

    def __init__(
        self,
        template: str = TEMPLATE,
        schema: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = Path(tempfile.gettempdir(), f"globus-{secrets.token_hex(4)}")
        self._template = template
        self._schema = schema
        self._env = env or {}
        self._folder = self.directory / "gc" / "lab"
        self.endpoint_id = ""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(Cleaner(self.directory).clean)
            self._folder.mkdir(parents=True)
            self._daemons = Daemons(self.directory, os.environ)
            stack.callback(self._daemons.kill_all)
            broker = rabbitmq.RabbitMQ(self.directory / "rabbitmq", self._daemons)
            broker.begin()
            broker.wait()
            self.broker_port = broker.port
            self.cloud = stack.enter_context(Cloud(Broker(broker.url)))
            self._start_endpoint()
            try:
                self.endpoint_id = self.cloud.wait_for_endpoint()
            except TimeoutError as error:
                for log, words in self.last_words().items():
                    error.add_note(f"{log}:\n{words}")
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_endpoint(self) -> None:
        (self._folder / "config.py").write_text(_CONFIG)
        (self._folder / "user_config_template.yaml.j2").write_text(self._template)
        if self._schema:
            (self._folder / "user_config_schema.json").write_text(self._schema)
        path = os.pathsep.join([str(VENV / "bin"), os.environ["PATH"]])
        env = {
            "GLOBUS_COMPUTE_USER_DIR": str(self.directory / "gc"),
            "HOME": pwd.getpwuid(os.getuid()).pw_dir,
            "PATH": path,
            # Agents of tests are importable on the endpoint.
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.directory),
            **self._env,
        }
        # Of root, a user endpoint gets no other environment than this.
        file = self._folder / "user_environment.yaml"
        file.write_text(json.dumps({k: v for k, v in env.items() if k != "HOME"}))
        env |= {
            "TEST_COMPUTE_URL": self.cloud.url,
            "GLOBUS_COMPUTE_CLIENT_ID": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee",
            "GLOBUS_COMPUTE_CLIENT_SECRET": "none",
            "GLOBUS_SDK_SERVICE_URL_AUTH": f"{self.cloud.url}/",
        }
        settings = (f"{key}={value}" for key, value in env.items())
        command = VENV / "bin" / "globus-compute-endpoint"
        # The endpoint does not reap orphans, which its user endpoints leave. As process
        # 1, bash does.
        wait = '"$@" & wait $!'
        run = ("env", "-i", *settings, command, "start", "lab")
        self._daemons.start("endpoint", "bash", "-c", wait, "endpoint", *run)

    # --- for tests

    def client(self) -> Client:
        """Return a client of the SDK that talks to this service."""
        return client(self.cloud.url)

    def user_endpoints(self) -> set[psutil.Process]:
        """Return the processes of user endpoints."""
        endpoint = min(self._init().children(), key=psutil.Process.create_time)
        return set(endpoint.children())

    def stop(self, user_endpoints: Collection[psutil.Process]) -> None:
        """End user endpoints as their owner would, and all that they have started."""
        # What they start is in their session, also when it has left them.
        sessions = {process.pid for process in user_endpoints}
        started = [one for one in self._init().children(True) if _in(sessions, one)]
        for process in user_endpoints:
            process.terminate()
        _, left = psutil.wait_procs(started, timeout=10)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)

    def _init(self) -> psutil.Process:
        return self._daemons.main_process("endpoint")

    def last_words(self) -> dict[str, str]:
        """Return the ends of all logs."""
        logs = [*self.directory.glob("*.out"), *self.directory.glob("gc/*/*.log")]
        return {str(log): log.read_text(errors="replace")[-4000:] for log in logs}


def _in(sessions: Collection[int], process: psutil.Process) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(process.pid) in sessions
    return False


def client(url: str) -> Client:
    """Return a client of the SDK for a service elsewhere than at Globus."""
    authorizer = AccessTokenAuthorizer("token")
    made = Client(authorizer=authorizer, do_version_check=False)
    made._compute_web_client = _ComputeWebClient(base_url=url, authorizer=authorizer)
    return made

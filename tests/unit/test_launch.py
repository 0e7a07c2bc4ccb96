"""What travels to a worker, and what a worker makes of it."""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
import threading
from typing import Any

import pytest

from academy.agent import Agent
from academy.exception import AcademyRemoteError
from academy.exchange.factory import ExchangeFactory
from academy.exchange.local import LocalExchangeFactory
from academy.exchange.transport import AgentRegistration, ExchangeTransport
from academy.failure import MissingModuleError
from academy.identifier import AgentId
from academy.launch import AgentSpec, LaunchOptions, WorkerMismatchError, run_agent
from academy.launch.ending import AgentInterruptedError, portable_error
from academy.launch.spec import check_pickles, pack_agent
from academy.logging.configs.console import ConsoleLogging
from academy.manager.checks import check_options
from academy.runtime import RuntimeConfig
from tests.support.launchables import Counter


class Nowhere(ExchangeFactory):
    """An exchange that travels, and leads nowhere."""

    async def connect(self, *args: Any, **kwargs: Any) -> ExchangeTransport:
        raise OSError("nobody is here")


def spec(agent: Any = Counter, *args: Any, **kwargs: Any) -> AgentSpec:
    registration: AgentRegistration[Any] = AgentRegistration(AgentId.new("a"), "token")
    return AgentSpec(
        agent, Nowhere(), registration, RuntimeConfig(), None, args, kwargs
    )


# --- packing


def test_a_type_travels_with_its_arguments() -> None:
    agent = AgentSpec.unpack(spec(Counter, 3, step=2).pack()).build()
    assert isinstance(agent, Counter)
    assert (agent.value, agent.step) == (3, 2)


def test_an_instance_travels_with_its_state() -> None:
    agent = Counter()
    agent.value = 41
    copy = AgentSpec.unpack(spec(agent).pack()).build()
    assert isinstance(copy, Counter)
    assert copy.value == 41
    assert copy is not agent


def test_an_instance_that_was_not_packed_is_used_as_it_is() -> None:
    agent = Counter()
    assert spec(agent).build() is agent


def test_what_surrounds_the_agent_travels_too() -> None:
    log_config = ConsoleLogging()
    registration: AgentRegistration[Any] = AgentRegistration(AgentId.new("a"), "token")
    config = RuntimeConfig(max_sync_concurrency=3)
    sent = AgentSpec(Counter, Nowhere(), registration, config, log_config)
    got = AgentSpec.unpack(sent.pack())
    assert (got.registration, got.config) == (registration, config)
    assert isinstance(got.exchange_factory, Nowhere)
    assert got.log_config is not None
    assert got.log_config.uuid == log_config.uuid


def test_a_local_class_goes_by_value() -> None:
    class Local(Agent):
        value = 7

    assert AgentSpec.unpack(spec(Local).pack()).build().value == 7


def test_a_spec_is_read_without_importing_its_agent() -> None:
    packed = spec(b"this would not unpickle").pack()
    assert AgentSpec.unpack(packed).registration.agent_id.name == "a"


def test_an_agent_whose_module_is_missing_says_where_it_is_missing() -> None:
    by_reference = b"\x80\x05cno_such_package.agents\nThing\n."
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
        AgentSpec.unpack(spec(by_reference).pack()).build()
    assert isinstance(caught.value, MissingModuleError)
    assert caught.value.host == socket.gethostname()
    assert caught.value.name == "no_such_package"
    (note,) = caught.value.__notes__
    assert socket.gethostname() in note
    assert sys.executable in note


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((1, threading.Lock()), {}, r"argument args\[1\] \(of type _thread.lock\)"),
        ((), {"start": threading.Lock()}, r'argument kwargs\["start"\]'),
    ],
)
def test_an_argument_that_does_not_pickle_is_named(
    args: tuple[Any, ...], kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(pickle.PicklingError, match=named):
        pack_agent(Counter, args, kwargs)


def test_an_attribute_that_does_not_pickle_is_named() -> None:
    agent = Counter()
    agent.lock = threading.Lock()  # type: ignore[attr-defined]  # added by the test
    with pytest.raises(pickle.PicklingError, match="agent instance's attribute lock"):
        pack_agent(agent, (), {})


def test_an_agent_that_refuses_to_be_pickled_is_named() -> None:
    class Refusing(Agent):
        def __reduce__(self) -> Any:
            raise TypeError("not me")

    with pytest.raises(pickle.PicklingError, match=r"Refusing.*not me"):
        pack_agent(Refusing(), (), {})


def test_the_local_exchange_stays_here_and_says_what_to_use_instead() -> None:
    with pytest.raises(pickle.PicklingError, match="HttpExchangeFactory"):
        check_pickles(LocalExchangeFactory(), "the exchange")


# --- what does not fit


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"Python": "3.1"}, "runs Python 3.*launched the agent Python 3.1"),
        ({"academy-hpc": "77.7"}, "academy-hpc 77.7"),
    ],
)
def test_a_worker_of_another_version_says_so(
    versions: dict[str, str], words: str
) -> None:
    here, packed = pickle.loads(spec().pack())
    with pytest.raises(WorkerMismatchError, match=words) as caught:
        AgentSpec.unpack(pickle.dumps((here | versions, packed)))
    assert socket.gethostname() in str(caught.value)


def test_versions_are_compared_before_anything_else_is_read() -> None:
    here, _ = pickle.loads(spec().pack())
    other = dict.fromkeys(here, "0")
    with pytest.raises(WorkerMismatchError):
        AgentSpec.unpack(pickle.dumps((other, b"this would not unpickle")))


# --- what comes back


def test_a_run_raises_what_ended_it() -> None:
    with pytest.raises(OSError, match="nobody is here"):
        run_agent(spec().pack())


def test_an_error_that_pickles_comes_back_as_it_is() -> None:
    error = ExceptionGroup("two", [ValueError(1), KeyError("x")])
    assert portable_error(error) is error


def test_an_error_that_does_not_pickle_comes_back_as_text() -> None:
    error = ValueError("held", threading.Lock())
    portable = portable_error(error)
    assert isinstance(portable, AcademyRemoteError)
    assert "ValueError: ('held'" in str(portable)
    pickle.loads(pickle.dumps(portable))


def test_an_error_that_cannot_be_made_again_comes_back_as_text() -> None:
    class NeedsTwoError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one)

    assert isinstance(portable_error(NeedsTwoError(1, 2)), AcademyRemoteError)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_would_end_the_launching_program_comes_back_as_an_error(
    error: BaseException,
) -> None:
    portable = portable_error(error)
    assert isinstance(portable, AgentInterruptedError)
    assert repr(error) in str(portable)


def test_errors_of_a_launch_pickle() -> None:
    for error in (
        WorkerMismatchError("Python", "3.11", "3.9", "node7", "4711"),
        AgentInterruptedError("SIGTERM", "node7"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_an_agent_cannot_be_run_inside_of_a_running_event_loop() -> None:
    async def main() -> None:
        run_agent(spec())

    with pytest.raises(RuntimeError, match="event loop is running"):
        asyncio.run(main())


# --- options


def test_every_launch_option_is_accepted_and_no_other() -> None:
    check_options(dict.fromkeys(LaunchOptions.__annotations__))
    with pytest.raises(TypeError, match=r'option "submit_kwarg".*"submit_kw'):
        check_options({"submit_kwarg": {}})

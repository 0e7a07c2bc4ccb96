"""The plugin as users meet it: mypy run over programs, with the plugin enabled.

A line that ends in `# E: TEXT` must be an error whose message contains TEXT; every
other line must be none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

AGENTS = """
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import academy.agent as aliased
from academy import agent as module
from academy.agent import Agent, action, loop
from academy.context import ActionContext
import asyncio

T = TypeVar("T")

def traced(f: Callable[..., Any]) -> Callable[..., Any]:
    return f

class Resets:
    @action
    async def reset(self) -> None: ...

class Counter(Resets, Agent):
    count: int = 0

    @action
    async def add(self, amount: int, *, times: int = 1) -> int:
        return self.helper(amount * times)

    @action(idempotent=True)
    async def label(self) -> str:
        return "counter"

    @action(context=True)
    async def asked_by(self, prefix: str, *, context: ActionContext) -> str:
        return f"{prefix} {context.source_id}"

    @action(idempotent=True)
    async def each(self, to: int) -> AsyncIterator[int]:
        yield to

    @action(context=True)
    async def each_caller(self, *, context: ActionContext) -> AsyncIterator[str]:
        yield str(context.source_id)

    @module.action
    async def through_module(self) -> bytes:
        return b""

    @aliased.action()
    async def through_alias(self) -> float:
        return 1.0

    @traced
    async def traced(self) -> int:
        return 1

    @loop
    async def run(self, shutdown: asyncio.Event) -> None: ...

    @property
    def size(self) -> int:
        return 1

    def helper(self, amount: int) -> int:
        return amount

class Doubler(Counter):
    @action
    async def double(self) -> int:
        return 2

class Lamp(Agent):
    @action
    async def switch(self, on: bool) -> None: ...

    @action
    async def label(self) -> int:
        return 1

class Store(Agent, Generic[T]):
    @action
    async def put(self, item: T) -> None: ...

    @action
    async def get(self) -> T:
        raise LookupError
"""

HEADER = """
from typing import Any, TypeVar, assert_type
from academy.agent import Agent
from academy.handle import Handle, ProxyHandle
from agents import Counter, Doubler, Lamp, Store
"""

CASES = {
    "an_action_has_its_own_signature": """
async def main(handle: Handle[Counter]) -> None:
    assert_type(await handle.add(1), int)
    assert_type(await handle.add(1, times=2), int)
    assert_type(await handle.label(), str)
    assert_type(await handle.through_module(), bytes)
    assert_type(await handle.through_alias(), float)
    await handle.add("1")  # E: incompatible type "str"; expected "int"
    await handle.add()  # E: Missing positional argument "amount"
    await handle.add(1, time=2)  # E: Unexpected keyword argument "time"
    n: str = await handle.add(1)  # E: expression has type "int"
""",
    "a_stream_is_iterated_over": """
async def main(handle: Handle[Counter], proxy: ProxyHandle[Counter]) -> None:
    async for item in handle.each(3):
        assert_type(item, int)
    async for caller in handle.each_caller():
        assert_type(caller, str)
    assert_type([n async for n in proxy.each(3)], list[int])
    handle.each("3")  # E: incompatible type "str"; expected "int"
    await handle.each(3)  # E: Incompatible types in "await"
    async for _ in handle.add(1): ...  # E: "Coroutine[Any, Any, int]" has no attribute
""",
    "an_unknown_action_is_an_error_that_names_it": """
async def main(handle: Handle[Counter]) -> None:
    await handle.subtract(1)  # E: "Counter" has no action "subtract"
    await handle.lable()  # E: "Counter" has no action "lable"; maybe "label"?
    handle._private  # E: "Counter" has no action "_private"
""",
    "what_is_no_action_of_the_agent_is_an_error": """
async def main(handle: Handle[Counter]) -> None:
    handle.helper(1)  # E: "helper" of "Counter" is not an action
    handle.count  # E: "count" of "Counter" is not an action
    handle.size  # E: "size" of "Counter" is not an action
    handle.run  # E: "run" of "Counter" is not an action
    handle.agent_on_startup  # E: "agent_on_startup" of "Counter" is not an action
""",
    "a_method_with_somebody_s_decorator_may_be_an_action": """
async def main(handle: Handle[Counter]) -> None:
    await handle.traced()
""",
    "the_context_comes_from_the_runtime_not_from_the_caller": """
async def main(handle: Handle[Counter]) -> None:
    assert_type(await handle.asked_by("by"), str)
    await handle.asked_by("by", context=None)  # E: Unexpected keyword argument
""",
    "actions_of_base_classes_and_mixins_are_known": """
async def main(handle: Handle[Doubler]) -> None:
    assert_type(await handle.double(), int)
    assert_type(await handle.add(1), int)
    await handle.reset()
    await handle.agent_describe()
    await handle.add("1")  # E: incompatible type
    await handle.halve()  # E: "Doubler" has no action "halve"
""",
    "attributes_of_the_handle_itself_are_left_alone": """
async def main(handle: Handle[Counter]) -> None:
    assert_type(await handle.ping(timeout=1), float)
    await handle.shutdown()
    handle.agent_id.uid
    assert_type(await handle.action(Counter.add, 1), int)
""",
    "a_handle_to_any_agent_is_not_checked": """
async def main(handle: Handle[Any]) -> None:
    await handle.anything(1)
""",
    "a_handle_to_the_base_class_has_its_actions_only": """
async def main(handle: Handle[Agent]) -> None:
    await handle.agent_describe()
    await handle.add(1)  # E: "Agent" has no action "add"
""",
    "a_proxy_handle_is_checked_as_well": """
async def main() -> None:
    handle = ProxyHandle(Counter())
    assert_type(await handle.add(1), int)
    handle.agent.helper(1)
    await handle.subtract(1)  # E: "Counter" has no action "subtract"
""",
    "a_generic_agent_gives_its_actions_its_types": """
async def main(handle: Handle[Store[int]]) -> None:
    assert_type(await handle.get(), int)
    await handle.put("text")  # E: incompatible type "str"; expected "int"
""",
    "unions_have_the_actions_of_all_their_agents": """
Either = Handle[Counter] | Handle[Lamp]

async def main(one: Either, two: Handle[Counter | Lamp]) -> None:
    assert_type(await one.label(), str | int)
    assert_type(await two.label(), str | int)
    await one.add(1)  # E: "Lamp" has no action "add"
    await two.add(1)  # E: "Lamp" has no action "add"

async def optional(handle: Handle[Counter] | None) -> None:
    handle.add(1)  # E: Item "None"
    if handle is not None:
        assert_type(await handle.add(1), int)
""",
    "a_type_variable_has_the_actions_of_its_bound": """
A = TypeVar("A", bound=Counter)
H = TypeVar("H", bound=Handle[Counter])

async def main(handle: Handle[A], other: H, kind: type[A]) -> None:
    assert_type(await handle.add(1), int)
    assert_type(await other.add(1), int)
    await handle.subtract()  # E: "Counter" has no action "subtract"
""",
    "subclasses_of_handle_keep_their_own_attributes": """
class CounterHandle(Handle[Counter]):
    nickname: str = ""

async def main(handle: CounterHandle) -> None:
    assert_type(handle.nickname, str)
    assert_type(await handle.add(1), int)
    await handle.subtract()  # E: "Counter" has no action "subtract"
""",
    "agents_defined_below_their_use_are_known": """
from academy.agent import action

async def main(handle: "Handle[Late]") -> None:
    assert_type(await handle.ask(), int)

class Late(Agent):
    def __init__(self, peer: "Handle[Late]") -> None:
        self.peer = peer

    @action
    async def ask(self) -> int:
        return await self.peer.ask() + await self.peer.tell()  # E: no action "tell"
""",
}

Errors = dict[int, list[str]]
Mypy = Callable[[], dict[str, Errors]]


@pytest.fixture
def mypy(tmp_path: Path) -> Mypy:
    """Runs mypy with the plugin over the files of `tmp_path`; errors by file."""
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nplugins = academy.mypy_plugin\n"
    )

    def run() -> dict[str, Errors]:
        files = sorted(path.name for path in tmp_path.glob("*.py"))
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--output=json", *files],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        found: dict[str, Errors] = {file: {} for file in files}
        for error in map(json.loads, filter(str.strip, done.stdout.splitlines())):
            if error["severity"] == "error":
                lines = found.setdefault(error["file"], {})
                lines.setdefault(error["line"], []).append(error["message"])
        return found

    return run


def unexpected(program: str, found: Errors) -> list[str]:
    """Say where the errors are not those that the program's comments announce."""
    wrong: list[str] = []
    for number, line in enumerate(program.splitlines(), start=1):
        expected = re.search(r"# E:(.*)", line)
        messages = found.get(number, [])
        if expected:
            right = any(expected[1].strip() in message for message in messages)
        else:
            right = not messages
        if not right:
            wrong.append(f"{number}: {line.strip()}\n    found {messages}")
    return wrong


def test_handles_are_checked_as_the_cases_say(tmp_path: Path, mypy: Mypy) -> None:
    """All in one run, since most of its time goes into reading the library."""
    programs = {f"{name}.py": HEADER + body for name, body in CASES.items()}
    for name, program in {**programs, "agents.py": AGENTS}.items():
        (tmp_path / name).write_text(program)
    found = mypy()
    assert found["agents.py"] == {}
    wrong = {name: unexpected(text, found[name]) for name, text in programs.items()}
    assert {name: lines for name, lines in wrong.items() if lines} == {}


def test_what_is_an_action_is_known_from_the_cache_and_when_it_changes(
    tmp_path: Path, mypy: Mypy
) -> None:
    user, agents = tmp_path / "user.py", tmp_path / "agents.py"
    agents.write_text(AGENTS)
    call = "async def main(handle: Handle[Counter]) -> None:\n    await handle."
    user.write_text(f"{HEADER}{call}add(1)\n")
    assert mypy()["user.py"] == {}

    user.write_text(f"{HEADER}{call}add('1')\n")  # agents.py comes from the cache
    ((message,),) = mypy()["user.py"].values()
    assert 'incompatible type "str"' in message

    user.write_text(f"{HEADER}{call}add(1)\n")
    before = "@action\n    async def add"
    agents.write_text(AGENTS.replace(before, "async def add"))
    ((message,),) = mypy()["user.py"].values()
    assert '"add" of "Counter" is not an action' in message

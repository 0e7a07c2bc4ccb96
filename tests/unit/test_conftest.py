"""What every test is held to, tried on programs that break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., pytest.RunResult]

CONFTEST = Path(__file__).parents[1] / "conftest.py"
CONFIGURATION = """
    [pytest]
    asyncio_mode = auto
    asyncio_default_fixture_loop_scope = function
    filterwarnings = error
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run test modules under our conftest, in a process of their own."""
    # The grace is for what is ending; here nothing is, and waiting proves nothing.
    conftest = CONFTEST.read_text().replace("GRACE = 5.0", "GRACE = 0.2")
    pytester.makeconftest(conftest)
    pytester.makeini(CONFIGURATION)
    # Loading every plugin that is installed takes most of the time.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(**modules: str) -> pytest.RunResult:
        pytester.makepyfile(**modules)
        return pytester.runpytest_subprocess(
            "-ppytest_asyncio.plugin", "-pno:cacheprovider"
        )

    return run


SKIPS = """
    import pytest

    def test_calls_skip():
        pytest.skip("no Slurm")

    @pytest.mark.skipif(True, reason="no MPI")
    def test_is_marked():
        pass

    @pytest.mark.xfail(reason="known")
    def test_fails_as_expected():
        assert False

    def test_runs():
        pass
"""


def test_a_skip_fails_in_ci_and_tells_its_reason(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    result = run(test_skips=SKIPS)
    assert result.parseoutcomes() == {
        "failed": 1,
        "errors": 1,
        "xfailed": 1,
        "passed": 1,
    }
    result.stdout.fnmatch_lines_random(["*in CI: *no Slurm*", "*in CI: *no MPI*"])


def test_a_module_that_skips_itself_fails_in_ci(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    result = run(
        test_skips_itself="""
        import pytest

        pytest.importorskip("there_is_no_such_module")
        """
    )
    assert result.parseoutcomes() == {"errors": 1}
    result.stdout.fnmatch_lines(["*in CI: *there_is_no_such_module*"])


def test_outside_ci_a_skip_is_a_skip(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    outcomes = run(test_skips=SKIPS).parseoutcomes()
    assert outcomes == {"skipped": 2, "xfailed": 1, "passed": 1}


def test_what_a_test_leaves_behind_fails_it(run: Run) -> None:
    result = run(
        test_leaks="""
        import asyncio
        import socket
        import subprocess
        import threading

        end = threading.Event()
        kept = []

        def test_leaves_a_child():
            kept.append(subprocess.Popen(["sleep", "61"]))

        def test_leaves_an_orphan():
            subprocess.run("sleep 62 >/dev/null 2>&1 &", shell=True)

        def test_leaves_a_thread():
            threading.Thread(target=end.wait, name="waiter").start()

        def test_leaves_a_listener():
            end.set()
            kept.append(socket.create_server(("127.0.0.1", 0)))

        async def test_leaves_a_task():
            asyncio.create_task(asyncio.sleep(60), name="sleeper")

        def test_leaves_nothing():
            kept.pop().close()
            kept.pop().poll()
        """
    )
    assert result.parseoutcomes() == {"passed": 6, "errors": 5}
    for test, left in {
        "a_child": "process * sleep 61",
        "an_orphan": "process * sleep 62",
        "a_thread": "thread waiter",
        "a_listener": "socket listening on ('127.0.0.1', *",
        "a_task": "<Task * name='sleeper' *",
    }.items():
        result.stdout.fnmatch_lines(
            [f"*ERROR at teardown of test_leaves_{test}*", f"left behind: {left}*"]
        )


def test_what_ends_with_its_test_or_fixture_is_no_leak(run: Run) -> None:
    result = run(
        test_ends_what_it_starts="""
        import asyncio
        import concurrent.futures
        import multiprocessing
        import subprocess
        import pytest

        @pytest.fixture(scope="module")
        def server():
            with subprocess.Popen(["sleep", "60"]) as process:
                yield process
                process.kill()

        def test_uses_a_wider_fixture(server):
            assert server.poll() is None

        def test_uses_it_too(server):
            assert server.poll() is None

        async def test_runs_threads_and_tasks():
            asyncio.create_task(asyncio.sleep(0))
            assert await asyncio.to_thread(len, "abc") == 3

        def test_runs_a_process_pool():
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
                assert pool.submit(len, "abc").result() == 3
        """
    )
    assert result.parseoutcomes() == {"passed": 4}


def test_a_test_sees_a_home_of_its_own_and_no_surrounding_job(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PBS_JOBID", "17.server")
    result = run(
        test_environment="""
        import os
        import pytest

        homes = set()

        @pytest.mark.parametrize("time", [1, 2])
        def test_home(time, academy_home):
            assert os.environ["ACADEMY_HOME"] == str(academy_home)
            assert academy_home not in homes
            homes.add(academy_home)

        def test_environment():
            assert "SLURM_JOB_ID" not in os.environ
            assert "PBS_JOBID" not in os.environ
        """
    )
    assert result.parseoutcomes() == {"passed": 3}

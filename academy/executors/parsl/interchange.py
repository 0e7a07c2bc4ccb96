"""The interchange of a HighThroughputExecutor, ended when its client ends.

A script, not a module to import: Parsl starts it in place of `interchange.py`, with
the client's process id as its argument. By itself, an interchange survives a client
that is killed, and with it all blocks of workers, until their walltime; and the Ctrl-C
meant for the client ends it at once, so that the client's own clean-up then waits for
its answer for ever.
"""

import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1  # Source: prctl(2)


def end_with(parent: int) -> None:
    """Have this process terminated when its parent's starting thread ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # It ended before we could ask.
        sys.exit()


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runpy.run_module(
        "parsl.executors.high_throughput.interchange",
        run_name="__main__",
        alter_sys=True,
    )

"""Where agents run: Parsl, this event loop, or any `concurrent.futures.Executor`.

The contract is in `academy.executors.base`. Modules of engines load the engine's
library, so import the one you use: `academy.executors.parsl.ParslExecutor`.
"""

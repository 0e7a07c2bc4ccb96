"""What we measure, each figure with a peer or a limit beside it.

`python -m benchmarks` runs all of it; `python -m benchmarks.exchange` (`.launch`,
`.imports`) runs one part and prints JSON.
"""

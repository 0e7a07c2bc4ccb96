"""How schedulers and engines spell what a ResourceSpec asks for, in one table.

Keys are read without leading dashes, and a dash within counts as an underscore. What
has no faithful translation is refused, with the field to use instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from academy.executors.base import unknown_key
from academy.executors.units import MEMORIES, WALLTIMES, is_number, parse_memory

# A field of ResourceSpec for each other name of it.
ALIASES: Mapping[str, str] = {
    # Slurm. Source: https://slurm.schedmd.com/sbatch.html
    "N": "nodes",
    "ntasks_per_node": "ranks_per_node",
    "cpus_per_task": "cpus_per_rank",
    "c": "cpus_per_rank",
    "mem": "memory_gb_per_node",
    "time": "walltime",
    "t": "walltime",
    "time_limit": "walltime",
    "timelimit": "walltime",
    "partition": "queue",
    "p": "queue",
    "A": "account",
    "constraints": "constraint",
    "feature": "constraint",
    "features": "constraint",
    "C": "constraint",
    # PBS and Torque. Source:
    # https://github.com/openpbs/openpbs/blob/master/doc/man1/pbs_resources.7B
    "mpiprocs": "ranks_per_node",
    "ngpus": "gpus_per_node",
    "project": "account",
    "nodect": "nodes",
    "advres": "reservation",
    # Grid Engine. Source: https://manpages.ubuntu.com/manpages/jammy/man1/sge_submit.1.html
    "h_rt": "walltime",
    # Parsl's providers and executors, and Globus Compute's templates, which take the
    # names of the former. Source: https://parsl.readthedocs.io/en/stable/reference.html
    # and https://globus-compute.readthedocs.io/en/stable/endpoints/templates.html
    "nodes_per_block": "nodes",
    "num_nodes": "nodes",
    "max_workers_per_node": "ranks_per_node",
    "cores_per_worker": "cpus_per_rank",
    "mem_per_node": "memory_gb_per_node",
    # PSI/J. Source: https://exaworks.org/psij-python/docs/v/0.9.0/api.html
    "node_count": "nodes",
    "processes_per_node": "ranks_per_node",
    "cpu_cores_per_process": "cpus_per_rank",
    "exclusive_node_use": "exclusive",
    "duration": "walltime",
    "queue_name": "queue",
    "project_name": "account",
    "reservation_id": "reservation",
}

# A number without a unit means another one to each scheduler under these names: to
# Slurm `mem` is in MB, to PBS in bytes, and Grid Engine counts seconds.
_NEED_A_UNIT = {
    "mem": '"16G"',
    "mem_per_cpu": '"2G"',
    "duration": '"90m" or a timedelta',
    "h_rt": '"01:30:00" or "90m"',
}

# Cores of a node, whatever runs on them.
_CORES_PER_NODE = ("ncpus", "ppn", "cores_per_node", "cpus_per_node")
_GPUS_PER_RANK = ("gpus_per_task", "gpu_cores_per_process", "gpus_per_rank")
_MEMORY_PER_RANK = ("mem_per_worker",)
_MEMORY_PER_CPU = ("mem_per_cpu",)
_CHUNK = "select"
_GENERIC = "gres"
# Torque writes a chunk under this name.
_NODES = "nodes"

_SHARED = (*_CORES_PER_NODE, *_GPUS_PER_RANK, *_MEMORY_PER_RANK, *_MEMORY_PER_CPU)

TRANSLATED = (*ALIASES, *_SHARED, _CHUNK, _GENERIC)

_RANKS = "say nodes and ranks_per_node"
_RAW = "it goes into scheduler_options, as a line of the job script such as {line!r}"
_ENGINE = "it belongs to the executor, so it is set in its Parsl config"

# What users may try, and what they are told.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("ntasks", "n", "num_ranks", "num_tasks"), _RANKS),
    **dict.fromkeys(("process_count", "np", "nprocs"), _RANKS),
    "gpus": "say gpus_per_node, for it is of a job to Slurm and of a node to Torque",
    "G": "say gpus_per_node",
    "available_accelerators": "say gpus_per_node",
    "memory": f"say memory_gb_per_node, like {MEMORIES}",
    "mem_per_gpu": "say memory_gb_per_node",
    "pmem": "say memory_gb_per_node",
    "h_vmem": "say memory_gb_per_node",
    "vmem": "say memory_gb_per_node",
    "q": "say qos (which it is to Slurm) or queue (to PBS, LSF and Grid Engine)",
    "P": "say account",
    "W": f"say walltime, like {WALLTIMES}",
    "l": "say each resource by itself: nodes, cpus_per_rank, walltime, …",
    "place": _RAW.format(line="#PBS -l place=scatter") + "; or say exclusive",
    "pe": _RAW.format(line="#$ -pe smp 8"),
    "ompthreads": "say cpus_per_rank, and set OMP_NUM_THREADS in worker_init",
    "pre_launch": "say worker_init",
    "job_name": "say name= to launch()",
    "env": "export variables in worker_init",
    "export": "export variables in worker_init",
    **dict.fromkeys(
        (
            *("init_blocks", "min_blocks", "max_blocks", "parallelism"),
            *("provider", "select_options", "cmd_timeout"),
        ),
        _ENGINE,
    ),
    "launcher": f"{_ENGINE}; its options are launcher_options",
    **{
        name.replace("-", "_"): _RAW.format(line=f"#SBATCH --{name}={value}")
        for name, value in {
            "array": "0-7",
            "begin": "now+1hour",
            "clusters": "c1",
            "comment": "mine",
            "core-spec": "2",
            "deadline": "2030-01-01",
            "dependency": "afterok:17",
            "exclude": "n7",
            "gpu-bind": "closest",
            "gpus-per-socket": "1",
            "hint": "nomultithread",
            "licenses": "foo:1",
            "mail-type": "END",
            "mail-user": "you@example.org",
            "network": "single_sn_vni",
            "nice": "100",
            "nodelist": "n7",
            "ntasks-per-core": "1",
            "ntasks-per-gpu": "1",
            "signal": "B:TERM@300",
            "sockets-per-node": "2",
            "threads-per-core": "1",
            "tmp": "10G",
        }.items()
    },
}


@dataclass
class _Reading:
    """What has been understood so far of a launch."""

    taker: str
    asked: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def take(self, name: str, key: str, value: Any) -> None:
        if name in self.asked:
            other, _ = self.asked[name]
            raise ValueError(
                f"{other!r} and {key!r} both say {name} to {self.taker}: give one of "
                "them."
            )
        self.asked[name] = (key, value)

    def wrong(self, key: str, complaint: str) -> ValueError:
        return ValueError(f"{key} {complaint} ({self.taker}).")


def read_keys(
    submit_kwargs: Mapping[str, Any],
    fields: Collection[str],
    taker: str,
    defaults: Mapping[str, Any],
) -> dict[str, tuple[str, Any]]:
    """Find the field that each key stands for.

    Args:
        submit_kwargs: as users write them. A value of None says nothing.
        fields: the names of all fields.
        taker: who is asked, for error messages.
        defaults: values of fields that hold if this launch does not say them.

    Returns:
        For each field that is said, the key which says it and its value.

    Raises:
        ValueError: Nobody knows a key, or it has no translation, or two say the same.
    """
    reading = _Reading(taker)
    shares = []
    for key, value in submit_kwargs.items():
        name = key if key in fields else key.lstrip("-").replace("-", "_")
        if name in REFUSED:
            raise ValueError(f"{taker} takes no {key!r}: {REFUSED[name]}.")
        if name not in fields and name not in TRANSLATED:
            raise unknown_key(key, fields, taker, aliases=TRANSLATED)
        if value is not None:
            shares += _read_value(reading, name, key, value)
    for share in shares:
        _read_share(reading, *share, defaults)
    return reading.asked


# A name, the key that it was written as, and its value.
_Share = tuple[str, str, Any]


def _read_value(reading: _Reading, name: str, key: str, value: Any) -> list[_Share]:
    """Read a value, or return it if other keys have to be read before."""
    if name in _NEED_A_UNIT and is_number(value):
        hint = f"needs a unit, such as {_NEED_A_UNIT[name]}, not {value!r}"
        raise reading.wrong(key, hint)
    if name == _CHUNK or (name == _NODES and isinstance(value, str)):
        return _read_chunk(reading, key, value)
    if name in _SHARED:
        return [(name, key, value)]
    if name == _GENERIC:
        name, value = "gpus_per_node", _gpus_of(reading, key, value)
    reading.take(ALIASES.get(name, name), key, value)
    return []


def _read_share(
    reading: _Reading, name: str, key: str, value: Any, defaults: Mapping[str, Any]
) -> None:
    """Read what is per node, rank or core here and per another of them in the field."""

    def known(field_name: str) -> Any:
        _, said = reading.asked.get(field_name, ("", defaults.get(field_name)))
        return said

    ranks = known("ranks_per_node")
    if name in _CORES_PER_NODE:
        each, rest = divmod(_count(reading, key, value), _count_or_one(ranks))
        if rest:
            hint = f"must divide by ranks_per_node={ranks}, and {value!r} does not"
            raise reading.wrong(key, hint)
        reading.take("cpus_per_rank", key, each)
    elif name in _GPUS_PER_RANK:
        if ranks is None:
            raise reading.wrong(key, "needs ranks_per_node, or say gpus_per_node")
        total = _count(reading, key, value) * _count_or_one(ranks)
        reading.take("gpus_per_node", key, total)
    else:
        count = _count_or_one(ranks)
        if name in _MEMORY_PER_CPU:
            cpus = known("cpus_per_rank")
            if cpus is None:
                hint = "needs cpus_per_rank, or say memory_gb_per_node"
                raise reading.wrong(key, hint)
            count *= _count_or_one(cpus)
        try:
            total_gb = parse_memory(value) * count
        except ValueError as e:
            raise reading.wrong(key, str(e)) from None
        reading.take("memory_gb_per_node", key, total_gb)


def _count(reading: _Reading, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise reading.wrong(key, f"must be a whole number of at least 1, not {value!r}")
    return value


def _count_or_one(value: Any) -> int:
    """Return a factor; if it is wrong itself, its own field says so."""
    return value if isinstance(value, int) and value >= 1 else 1


# --- values with a syntax of their own

# Source: https://github.com/openpbs/openpbs/blob/master/doc/man1/pbs_resources.7B
_CHUNK_SYNTAX = re.compile(r"(?:(\d+)(?::|$))?((?:[\w.]+=[\w.@/-]+(?::|$))*)", re.ASCII)
_CHUNK_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "mpiprocs": ("ranks_per_node", int),
    "ngpus": ("gpus_per_node", int),
    "gpus": ("gpus_per_node", int),
    "mem": ("memory_gb_per_node", str),
}


def _read_chunk(reading: _Reading, key: str, value: Any) -> list[_Share]:
    """Read "2:ncpus=8:ngpus=1:mem=64gb:system=polaris", and return what is shared."""
    if not isinstance(value, str):
        reading.take("nodes", key, value)
        return []
    found = _CHUNK_SYNTAX.fullmatch(value.strip())
    if not value.strip() or found is None:
        raise reading.wrong(
            key,
            f"must be a whole number of at least 1, or one chunk such as "
            f"'2:ncpus=8:ngpus=1', not {value!r}",
        )
    if found[1] and found[1] == value.strip():
        hint = f"must be a whole number of at least 1, not {value!r}"
        raise reading.wrong(key, hint)
    reading.take("nodes", key, int(found[1] or 1))
    shares, features = [], []
    for pair in filter(None, found[2].split(":")):
        name, _, said = pair.partition("=")
        try:
            if name in _CORES_PER_NODE:
                shares.append((name, f"{name} in {key}", int(said)))
            elif name in _CHUNK_FIELDS:
                target, read = _CHUNK_FIELDS[name]
                reading.take(target, f"{name} in {key}", read(said))
            elif name in REFUSED:
                raise reading.wrong(key, f"has {pair!r}: {REFUSED[name]}")
            else:
                features.append(pair)
        except ValueError as e:
            if "invalid literal" not in str(e):
                raise
            hint = f"has {pair!r}, which is no whole number"
            raise reading.wrong(key, hint) from None
    if features:
        reading.take("constraint", key, ":".join(features))
    return shares


def _gpus_of(reading: _Reading, key: str, value: Any) -> int:
    # Source: https://slurm.schedmd.com/gres.html
    found = re.fullmatch(r"gpu(?::(\d+))?", value) if isinstance(value, str) else None
    if found is None:
        line = _RAW.format(line=f"#SBATCH --gres={value}")
        raise reading.wrong(key, f"can be 'gpu:4' only, not {value!r}: else {line}")
    return int(found[1] or 1)

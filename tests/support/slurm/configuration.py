"""What slurm.conf says."""

from __future__ import annotations

# Where a line is not obvious, its reason is above it.
SLURM_CONF = """\
ClusterName=lab
# Whoever remembers jobs by their numbers does not take those of two clusters for one.
FirstJobId={port}
SlurmctldHost={login}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until the credential of its last run has expired.
AuthInfo=socket={directory}/munge.sock,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info

# Nothing that needs a system's own service.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
TaskProlog={task_prolog}

# Nodes have what this file says, whatever this machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=1
CompleteWait=0
# A node that comes back takes jobs at once.
ReturnToService=2
# Ended jobs can be asked about for this many seconds.
MinJobAge=300
JobRequeue=1
{history}

{nodes}
{partitions}
{extra}
"""

# History without a database: `sacct -c` reads this file.
HISTORY_IN_FILE = """\
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/jobcomp.log
AccountingStorageType=accounting_storage/none"""

# Time limits in minutes. All nodes have the same hardware; gpu is one of them.
PARTITIONS = {
    "debug": "Nodes=ALL Default=YES MaxTime=60 DefaultTime=1",
    "long": "Nodes=ALL MaxTime=INFINITE DefaultTime=60",
    "gpu": "Nodes=n1 MaxTime=30 DefaultTime=5",
}

# Further lines: what a cluster may be strict about. Later lines overrule earlier ones.

# Requests above a partition's limits are refused, instead of waiting for ever.
ENFORCED_LIMITS = "EnforcePartLimits=ALL"

# A job is killed when it takes more memory than it has asked for: by sampling, since
# cgroups are not ours to make here. It looks every second.
ENFORCED_MEMORY = """\
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
"""

# A node that does not answer is down, and its jobs have failed, within ten seconds.
IMPATIENT = """\
SlurmdTimeout=3
MessageTimeout=2
TCPTimeout=1
"""

# Jobs of a partition with a higher tier take the nodes of others.
PREEMPTING = """\
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
"""
PREEMPTING_PARTITIONS = {
    "low": "Nodes=ALL PriorityTier=1 MaxTime=60 DefaultTime=5",
    "high": "Nodes=ALL PriorityTier=10 MaxTime=60 DefaultTime=5",
}

STRICT = "\n".join([ENFORCED_LIMITS, ENFORCED_MEMORY, IMPATIENT, PREEMPTING])
STRICT_PARTITIONS = PARTITIONS | PREEMPTING_PARTITIONS

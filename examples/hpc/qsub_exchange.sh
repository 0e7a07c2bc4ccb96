#!/bin/bash -l
# An exchange for where login nodes are for no daemons: it runs in one PBS job after the
# other, with the same mailboxes. Programs and agents follow it from node to node.
#
#     qsub qsub_exchange.sh
#
#PBS -N exchange
#PBS -l select=1:ncpus=1
#PBS -l walltime=24:00:00
#PBS -j oe
# After a node failure, the same job runs again.
#PBS -r y

source ~/venv/bin/activate          # Your environment, with academy-hpc in it.
cd "$PBS_O_WORKDIR"

# An address of this node that the other nodes reach; if the first one is of the wrong
# network, name one, such as $(hostname -i).
export ACADEMY_EXCHANGE__HOST=$(hostname -I | cut -d' ' -f1)

# Two minutes less than the walltime: `timeout` then ends the exchange in order.
timeout --signal=TERM "${EXCHANGE_SECONDS:-86280}" \
    python -m academy.exchange.cloud --config exchange.toml
status=$?

# Its time was over (124): it goes on in the next job.
if [ $status -eq 124 ]; then qsub qsub_exchange.sh; fi
exit $status

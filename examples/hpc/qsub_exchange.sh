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
export ACADEMY_EXCHANGE__PORT=0
# By this name, programs that share your home directory find it.
export ACADEMY_EXCHANGE__NAME=campaign
# On a disk that the nodes share: the next job may be on another one. Each message waits
# until that disk has it, so that none is lost with a node.
export ACADEMY_EXCHANGE__BACKEND__PATH=$PWD/campaign.db
export ACADEMY_EXCHANGE__BACKEND__DURABILITY=power

# Two minutes less than the walltime: `timeout` then ends the exchange in order.
timeout --signal=TERM "${EXCHANGE_SECONDS:-86280}" python -m academy.exchange.cloud
status=$?

# Its time was over (124): it goes on in the next job.
if [ $status -eq 124 ]; then qsub qsub_exchange.sh; fi
exit $status

#!/bin/bash
# An exchange for where login nodes are for no daemons: it runs in one Slurm job after the
# other, with the same mailboxes. Programs and agents follow it from node to node.
#
#     sbatch sbatch_exchange.sh
#
#SBATCH --job-name=exchange
#SBATCH --nodes=1 --ntasks=1
#SBATCH --time=24:00:00
#SBATCH --output=exchange-%j.out
# Two minutes before the end of its time, this script is told.
#SBATCH --signal=B:USR1@120
# After a node failure, the same job runs again.
#SBATCH --requeue --open-mode=append

source ~/venv/bin/activate          # Your environment, with academy-hpc in it.
cd "$SLURM_SUBMIT_DIR"

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

python -m academy.exchange.cloud &
exchange=$!
trap 'again=yes; kill -TERM $exchange' USR1
trap 'kill -TERM $exchange' TERM    # Cancelled: end in order, and do not come back.

wait $exchange
status=$?
# A signal ends `wait`, and then the exchange lets go of its clients: wait for its end.
while kill -0 $exchange 2>/dev/null; do wait $exchange; status=$?; done

if [ "$again" ]; then sbatch sbatch_exchange.sh; fi
exit $status

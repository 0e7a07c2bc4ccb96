#!/bin/bash -l
# A whole campaign in one PBS job: manager, exchange, and workers on all its nodes.
# Nothing runs on the login node, and you may log out.
#
#     qsub qsub_manager_in_job.sh
#
#PBS -N campaign
#PBS -l select=2:ncpus=4:mpiprocs=1
#PBS -l place=scatter
#PBS -l walltime=00:10:00
#PBS -j oe

set -e
source ~/venv/bin/activate          # Your environment, with academy-hpc in it.
cd "$PBS_O_WORKDIR"

# An address of this node that the job's other nodes reach; if the first one is of the
# wrong network, name one, such as $(hostname -i).
address=$(hostname -I | cut -d' ' -f1)

python campaign_in_job.py ../../configs/parsl/in-job.py --host "$address"

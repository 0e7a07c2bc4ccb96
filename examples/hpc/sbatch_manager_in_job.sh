#!/bin/bash
# A whole campaign in one Slurm job: manager, exchange, and workers on all its nodes.
# Nothing runs on the login node, and you may log out.
#
#     sbatch sbatch_manager_in_job.sh
#
#SBATCH --job-name=campaign
#SBATCH --nodes=2
#SBATCH --time=00:10:00
#SBATCH --output=campaign-%j.out

set -e
source ~/venv/bin/activate          # Your environment, with academy-hpc in it.
cd "$SLURM_SUBMIT_DIR"

# An address of this node that the job's other nodes reach; if the first one is of the
# wrong network, name one, such as $(hostname -i).
address=$(hostname -I | cut -d' ' -f1)

python campaign_in_job.py ../../configs/parsl/in-job.py --host "$address"

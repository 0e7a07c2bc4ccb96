#!/bin/sh
# Slurm adds what this prints to the environment of a job: what PBS tells its jobs.
[ -n "$PBS_ENVIRONMENT" ] || exit 0
nodes=$(dirname "$SLURM_CONF")/nodefile.$SLURM_JOB_ID
scontrol show hostnames "$SLURM_JOB_NODELIST" >"$nodes"
echo "export PBS_JOBID=$SLURM_JOB_ID.pbs01"
echo "export PBS_NODEFILE=$nodes"

#!/bin/bash
# Boxwright on SLURM: one torchrun a node, stopped politely ahead of the time limit, put back into the queue, resumed.
#
#   sbatch launch/slurm.sh fcos_r50_fpn_1x data.root=/datasets/coco out=/runs/coco
#
# Change the lines below to your cluster; options on the command line of sbatch go before them.
#SBATCH --job-name=boxwright
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300

set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: sbatch launch/slurm.sh RECIPE out=FOLDER [data.root=FOLDER] [a.b.c=value ...]" >&2
    exit 2
fi

processes=${SLURM_GPUS_ON_NODE:-1}
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*} # not through `head -n 1`: it may end before scontrol has written, which pipefail takes for a fault
port=$((20000 + SLURM_JOB_ID % 10000))
cpus=${SLURM_CPUS_PER_TASK:-$processes}
export OMP_NUM_THREADS=$((cpus / processes))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # seconds that a process has to finish its step and save

# `--resume` begins at the beginning where there is no checkpoint yet, so a requeued job is the same command.
# Since SLURM 22.05 a step has one processor for each task unless srun, too, is told of more.
srun --cpus-per-task="$cpus" --kill-on-bad-exit=0 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="$processes" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$head:$port" \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --max-restarts=3 \
    -m boxwright train "$@" --resume --quiet &
step=$!

# USR1 comes to this shell 300 s ahead of the time limit. SIGTERM, sent to the step (srun itself would answer it by
# killing the tasks), makes the run stop after its step and save. A preempted step gets SIGTERM from SLURM, which
# puts the job back into the queue by itself (`--requeue`); this shell then only has to wait.
requeue=no
trap 'requeue=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'echo "SIGTERM: waiting for the run to save" >&2' TERM
code=0
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$? # a trapped signal ends the wait, not the step
done
if [ "$requeue" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

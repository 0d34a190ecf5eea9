#!/usr/bin/env bash
# Pre-training in a SLURM job: sbatch docs/slurm.sh --dataset_dir /path/to/cts --output_dir /shared/run
#SBATCH --job-name=mim_pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1   # torchrun starts the processes of a machine
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300     # SIGTERM five minutes before the end: the step is finished and saved
#SBATCH --requeue
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export NODES="$SLURM_NNODES" GPUS="${SLURM_GPUS_ON_NODE:-4}" HOST="$first:$((20000 + SLURM_JOB_ID % 20000))" RUN_ID="$SLURM_JOB_ID"
# on a multiple of the devices: 2 machines x 4 GPUs x batch_size 1
srun --kill-on-bad-exit=1 "$SLURM_SUBMIT_DIR/docs/multi_node.sh" --global_batch_size 16 "$@"

#!/bin/bash
# UltraLLaMA on several nodes: torchrun on each, FSDP over all GPUs, one job that goes on where it was stopped.
#
#   sbatch configs/slurm_train.sh                                       # configs/ultrallama-13b.yaml
#   sbatch --nodes=16 configs/slurm_train.sh configs/ultrallama-13b.yaml --set micro_batch=4
#
# Submit it from the repository root, on a file system that all nodes share. It has not been run on a cluster yet.
#
#SBATCH --job-name=ultrallama
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-ultrallama.log
set -euo pipefail

config=${1:-configs/ultrallama-13b.yaml}
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

export OMP_NUM_THREADS=8
exec srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first_node:29500" \
    -m ultrachat train "$config" "${@:2}"

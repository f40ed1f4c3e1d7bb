#!/bin/bash
# Notebook 05 of the paper's run in 16 shards, as a SLURM array: for clusters without Ray.
#
#   python -m ultrachat run configs/paper.yaml --only 01-04           # once, before
#   job=$(sbatch --parsable configs/slurm_shards.sh)
#   sbatch --dependency=afterok:$job --wrap "python -m ultrachat merge paper"
#   python -m ultrachat run configs/paper.yaml --only 05-07           # 05 asks nothing any more
#
# Submit it from the repository root, on a file system that all nodes share and that locks files.
# The key is taken from the environment (OPENAI_API_KEY); sbatch passes that on. A shard that was
# stopped goes on where it was:  sbatch --array=3,7 configs/slurm_shards.sh
#
#SBATCH --job-name=ultrachat-05
#SBATCH --array=1-16
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-ultrachat-%a.log
set -euo pipefail

n_shards=16 # written out: of --array=3,7 SLURM would count two
config=${1:-configs/paper.yaml}

export OMP_NUM_THREADS=1 # the work is waiting for answers
exec python -m ultrachat run "$config" --only 05 --set "shard=$SLURM_ARRAY_TASK_ID/$n_shards" "${@:2}"

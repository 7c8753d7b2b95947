#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-task=1 --cpus-per-task=8
#SBATCH --time=12:00:00 --requeue
# A Dask cluster inside of one SLURM job, and a dataset embedded on it, submitted from the project's folder with sbatch: a
# worker per GPU, and the scheduler with the first one. Submitted again, or requeued, it makes the missing shards.
# Experiment root, csv file and images have the same paths on every host.
set -e

if [ "$#" -lt 3 ]; then
    echo "Usage: sbatch $0 EXPERIMENT_ROOT DATASET SHARDS [more embed.py flags, such as --image_root IMAGE_ROOT]" >&2
    exit 1
fi
ROOT=$1 DATASET=$2 SHARDS=$3
shift 3

SCHEDULER=$ROOT/scheduler-$SLURM_JOB_ID.json LOG=$ROOT/scheduler-$SLURM_JOB_ID.log

STARTED=
trap 'kill $STARTED; rm -f "$SCHEDULER"' EXIT
srun --overlap --nodes=1 --ntasks=1 python3 -m dask scheduler --port 0 --no-dashboard \
    --scheduler-file "$SCHEDULER" >> "$LOG" 2>&1 &
STARTED="$STARTED $!"
srun --overlap python3 -m dask worker --nthreads 1 --no-dashboard --death-timeout 300 \
    --scheduler-file "$SCHEDULER" >> "$LOG" 2>&1 &
STARTED="$STARTED $!"
until [ -e "$SCHEDULER" ]; do sleep 1; done

python3 embed.py --experiment_root "$ROOT" --dataset "$DATASET" --shards "$SHARDS" --resume --dask "$SCHEDULER" "$@"

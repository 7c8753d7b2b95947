#!/bin/sh
#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-task=1 --cpus-per-task=8
#SBATCH --time=24:00:00 --signal=TERM@120 --requeue
# A training on several hosts under SLURM, here two of four GPUs, submitted from the project's folder with sbatch.
# Each task is a worker with a GPU of its own; P times K has to be a multiple of their number. Two minutes before the
# time is up train.py gets a signal and stores the run; submitted again, or requeued, it continues.
if [ "$#" -lt 1 ]; then
    echo "Usage: sbatch $0 EXPERIMENT_ROOT --train_set CSV --image_root IMAGE_ROOT [more train.py flags]" >&2
    exit 1
fi
EXPERIMENT_ROOT=$1; shift
if [ -e "$EXPERIMENT_ROOT/args.json" ]; then set -- --resume; fi
exec srun python3 train.py --experiment_root "$EXPERIMENT_ROOT" --distribute multi_worker "$@"

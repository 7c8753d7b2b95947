#!/bin/bash
# A Dask cluster over plain SSH, and the images embedded on it: the scheduler here, a worker on each host.
#
#     HOSTS="alpha beta gamma" recipes/cluster/embed_ssh.sh EXPERIMENT_ROOT DATASET SHARDS [more flags of embed.py]
#
# Every host has this project, its packages, the experiment root, the csv file and the images under the same paths, and
# this one's SSH key. Whoever reaches the scheduler's or a worker's port can run code there: this is for a network of your
# own (docs/scaling.md has TLS for others).
set -e

if [ "$#" -lt 3 ] || [ -z "$HOSTS" ]; then
    echo "Usage: HOSTS=\"host1 host2\" $0 EXPERIMENT_ROOT DATASET SHARDS [more embed.py flags]" >&2
    exit 1
fi
ROOT=$1 DATASET=$2 SHARDS=$3
shift 3
PYTHON=${PYTHON:-python}
SCHEDULER=$(mktemp -d)/scheduler.json

# Each worker lives as long as its connection, and the connections as long as this script.
trap 'kill $(jobs -p) 2>/dev/null' EXIT
LOG=${SCHEDULER%.json}.log
$PYTHON -m dask scheduler --port 0 --no-dashboard --scheduler-file "$SCHEDULER" > "$LOG" 2>&1 &
until [ -e "$SCHEDULER" ]; do sleep 1; done
ADDRESS=$($PYTHON -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$SCHEDULER")
for HOST in $HOSTS; do
    ssh -tt "$HOST" "cd '$PWD' && exec $PYTHON -m dask worker --nthreads 1 --no-dashboard --death-timeout 60 $ADDRESS" \
        >> "$LOG" 2>&1 < /dev/null &
done

$PYTHON embed.py --experiment_root "$ROOT" --dataset "$DATASET" --shards "$SHARDS" --resume --dask "$ADDRESS" "$@"

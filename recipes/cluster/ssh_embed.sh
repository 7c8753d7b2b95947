#!/bin/bash
# A Dask cluster over plain SSH, and a dataset embedded on it, from the project's folder: the scheduler here, a worker on
# each of HOSTS, which may name one twice. Run again, it makes the shards that are missing.
# Every host has this folder, the packages, experiment root, csv file and images under the same paths. Everybody who reaches a
# port of scheduler or workers can run code there: this is for a network of your own (docs/scaling.md has TLS).
set -e

if [ "$#" -lt 3 ] || [ -z "$HOSTS" ]; then
    echo "Usage: HOSTS=\"host1 host2\" $0 EXPERIMENT_ROOT DATASET SHARDS [more embed.py flags, such as --image_root" \
        "IMAGE_ROOT]" >&2
    exit 1
fi
ROOT=$1 DATASET=$2 SHARDS=$3
shift 3

SCHEDULER=$(mktemp -d)/scheduler.json LOG=$ROOT/scheduler.log
STARTED=
trap 'kill $STARTED; rm -r "$(dirname "$SCHEDULER")"' EXIT
python3 -m dask scheduler --port 0 --no-dashboard --scheduler-file "$SCHEDULER" >> "$LOG" 2>&1 &
STARTED="$STARTED $!"
until [ -e "$SCHEDULER" ]; do sleep 1; done
ADDRESS=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$SCHEDULER")

# With a terminal (-tt) a worker ends with its connection.
for HOST in $HOSTS; do
    ssh -tt "$HOST" "cd '$PWD' && exec '$(command -v python3)' -m dask worker --nthreads 1 --no-dashboard $ADDRESS" \
        < /dev/null >> "$LOG" 2>&1 &
    STARTED="$STARTED $!"
done
python3 embed.py --experiment_root "$ROOT" --dataset "$DATASET" --shards "$SHARDS" --resume --dask "$ADDRESS" "$@"

# The common beginning of the recipes: check the arguments, and write the csv files of the dataset unless they exist.
#
#     HERE=$(dirname "$0")/.. DATASET=market1501
#     IMAGE_ROOT_IS="the folder of Market-1501 as downloaded"
#     INIT_CHECKPOINT_IS="slim's resnet_v1_50.ckpt"
#     . "$HERE/recipes/_start.sh"
#
# Sets IMAGE_ROOT, INIT_CHECKPOINT (only with INIT_CHECKPOINT_IS) and EXPERIMENT_ROOT, and leaves the other arguments in "$@".
# These are passed to train.py after the flags of the recipe and take precedence. With an empty DATASET no csv file is written.
set -e

if [ -n "$INIT_CHECKPOINT_IS" ]; then NEEDED=3; else NEEDED=2; fi
if [ "$#" -lt "$NEEDED" ]; then
    echo "Usage: $0 IMAGE_ROOT ${INIT_CHECKPOINT_IS:+INIT_CHECKPOINT }EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT is $IMAGE_ROOT_IS${INIT_CHECKPOINT_IS:+, INIT_CHECKPOINT is $INIT_CHECKPOINT_IS}." >&2
    exit 1
fi
IMAGE_ROOT=$1; shift
if [ -n "$INIT_CHECKPOINT_IS" ]; then INIT_CHECKPOINT=$1; shift; fi
EXPERIMENT_ROOT=$1; shift

if [ -n "$DATASET" ] && [ ! -e "$HERE/data/${DATASET}_train.csv" ]; then
    python3 "$HERE/make_dataset.py" "$DATASET" "$IMAGE_ROOT" --out "$HERE/data"
fi

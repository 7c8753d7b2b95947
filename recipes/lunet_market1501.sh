#!/bin/sh
# LuNet on Market-1501, trained from scratch with the parameters of the paper (arXiv 1703.07737, section 4).
# It reached mAP 60.7 and rank-1 81.4 there, embedding five crops and their mirror images; on which GPU it does not say.
# What is given behind the arguments goes to train.py as it is, and takes precedence.
set -e

if [ "$#" -lt 2 ]; then
    echo "Usage: $0 IMAGE_ROOT EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT is the folder of Market-1501 as downloaded." >&2
    exit 1
fi
IMAGE_ROOT=$1; EXPERIMENT_ROOT=$2; shift 2

HERE=$(dirname "$0")/..
if [ ! -e "$HERE/data/market1501_train.csv" ]; then
    python3 "$HERE/make_dataset.py" market1501 "$IMAGE_ROOT" --out "$HERE/data"
fi

exec python3 "$HERE/train.py" \
    --experiment_root "$EXPERIMENT_ROOT" \
    --train_set "$HERE/data/market1501_train.csv" \
    --image_root "$IMAGE_ROOT" \
    --model_name lunet \
    --head_name lunet \
    --embedding_dim 128 \
    --flip_augment \
    --crop_augment \
    --batch_p 32 \
    --batch_k 4 \
    --pre_crop_height 144 --pre_crop_width 72 \
    --net_input_height 128 --net_input_width 64 \
    --margin soft \
    --metric euclidean \
    --loss batch_hard \
    --learning_rate 3e-4 \
    --train_iterations 25000 \
    --decay_start_iteration 15000 \
    --decay_beta1 0.5 \
    "$@"

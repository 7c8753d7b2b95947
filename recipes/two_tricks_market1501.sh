#!/bin/sh
# TriNet with two tricks on Market-1501: the last stage keeps its resolution, and random erasing.
# Source: the PyTorch port https://github.com/CoinCheung/triplet-reid-pytorch.
# Published result: mAP 76.0, rank-1 88.3, with five crops and their mirror images; no GPU is named.
# Result here: not run.
# Differences: its ResNet-50 is torchvision's, whose strides are in the first unit of a stage and not, as slim's, in the last
# unit of the previous one; the resolutions are equal.
HERE=$(dirname "$0")/.. DATASET=market1501
IMAGE_ROOT_IS="the folder of Market-1501 as downloaded"
INIT_CHECKPOINT_IS="slim's resnet_v1_50.ckpt"
. "$HERE/recipes/_start.sh"

exec python3 "$HERE/train.py" \
    --experiment_root "$EXPERIMENT_ROOT" \
    --train_set "$HERE/data/market1501_train.csv" \
    --image_root "$IMAGE_ROOT" \
    --initial_checkpoint "$INIT_CHECKPOINT" \
    --model_name resnet_v1_50 \
    --last_stride 1 \
    --head_name fc1024 \
    --embedding_dim 128 \
    --flip_augment \
    --crop_augment \
    --random_erasing 0.5 \
    --batch_p 18 \
    --batch_k 4 \
    --pre_crop_height 288 --pre_crop_width 144 \
    --net_input_height 256 --net_input_width 128 \
    --margin soft \
    --metric euclidean \
    --loss batch_hard \
    --learning_rate 3e-4 \
    --train_iterations 25000 \
    --decay_start_iteration 15000 \
    --decay_beta1 0.5 \
    "$@"

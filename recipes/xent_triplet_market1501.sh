#!/bin/sh
# Cross-entropy and the triplet loss together on Market-1501, on the features of a ResNet-50.
# Source: deep-person-reid (https://github.com/KaiyangZhou/deep-person-reid), train_imgreid_xent_htri.py, 32 images
# a batch, four of an identity, margin 0.3. It publishes no score of just this on Market-1501, nor a GPU.
# 60 epochs of 12936 images; the learning rate falls every 20.
# What is given behind the arguments goes to train.py as it is, and takes precedence.
set -e

if [ "$#" -lt 3 ]; then
    echo "Usage: $0 IMAGE_ROOT INIT_CHECKPOINT EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT is the folder of Market-1501, INIT_CHECKPOINT Keras's ResNet50 without its top, .h5." >&2
    exit 1
fi
IMAGE_ROOT=$1; INIT_CHECKPOINT=$2; EXPERIMENT_ROOT=$3; shift 3

HERE=$(dirname "$0")/..
if [ ! -e "$HERE/data/market1501_train.csv" ]; then
    python3 "$HERE/make_dataset.py" market1501 "$IMAGE_ROOT" --out "$HERE/data"
fi

exec python3 "$HERE/train.py" \
    --experiment_root "$EXPERIMENT_ROOT" \
    --train_set "$HERE/data/market1501_train.csv" \
    --image_root "$IMAGE_ROOT" \
    --initial_checkpoint "$INIT_CHECKPOINT" \
    --model_name resnet50 \
    --head_name features \
    --embedding_dim 2048 \
    --flip_augment \
    --crop_augment \
    --batch_p 8 \
    --batch_k 4 \
    --pre_crop_height 288 --pre_crop_width 144 \
    --net_input_height 256 --net_input_width 128 \
    --loss batch_hard \
    --margin 0.3 \
    --metric euclidean \
    --metric_weight 1 \
    --xent_weight 1 \
    --label_smoothing 0.1 \
    --learning_rate 3e-4 \
    --lr_schedule step \
    --lr_steps 8000,16000 \
    --weight_decay 5e-4 \
    --train_iterations 24000 \
    "$@"

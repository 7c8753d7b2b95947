#!/bin/sh
# TriNet on DukeMTMC-reID, with the parameters of the original code, from a ResNet-50 with ImageNet weights.
# They are the paper's (section 4.1) but for Adam's beta1, which that code leaves at 0.9 throughout; the paper lowers it
# to 0.5 when the decay of the learning rate starts: add --decay_beta1 0.5 for that.
# What is given behind the three arguments goes to train.py as it is, and takes precedence.
set -e

if [ "$#" -lt 3 ]; then
    echo "Usage: $0 IMAGE_ROOT INIT_CHECKPOINT EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT is the folder of DukeMTMC-reID as downloaded, INIT_CHECKPOINT is slim's resnet_v1_50.ckpt." >&2
    exit 1
fi
IMAGE_ROOT=$1; INIT_CHECKPOINT=$2; EXPERIMENT_ROOT=$3; shift 3

HERE=$(dirname "$0")
if [ ! -e "$HERE/data/dukeMTMC_train.csv" ]; then
    python3 "$HERE/make_dataset.py" dukeMTMC "$IMAGE_ROOT" --out "$HERE/data"
fi

exec python3 "$HERE/train.py" \
    --experiment_root "$EXPERIMENT_ROOT" \
    --train_set "$HERE/data/dukeMTMC_train.csv" \
    --image_root "$IMAGE_ROOT" \
    --initial_checkpoint "$INIT_CHECKPOINT" \
    --model_name resnet_v1_50 \
    --head_name fc1024 \
    --embedding_dim 128 \
    --flip_augment \
    --crop_augment \
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
    "$@"

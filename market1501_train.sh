#!/bin/sh
# TriNet on Market-1501, with the parameters of the original code, from a ResNet-50 with ImageNet weights. They equal the
# paper's (section 4.1) except Adam's beta1: the code keeps 0.9, the paper lowers it to 0.5 when the learning rate starts to
# decay. Append --decay_beta1 0.5 for the paper's.
# Published result: mAP 69.1, rank-1 84.9, with five crops and their mirror images.
# Result here: not run with ResNet-50. A smaller net and a quarter of the iterations, mobilenet_v1_1.0_224.ckpt with
# --model_name mobilenet_v1_1_224 --train_iterations 6000 --decay_start_iteration 3600, in 75 min on two CPU cores: mAP
# 53.81, rank-1 74.05, with five crops and their mirror images 58.07 and 78.18. recipes/mobilenet_market1501.sh runs it
# with the smaller input, too.
HERE=$(dirname "$0") DATASET=market1501
IMAGE_ROOT_IS="the folder of Market-1501 as downloaded"
INIT_CHECKPOINT_IS="slim's resnet_v1_50.ckpt"
. "$HERE/recipes/_start.sh"

exec python3 "$HERE/train.py" \
    --experiment_root "$EXPERIMENT_ROOT" \
    --train_set "$HERE/data/market1501_train.csv" \
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

#!/bin/sh
# The original's recipe on Market-1501, market1501_train.sh, with a net that two CPU cores train in two hours: MobileNet v1
# from ImageNet's weights, at 128x64.
# Published result: none with this net; the paper's LuNet of this input size has mAP 60.7, rank-1 81.4 with five crops and
# their mirror images.
HERE=$(dirname "$0")/.. DATASET=market1501
IMAGE_ROOT_IS="the folder of Market-1501 as downloaded"
INIT_CHECKPOINT_IS="slim's mobilenet_v1_1.0_224.ckpt"
. "$HERE/recipes/_start.sh"

exec sh "$HERE/market1501_train.sh" "$IMAGE_ROOT" "$INIT_CHECKPOINT" "$EXPERIMENT_ROOT" \
    --model_name mobilenet_v1_1_224 \
    --pre_crop_height 144 --pre_crop_width 72 \
    --net_input_height 128 --net_input_width 64 \
    "$@"

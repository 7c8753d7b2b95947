#!/bin/sh
# Cross-entropy alone on Market-1501: a classifier of the training identities on the features of a ResNet-50.
# Source: deep-person-reid (https://github.com/KaiyangZhou/deep-person-reid), train_imgreid_xent.py. 60 epochs of 12936
# images; the learning rate falls every 20.
# Published result: mAP 70.4, rank-1 87.9 (its later model zoo); no GPU is named.
# Result here: not run.
# Differences: its batch is 32 random images, here 8 identities of 4 images.
HERE=$(dirname "$0")/.. DATASET=market1501
IMAGE_ROOT_IS="the folder of Market-1501"
INIT_CHECKPOINT_IS="Keras's ResNet50 without its top, .h5"
. "$HERE/recipes/_start.sh"

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
    --loss none \
    --xent_weight 1 \
    --label_smoothing 0.1 \
    --learning_rate 3e-4 \
    --lr_schedule step \
    --lr_steps 8000,16000 \
    --weight_decay 5e-4 \
    --train_iterations 24000 \
    "$@"

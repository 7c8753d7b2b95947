#!/bin/sh
# Cross-entropy and the triplet loss together on Market-1501, on the features of a ResNet-50.
# Source: deep-person-reid (https://github.com/KaiyangZhou/deep-person-reid), train_imgreid_xent_htri.py, 32 images per
# batch, four per identity, margin 0.3. 60 epochs of 12936 images; the learning rate falls every 20.
# Published result: none for this combination on Market-1501.
# Result here: not run.
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

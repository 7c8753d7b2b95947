#!/bin/sh
# The strong baseline on Market-1501: Luo et al., Bag of Tricks and A Strong Baseline for Deep Person Re-identification,
# CVPR workshops 2019 (arXiv 1903.07071). 120 epochs of 12936 images; warm-up over 10, steps at 40 and 70.
# Published result: mAP 85.9, rank-1 94.5, with embeddings of length one: evaluate with --metric cosine; no GPU is named.
# Result here: not run.
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
    --head_name bnneck \
    --embedding_dim 2048 \
    --flip_augment \
    --pad_crop 10 \
    --random_erasing 0.5 \
    --batch_p 16 \
    --batch_k 4 \
    --net_input_height 256 --net_input_width 128 \
    --loss batch_hard \
    --margin 0.3 \
    --metric euclidean \
    --metric_weight 1 \
    --xent_weight 1 \
    --label_smoothing 0.1 \
    --center_weight 5e-4 \
    --center_learning_rate 0.5 \
    --learning_rate 3.5e-4 \
    --warmup_iterations 2020 \
    --lr_schedule step \
    --lr_steps 8080,14140 \
    --weight_decay 5e-4 \
    --train_iterations 24240 \
    "$@"

#!/bin/sh
# The stronger baseline (SBS) of fast-reid (https://github.com/JDAI-CV/fast-reid, configs/Market1501/sbs_R50.yml) on
# Market-1501. 60 epochs of 12936 images; warm-up over 2000 iterations, the body frozen for 1000, decay from epoch 30.
# Published result: mAP 88.2, rank-1 95.4, on a P40 or V100, with embeddings of length one: evaluate with --metric cosine.
# Result here: not run.
# Differences: no non-local blocks in the ResNet, and the learning rate ends at 0 instead of 7e-7. fast-reid trains in 16
# bits, as --mixed_precision float16 does here.
# Appending --model_name resnet50_ibn, with its weights as INIT_CHECKPOINT, gives their sbs_R50-ibn.yml: published mAP 89.3,
# rank-1 95.7.
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
    --pooling gem \
    --head_name bnneck \
    --embedding_dim 2048 \
    --flip_augment \
    --pad_crop 10 \
    --auto_augment 0.1 \
    --random_erasing 0.5 \
    --batch_p 4 \
    --batch_k 16 \
    --net_input_height 384 --net_input_width 128 \
    --loss batch_hard \
    --margin soft \
    --metric euclidean \
    --metric_weight 1 \
    --xent_weight 1 \
    --label_smoothing 0.1 \
    --classifier circle \
    --classifier_scale 64 --classifier_margin 0.35 \
    --freeze_body_iterations 1000 \
    --learning_rate 3.5e-4 \
    --warmup_iterations 2000 \
    --lr_schedule cosine \
    --decay_start_iteration 6060 \
    --weight_decay 5e-4 \
    --train_iterations 12120 \
    "$@"

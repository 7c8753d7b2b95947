#!/bin/sh
# The stronger baseline (SBS) of fast-reid (https://github.com/JDAI-CV/fast-reid, configs/Market1501/sbs_R50.yml) on
# Market-1501. Its model zoo gives mAP 88.2 and rank-1 95.4 for it, on a P40 or V100, with embeddings of length one:
# evaluate with --metric cosine. Here it was never run on Market-1501. What is there and not here: non-local blocks in the
# ResNet, and a learning rate that ends at 7e-7 (here at 0). It trains in 16 bits: --mixed_precision float16 does so here.
# --model_name resnet50_ibn behind the arguments, and its weights as INIT_CHECKPOINT, make it their sbs_R50-ibn.yml: mAP 89.3
# and rank-1 95.7.
# 60 epochs of 12936 images; warm-up over 2000 iterations, the body frozen for 1000, the decay starts with epoch 30.
# What is given behind the arguments goes to train.py as it is, and takes precedence.
set -e

if [ "$#" -lt 3 ]; then
    echo "Usage: $0 IMAGE_ROOT INIT_CHECKPOINT EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT is the folder of Market-1501 as downloaded, INIT_CHECKPOINT is slim's resnet_v1_50.ckpt." >&2
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

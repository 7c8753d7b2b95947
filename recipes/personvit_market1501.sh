#!/bin/sh
# PersonViT on Market-1501: Hu, Wang and Liu 2024 (arXiv 2408.05398), a ViT-B/16 that learned from LUPerson without labels, and is
# fine-tuned as TransReID's baseline at a twentieth of its learning rate. It reached mAP 95.0 and rank-1 97.6 there, on
# embeddings of length one: evaluate with --metric cosine. 120 epochs of 12936 images, 5 of them to warm up.
# Not checked here: the score, for want of the weights, the images and a GPU. Other than there: the embedding is what comes
# behind the neck, and biases learn at the rate of all.
# What is given behind the arguments goes to train.py as it is, and takes precedence.
set -e

if [ "$#" -lt 3 ]; then
    echo "Usage: $0 IMAGE_ROOT INIT_CHECKPOINT EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT is the folder of Market-1501 as downloaded, INIT_CHECKPOINT is PersonViT's checkpoint of its teacher as .safetensors." >&2
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
    --model_name vit_b16 \
    --pooling cls \
    --pixels half \
    --drop_path 0.1 \
    --head_name bnneck \
    --embedding_dim 768 \
    --flip_augment \
    --pad_crop 10 \
    --random_erasing 0.5 \
    --batch_p 16 \
    --batch_k 4 \
    --net_input_height 256 --net_input_width 128 \
    --loss batch_hard \
    --margin soft \
    --metric euclidean \
    --metric_weight 1 \
    --xent_weight 1 \
    --label_smoothing 0 \
    --optimizer sgd \
    --momentum 0.9 \
    --learning_rate 4e-4 \
    --warmup_iterations 1010 \
    --lr_schedule cosine \
    --decay_start_iteration 0 \
    --weight_decay 1e-4 \
    --train_iterations 24240 \
    "$@"

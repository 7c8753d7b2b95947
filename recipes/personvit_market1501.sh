#!/bin/sh
# PersonViT on Market-1501: Hu, Wang and Liu 2024 (arXiv 2408.05398), a ViT-B/16 pre-trained on LUPerson without labels and
# fine-tuned as TransReID's baseline at a twentieth of its learning rate. 120 epochs of 12936 images, 5 of them warm-up.
# Published result: mAP 95.0, rank-1 97.6, with embeddings of length one: evaluate with --metric cosine.
# Result here: not run, because weights and a GPU are missing.
# Differences: the embedding is the output of the neck, and biases have the learning rate of all variables.
HERE=$(dirname "$0")/.. DATASET=market1501
IMAGE_ROOT_IS="the folder of Market-1501 as downloaded"
INIT_CHECKPOINT_IS="PersonViT's checkpoint of its teacher as .safetensors"
. "$HERE/recipes/_start.sh"

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

#!/bin/sh
# Pictures of one's own things, one sub-folder each: the image encoder of SigLIP 2 (Tschannen et al., arXiv 2502.14786) as it
# is, and a head on top that learns to tell them apart. No score of this was published, and none is known here, for want of
# the weights; what the encoder is worth without a head, checkpoint-0 tells. Only the head has gradients, so that this needs
# little memory; a CPU will do for some hundred pictures.
# What is given behind the arguments goes to train.py as it is, and takes precedence.
set -e

if [ "$#" -lt 3 ]; then
    echo "Usage: $0 IMAGE_ROOT INIT_CHECKPOINT EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT has a sub-folder of pictures for each thing, INIT_CHECKPOINT is big_vision's siglip2_b16_256.npz." >&2
    exit 1
fi
IMAGE_ROOT=$1; INIT_CHECKPOINT=$2; EXPERIMENT_ROOT=$3; shift 3

HERE=$(dirname "$0")/..
python3 "$HERE/make_dataset.py" folder "$IMAGE_ROOT" --out "$HERE/data" --name siglip2_recipe --val_fraction 0.2 \
    --query_per_identity 2

exec python3 "$HERE/train.py" \
    --experiment_root "$EXPERIMENT_ROOT" \
    --train_set "$HERE/data/siglip2_recipe_train.csv" \
    --image_root "$IMAGE_ROOT" \
    --initial_checkpoint "$INIT_CHECKPOINT" \
    --model_name vit_b16 \
    --pooling map \
    --head_name bnneck \
    --embedding_dim 256 \
    --net_input_height 256 --net_input_width 256 \
    --crop_augment \
    --flip_augment \
    --batch_p 8 \
    --batch_k 4 \
    --loss batch_hard \
    --margin soft \
    --xent_weight 1 \
    --learning_rate 1e-3 \
    --train_iterations 1000 \
    --decay_start_iteration 500 \
    --freeze_body_iterations 1000 \
    --eval_query "$HERE/data/siglip2_recipe_query.csv" \
    --eval_gallery "$HERE/data/siglip2_recipe_test.csv" \
    --eval_excluder diagonal \
    --eval_frequency 250 \
    --checkpoint_frequency 0 \
    --cache memory \
    "$@"

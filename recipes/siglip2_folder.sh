#!/bin/sh
# Your own pictures, one sub-folder per identity: the image encoder of SigLIP 2 (Tschannen et al., arXiv 2502.14786) as it
# is, with a head that learns to separate the identities. Only the head has gradients, so this needs little memory, and a CPU
# suffices for some hundred pictures. The encoder without training is checkpoint-0.
# Published result: none.
# Result here: not run, because the weights are missing.
HERE=$(dirname "$0")/.. DATASET=
IMAGE_ROOT_IS="the folder with a sub-folder of pictures per identity"
INIT_CHECKPOINT_IS="big_vision's siglip2_b16_256.npz"
. "$HERE/recipes/_start.sh"

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

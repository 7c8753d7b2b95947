#!/bin/sh
# The whole pipeline on scanned digits that come with scikit-learn: make the dataset, train an embedding in the plane,
# embed query and gallery, evaluate, draw. About a minute on two CPU cores. `make demo` runs it.
set -e

if [ "$#" -lt 1 ]; then
    echo "Usage: $0 FOLDER [more train.py flags]" >&2
    exit 1
fi
FOLDER=$1; shift
HERE=$(dirname "$0")

python3 "$HERE/make_dataset.py" digits "$FOLDER" --out "$FOLDER"

# Digits are mirrored by nobody, so there is no flip; a random crop moves them by a pixel or two.
python3 "$HERE/train.py" \
    --experiment_root "$FOLDER/run" \
    --train_set "$FOLDER/digits_train.csv" \
    --image_root "$FOLDER" \
    --model_name mnist \
    --head_name fc1024 \
    --embedding_dim 2 \
    --crop_augment \
    --pre_crop_height 30 --pre_crop_width 30 \
    --net_input_height 28 --net_input_width 28 \
    --batch_p 10 \
    --batch_k 8 \
    --margin 0.5 \
    --learning_rate 3e-4 \
    --train_iterations 600 \
    --decay_start_iteration 300 \
    "$@"

for SUBSET in query test; do
    python3 "$HERE/embed.py" \
        --experiment_root "$FOLDER/run" \
        --dataset "$FOLDER/digits_$SUBSET.csv" \
        --crop_augment five \
        --aggregator mean
done

# Query and gallery are disjoint sets of images, which the excluder `diagonal` leaves as they are.
python3 "$HERE/evaluate.py" \
    --excluder diagonal \
    --query_dataset "$FOLDER/digits_query.csv" \
    --query_embeddings "$FOLDER/run/digits_query_embeddings.h5" \
    --gallery_dataset "$FOLDER/digits_test.csv" \
    --gallery_embeddings "$FOLDER/run/digits_test_embeddings.h5" \
    --metric euclidean \
    --filename "$FOLDER/run/evaluation.json"

python3 "$HERE/visualize.py" embeddings "$FOLDER/run/digits_test_embeddings.h5" \
    --filename "$FOLDER/run/embedding.png"

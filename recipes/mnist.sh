#!/bin/sh
# MNIST in two dimensions: a small net, trained from scratch, and a picture of the test set's embedding every so often.
# Source: the experiment of a TensorFlow port of the paper, P=10, K=12, margin 0.5, learning rate 1e-4; it shows the
# picture and gives no score. Two CPU cores take some minutes.
# What is given behind the arguments goes to train.py as it is, and takes precedence.
set -e

if [ "$#" -lt 2 ]; then
    echo "Usage: $0 IMAGE_ROOT EXPERIMENT_ROOT [more train.py flags]" >&2
    echo "IMAGE_ROOT is the folder with the four files of MNIST, train-images-idx3-ubyte and so on." >&2
    exit 1
fi
IMAGE_ROOT=$1; EXPERIMENT_ROOT=$2; shift 2

HERE=$(dirname "$0")/..
if [ ! -e "$HERE/data/mnist_train.csv" ]; then
    python3 "$HERE/make_dataset.py" mnist "$IMAGE_ROOT" --out "$HERE/data"
fi

python3 "$HERE/train.py" \
    --experiment_root "$EXPERIMENT_ROOT" \
    --train_set "$HERE/data/mnist_train.csv" \
    --image_root "$IMAGE_ROOT" \
    --model_name mnist \
    --head_name direct \
    --embedding_dim 2 \
    --batch_p 10 \
    --batch_k 12 \
    --net_input_height 28 --net_input_width 28 \
    --margin 0.5 \
    --metric euclidean \
    --loss batch_hard \
    --learning_rate 1e-4 \
    --train_iterations 5000 \
    --decay_start_iteration -1 \
    --checkpoint_frequency 1000 \
    "$@"

# One embedding and one picture for each checkpoint, the untrained net's first.
for INDEX in "$EXPERIMENT_ROOT"/checkpoint-*.index; do
    CHECKPOINT=$(basename "$INDEX" .index)
    python3 "$HERE/embed.py" --experiment_root "$EXPERIMENT_ROOT" --dataset "$HERE/data/mnist_test.csv" \
        --checkpoint "$CHECKPOINT" --filename "mnist_test_$CHECKPOINT.h5" --quiet
    python3 "$HERE/visualize.py" embeddings "$EXPERIMENT_ROOT/mnist_test_$CHECKPOINT.h5"
done

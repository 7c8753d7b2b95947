#!/bin/sh
# MNIST in two dimensions: a small net, trained from scratch, and a picture of the test set's embedding per checkpoint.
# Source: the experiment of a TensorFlow port of the paper, P=10, K=12, margin 0.5, learning rate 1e-4; it shows the
# picture and reports no score.
# Time here: some minutes on two CPU cores.
HERE=$(dirname "$0")/.. DATASET=mnist
IMAGE_ROOT_IS="the folder with the four files of MNIST, train-images-idx3-ubyte and so on"
. "$HERE/recipes/_start.sh"

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

#!/usr/bin/env python3
"""Embed images with the paper's own TriNet, from the weights that its authors released for Theano.

One line per image on standard output: path,e0,e1,…,e127. The embedding is the mean over ten crops of the image:
the centre, the four corners, and their mirror images.
"""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import concurrent.futures
import io
import os
import sys

import numpy as np

from tripletreid import argument_types, pictures, quiet
from tripletreid.errors import InputError, exit_with

PRE_CROP = (288, 144)
CROP = (256, 128)

# The entry of the EXIF data for the orientation of the camera, and the transposition that turns each value upright.
ORIENTATION = 0x112
UPRIGHT = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_270',
           7: 'TRANSVERSE', 8: 'ROTATE_90'}


def parse_args():
    parser = argument_types.ArgumentParser(
        description=__doc__, example='python trinet_embed.py files.txt market1501_trinet.npz > embeddings.csv')
    parser.add_argument('image_list', metavar='files.txt', help='text file with the path of one image per line')
    parser.add_argument('weights', metavar='weights.npz', help='file of the released weights (market1501, mars, …)')
    parser.add_argument('--batch_size', type=argument_types.positive_int, default=16, metavar='B',
                        help='number of images, of ten crops each, per batch (default: %(default)s)')
    return parser.parse_args()


def main():
    args = parse_args()
    if sys.stdout.name == os.devnull:
        raise InputError('Standard output, where the embeddings go, is closed.')
    for path in (args.image_list, args.weights):
        if os.path.exists(path) and os.path.samestat(os.fstat(sys.stdout.fileno()), os.stat(path)):
            raise InputError(f'Standard output goes to {path}, which this very command reads: choose another file.')
    paths = read_list(args.image_list)

    with quiet.tensorflow_import():
        import tensorflow as tf
    import tqdm

    from tripletreid.distribute import strategies
    from tripletreid.modeling import model, pretrained
    strategies.create('none')
    network = model.build('trinet', 'fc1024', 128, (*CROP, 3))
    pretrained.load_trinet(args.weights, model.named_variables(network))

    @tf.function(input_signature=[tf.TensorSpec((None, *CROP, 3))], autograph=False)
    def embed(crops):
        return network(crops, training=False)['emb']

    with concurrent.futures.ThreadPoolExecutor() as pool, tqdm.tqdm(total=len(paths), unit='image') as bar:
        for start in range(0, len(paths), args.batch_size):
            batch = paths[start:start + args.batch_size]
            crops = np.stack(list(pool.map(ten_crops, batch)))  # [B, 10, H, W, 3]
            embs = embed(crops.reshape(-1, *CROP, 3).astype(np.float32)).numpy()
            embs = embs.reshape(len(batch), 10, -1).mean(axis=1)
            for path, emb in zip(batch, embs):
                print(path, *emb, sep=',', flush=True)
            bar.update(len(batch))


def read_list(path):
    """Return the lines of a text file that are not empty, a list."""
    try:
        with open(path, encoding='utf-8') as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError as error:
        raise InputError(f'There is no list of images {path}.') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 text; expected the path of an image per line.') from error
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f'{path} is empty; expected the path of an image per line.')
    return lines


def ten_crops(path):
    """Return the crops whose mean embedding is the image's: uint8 [10, 256, 128, 3] RGB.

    Raises:
        InputError: an image that is missing or does not decode.
    """
    import PIL.Image
    try:
        with PIL.Image.open(io.BytesIO(pictures.read_file(path))) as file:
            # OpenCV, which the paper's authors used, turns an image upright, too. PIL.ImageOps.exif_transpose would fail
            # at any other entry of the EXIF data that is not in order.
            turn = UPRIGHT.get(file.getexif().get(ORIENTATION))
            image = file.convert('RGB')
            image = np.asarray(image.transpose(PIL.Image.Transpose[turn]) if turn else image)
    except (InputError, OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f'The image {path} cannot be read: {error}.') from error
    image = resize(image, *PRE_CROP)
    height, width = CROP
    margin_y, margin_x = PRE_CROP[0] - height, PRE_CROP[1] - width
    corners = [(margin_y // 2, margin_x // 2), (0, 0), (0, margin_x), (margin_y, 0), (margin_y, margin_x)]
    crops = np.stack([image[y:y + height, x:x + width] for y, x in corners])
    return np.concatenate([crops, crops[:, :, ::-1]])


def resize(image, height, width):
    """Bilinear resize of an 8-bit image in OpenCV's fixed-point arithmetic, to the very bit.

    Args:
        image: uint8 [H, W, C].

    Returns: uint8 [height, width, C], as `cv2.resize(image, (width, height))` returns it.
    """
    left, right, weight = _taps(image.shape[1], width)
    # Columns beyond the border are dropped together with their weights, rows are only repeated.
    outside = (left < 0) | (left >= image.shape[1] - 1)
    weight_left, weight_right = _fixed_point(np.where(outside, np.float32(0), weight))[:, None, :, None]
    columns = image.astype(np.int32)
    left, right = left.clip(0, image.shape[1] - 1), right.clip(0, image.shape[1] - 1)
    rows = columns[:, left] * weight_left + columns[:, right] * weight_right  # 11 fractional bits

    top, bottom, weight = _taps(image.shape[0], height)
    weight_top, weight_bottom = _fixed_point(weight)[:, :, None, None]
    top, bottom = top.clip(0, image.shape[0] - 1), bottom.clip(0, image.shape[0] - 1)
    upper = (rows[top] >> 4) * weight_top >> 16  # 2 fractional bits
    lower = (rows[bottom] >> 4) * weight_bottom >> 16
    return (upper + lower + 2 >> 2).astype(np.uint8)


def _taps(source, target):
    """Return two source pixels per target pixel and the weight of the second one: int [target] twice, float32 [target]."""
    centres = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(centres).astype(np.int64)
    return first, first + 1, centres - first.astype(np.float32)


def _fixed_point(weight):
    """Weights of both pixels with 11 fractional bits, int32 [2, target]."""
    return np.rint(np.stack([1 - weight, weight]) * 2048).astype(np.int32)


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')

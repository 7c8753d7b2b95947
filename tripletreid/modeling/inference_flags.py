"""Test-time augmentation on a command line: flags of embed.py, freeze.py and search.py, and the `View` that they imply."""
import shlex
from typing import NamedTuple

from tripletreid.pictures import Pixels


class View(NamedTuple):
    """How an image becomes the variants that enter a net.

    load: (height, width) after resizing.
    net: (height, width) of a variant.
    pixels: `Pixels` of the run.
    flip, crop: test-time variants, see `augmentation.variants`.
    """
    load: tuple
    net: tuple
    pixels: Pixels = Pixels()
    flip: bool = False
    crop: str | None = None


def add_flags(add):
    """Add the flags of test-time augmentation through the `add_argument` of a parser or of a group."""
    add('--flip_augment', action='store_true', needs='--aggregator', help='embed the mirror image too')
    add('--crop_augment', choices=('center', 'avgpool', 'five'), needs={'five': '--aggregator'}, help='load images at the '
        'pre-crop size and embed the centre crop, the whole image, or the centre and the four corners')
    add('--aggregator', choices=('mean', 'normalized_mean'), needs='--flip_augment or --crop_augment five',
        help='how the variants of an image become one embedding')


def add_weights(add):
    """Add the flag that chooses among the weights of a checkpoint, as `checkpoints.load_weights` takes it."""
    add('--weights', choices=('raw',), help='weights of a training with --ema: raw for the last step '
        '(default: the moving average)')


def view(trained, crop, flip=False):
    """Return the `View` with which a model embeds.

    Args:
        trained: arguments of its training; pre_crop_height and pre_crop_width are needed only with a crop.
        crop: 'center', 'avgpool', 'five' or None, as --crop_augment. Average pooling takes in the whole image.
        flip: as --flip_augment.
    """
    net_size = (trained.net_input_height, trained.net_input_width)
    load_size = (trained.pre_crop_height, trained.pre_crop_width) if crop else net_size
    return View(load_size, load_size if crop == 'avgpool' else net_size, Pixels.from_args(trained), flip, crop)


def validation_crop(trained):
    """Return the crop with which validation while training embeds, because the net has seen crops."""
    return 'center' if trained.crop_augment else None


def validation_view(trained):
    """Return the `View` with which validation while training embeds."""
    return view(trained, validation_crop(trained), trained.eval_flip)


def flags_of_validation(trained, checkpoint, image_root, pools_tracklets=False):
    """Return the flags with which embed.py embeds as the validation of a checkpoint did, as text for a shell."""
    crop = validation_crop(trained)
    flags = [f'--checkpoint {checkpoint}',
             *([f'--image_root {shlex.quote(image_root)}'] if image_root != trained.image_root else []),
             *([f'--crop_augment {crop}'] if crop else []),
             *(['--flip_augment --aggregator mean'] if trained.eval_flip else []),
             *(['--pool_tracklets mean'] if pools_tracklets else []),
             *(['--allow_outside_root'] if trained.allow_outside_root else [])]
    return ' '.join(flags)

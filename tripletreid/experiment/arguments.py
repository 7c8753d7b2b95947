"""The parameters of a training run: `train.py`'s flags, from the command line or from an experiment's args.json.

What args.json holds goes through the very parser of the command line, so that both mean the same and neither can name
a net, a head or a number that the other could not.
"""
import json
import os

from tripletreid import plugins
from tripletreid.argument_types import (
    LONGEST_SIDE,
    ArgumentParser,
    OneOrMore,
    color_jitter,
    dimensions,
    excluder,
    inner_share,
    iterations,
    margin,
    non_negative_float,
    non_negative_int,
    number_up_to,
    positive_float,
    positive_int,
    share,
    side,
    threads,
)
from tripletreid.dataset import set_name
from tripletreid.errors import InputError
from tripletreid.evaluation.distances import METRICS
from tripletreid.files import write_json

FILE = 'args.json'
MOST_IMAGES = 65536  # In a batch: the distances of all their pairs take 17 GB.
# These belong to one start of a run and not to the run.
OF_ONE_START = ('experiment_root', 'resume', 'distribute', 'devices')
# These belong to the machine: the run has them until a start is given others, for itself alone.
OF_THE_MACHINE = ('image_root', 'eval_image_root', 'cache', 'loading_threads', 'keep_checkpoints', 'log_frequency',
                  'summary_frequency', 'recompute')
# What checkpoints hold follows from these.
OF_THE_CHECKPOINTS = ('optimizer', 'ema', 'memory', 'center_weight', 'sampler', 'classifier')
LARGEST_MEMORY = 2 ** 20
# Of a classifier: the range of a cosine, a right angle, and where the optima of the true identity and the others meet.
LARGEST_MARGINS = {'cosface': 2.0, 'arcface': 1.57, 'circle': 0.5}
# Of pre-crop size to net input; the original's recipes have 1.125.
LARGEST_PRE_CROP = 1.5
LARGEST_SHARE_OF_START = 0.1  # Of the weights that a training starts with, in their average at its end.


def memory_size(text):
    """How many embeddings a memory holds, for argparse."""
    return 0 if text == '0' else positive_int(text, LARGEST_MEMORY)


class _Parser(ArgumentParser):
    """The parser of train.py, with the defaults that follow from other arguments."""

    def parse_args(self, args=None, namespace=None):
        """As argparse's, with a pre-crop size in any case."""
        args = super().parse_args(args, namespace)
        for name in ('height', 'width'):
            if getattr(args, f'pre_crop_{name}') is None:
                setattr(args, f'pre_crop_{name}', pre_crop(getattr(args, f'net_input_{name}')))
        return args


def pre_crop(pixels):
    """Height or width to load images at, for random crops of this many pixels: 9/8, as the original's 288 to 256."""
    return min((9 * pixels + 4) // 8, LONGEST_SIDE)

# These take several values, a list; a single one is stored without the list around it.
SEVERAL = ('train_set', 'image_root', 'eval_query', 'eval_gallery', 'eval_excluder', 'eval_image_root')


def make_parser():
    """The parser of train.py's command line."""
    parser = _Parser(
        description='Train an embedding with the triplet loss.',
        usage='%(prog)s --experiment_root DIR --train_set CSV --image_root DIR [more flags]\n'
              '       %(prog)s --experiment_root DIR --resume',
        example='python train.py --experiment_root runs/first --train_set data/folder_train.csv --image_root products \\\n'
                '    --model_name mnist --net_input_height 32 --net_input_width 32 --crop_augment \\\n'
                '    --batch_p 16 --train_iterations 600 --decay_start_iteration 300\n'
                'python train.py --experiment_root runs/first --resume')

    add = parser.add_argument_group('what is needed').add_argument
    add('--experiment_root', required=True, metavar='DIR', help='where the run is kept: args.json, checkpoints, logs')
    add('--train_set', nargs='+', action=OneOrMore, metavar='CSV', help='csv file: identity,relative/path.jpg per line; '
        'several are joined, and equal identities of two of them stay two')
    add('--image_root', nargs='+', action=OneOrMore, metavar='DIR', help='folder that the paths in the csv file are '
        'relative to; of several csv files one for all, or one for each')
    add('--resume', action='store_true', help='go on with the run in the experiment root; everything else is loaded '
        'from its args.json')

    add = parser.add_argument_group('net').add_argument
    add('--model_name', default='resnet_v1_50', choices=plugins.choices('nets'), help='(%(default)s)')
    add('--initial_checkpoint', metavar='FILE', help="pre-trained weights of the net's body, without which large nets "
        'learn slowly')
    add('--net_input_height', type=side, default=256, metavar='H', help='(%(default)s)')
    add('--net_input_width', type=side, default=128, metavar='W', help='(%(default)s)')
    add('--embedding_dim', type=dimensions, default=128, metavar='D', help='(%(default)s)')
    add('--head_name', default='fc1024', choices=plugins.choices('heads'), help='(%(default)s)')
    add_net_options(add)

    add = parser.add_argument_group('batches and augmentation').add_argument
    add('--batch_p', type=positive_int, default=32, metavar='P', help='identities in a batch (%(default)s)')
    add('--batch_per_set', action='store_true', help='of several training sets each has an equal part of the P '
        'identities; without, they are drawn from all alike')
    add('--sampler', default='random', choices=('random', 'hard_identity'), help='which identities are in a batch: any, or '
        'groups of those whose mean embeddings are near each other (%(default)s)')
    add('--batch_k', type=positive_int, default=4, metavar='K', help='images of each identity (%(default)s)')
    add('--flip_augment', action='store_true', help='mirror images at random')
    add('--crop_augment', action='store_true', help='load images at the pre-crop size, then crop at random')
    add('--pre_crop_height', type=side, metavar='H', help='with crop augmentation (9/8 of the net input)')
    add('--pre_crop_width', type=side, metavar='W', help='with crop augmentation (9/8 of the net input)')
    add('--random_erasing', type=share, default=0.0, metavar='P', help='blot out a random rectangle of an image with '
        'this probability (%(default)s)')
    add('--pad_crop', type=non_negative_int, default=0, metavar='N', help='put N rows and columns of black round an image, '
        'then crop at random (%(default)s)')
    add('--rotate', type=number_up_to(180), default=0.0, metavar='DEGREES', help='turn an image by up to this, either '
        'way (%(default)s)')
    add('--shear', type=number_up_to(60), default=0.0, metavar='DEGREES', help='slant it by up to this, either way '
        '(%(default)s)')
    add('--scale', type=number_up_to(0.9), default=0.0, metavar='S', help='change its size by a factor from 1-S to 1+S '
        '(%(default)s)')
    add('--color_jitter', type=color_jitter, metavar='B,C,S,H', help='change brightness, contrast and saturation by '
        'factors from 1-B to 1+B and so on, and turn the hue by up to H of the colour circle, such as 0.2,0.15,0.1,0.05')
    add('--random_gray', type=share, default=0.0, metavar='P', help='make an image grey with this probability '
        '(%(default)s)')
    add('--blur', type=number_up_to(20), default=0.0, metavar='SIGMA', help='blur with a Gaussian of a standard deviation '
        'of up to this many pixels (%(default)s)')
    add('--auto_augment', type=share, default=0.0, metavar='P', help="change an image by AutoAugment's policy for "
        'ImageNet with this probability (%(default)s)')
    add('--frames_per_tracklet', type=positive_int, default=1, metavar='S', help='with tracklets in the csv file, K are '
        'tracklets, whose embedding is the mean over S frames (%(default)s)')

    add = parser.add_argument_group('loss').add_argument
    add('--margin', type=margin, default='soft', metavar='M', help='a number, soft or none (%(default)s)')
    add('--loss', default='batch_hard', choices=plugins.choices('losses'), help='(%(default)s)')
    add('--metric', default='euclidean', choices=METRICS, help='(%(default)s)')
    add('--metric_weight', type=non_negative_float, default=1.0, metavar='W', help='of that loss (%(default)s)')
    add('--xent_weight', type=non_negative_float, default=0.0, metavar='W', help='of the cross-entropy of a classifier '
        'of the training identities, which is beside the embedding; 0: there is none (%(default)s)')
    add('--label_smoothing', type=share, default=0.1, metavar='S', help='of the cross-entropy (%(default)s)')
    add('--classifier', default='linear', choices=('linear', *LARGEST_MARGINS), help='of the cross-entropy; all but linear '
        'work with cosines and a margin (%(default)s)')
    add('--classifier_scale', type=positive_float, default=64.0, metavar='S', help='by which cosines are multiplied '
        '(%(default)s)')
    add('--classifier_margin', type=non_negative_float, metavar='M', help='(0.35 of cosface and circle, 0.5 of arcface)')
    add('--memory', type=memory_size, default=0, metavar='N', help='also compare anchors with the N embeddings before '
        'their batch; 0: not (%(default)s)')
    add('--memory_start', type=non_negative_int, metavar='N', help='iterations before the memory is used; late is better '
        'from scratch (until it is full)')
    add('--center_weight', type=non_negative_float, default=0.0, metavar='W', help='of the centre loss, the squared '
        'distance of embeddings to the centres of their identities; 0: there is none (%(default)s)')
    add('--center_learning_rate', type=positive_float, default=0.5, metavar='R', help='at which the centres follow '
        '(%(default)s)')

    add = parser.add_argument_group('optimisation').add_argument
    add('--train_iterations', type=positive_int, default=25000, metavar='N', help='(%(default)s)')
    add('--learning_rate', type=positive_float, default=3e-4, metavar='R', help='(%(default)s)')
    add('--decay_start_iteration', type=int, default=15000, metavar='N', help='when the learning rate starts to '
        'decay; -1: never (%(default)s)')
    add('--lr_schedule', default='exponential', choices=('exponential', 'step', 'cosine', 'constant'),
        help='how the learning rate decays: from decay_start_iteration to a thousandth of it or along a cosine to 0 at '
        'the end, by a factor at some iterations, or not at all (%(default)s)')
    add('--lr_steps', type=iterations, metavar='N,N,…', help='iterations at which the step schedule lowers the rate')
    add('--lr_step_factor', type=positive_float, default=0.1, metavar='F', help='by which it does (%(default)s)')
    add('--warmup_iterations', type=non_negative_int, default=0, metavar='N', help='in which the learning rate rises '
        'to its full value (%(default)s)')
    add('--optimizer', default='adam', choices=('adam', 'adamw', 'sgd'), help='adamw: Adam with decoupled weight decay '
        '(%(default)s)')
    add('--momentum', type=share, metavar='M', help='of sgd (0.9)')
    add('--nesterov', action='store_true', help="Nesterov's momentum, with sgd")
    add('--decay_beta1', type=share, metavar='B', help="Adam's beta1 once the decay has started; the paper has 0.5 "
        '(0.9, as before)')
    add('--weight_decay', type=non_negative_float, default=0.0, metavar='W', help='times each variable is added to its '
        "gradient, as PyTorch's Adam and SGD do; with adamw, times the learning rate each kernel shrinks by, and norms, "
        'biases, positions and tokens do not (%(default)s)')
    add('--gradient_clip', type=positive_float, metavar='NORM', help='scale longer gradients to this (never)')
    add('--freeze_body_iterations', type=non_negative_int, default=0, metavar='N', help='train only the head at first; '
        "the body's batch norm stays as it is too (%(default)s)")
    add('--layer_decay', type=inner_share, metavar='F', help='the learning rate of the last stage of the body is so many '
        'times that of the head, and so on with each stage or block further below (the same for all)')
    add('--head_learning_rate_factor', type=positive_float, default=1.0, metavar='F', help="by which the learning rate "
        'of what is not the body, head and classifier, is multiplied (%(default)s)')
    add('--ema', type=inner_share, metavar='D', help='also keep a moving average of the weights, of which each step '
        'leaves so much, as 0.9998; it is what validates and embeds (none)')

    add = parser.add_argument_group('validation while training').add_argument
    add('--eval_frequency', type=non_negative_int, default=0, metavar='N', help='iterations between evaluations; the '
        'best of these checkpoints is noted in checkpoint-best; 0: never (%(default)s)')
    add('--eval_query', nargs='+', metavar='CSV', help='query images, in the image root; of several sets the best '
        'checkpoint has the highest mean mAP')
    add('--eval_gallery', nargs='+', metavar='CSV', help='gallery images, in the image root, for each of the queries '
        'its own; where both files of a set name tracklets, these are pooled')
    add('--eval_image_root', nargs='+', metavar='DIR', help='folder of these images; one for all sets, or one for each '
        '(the image root of the training, where that is one)')
    add('--eval_excluder', nargs='+', type=excluder, metavar='NAME', help='as of evaluate.py; one for all sets, or one '
        'for each')
    add('--eval_metric', choices=METRICS, help='(the metric of the training)')
    add('--eval_flip', action='store_true', help='embed the mean of each image and its mirror image')

    add = parser.add_argument_group('checkpoints and logs').add_argument
    add('--checkpoint_frequency', type=non_negative_int, default=1000, metavar='N', help='iterations between '
        'checkpoints; 0: only the final one (%(default)s)')
    add('--keep_checkpoints', type=non_negative_int, default=0, metavar='N', help='how many checkpoints stay, the '
        'newest ones besides the best one and the one that the run was resumed from; 0: all (%(default)s)')
    add('--log_frequency', type=positive_int, default=1, metavar='N', help='iterations between lines of the log; '
        'TensorBoard has all of them (%(default)s)')
    add('--summary_frequency', type=positive_int, default=1, metavar='N', help='iterations between histograms in '
        'TensorBoard (%(default)s)')
    add('--detailed_logs', action='store_true', help='keep embeddings, losses and file ids of every batch as .npy')

    add = parser.add_argument_group('speed').add_argument
    add('--cache', default='none', metavar='{none,memory,DIR}', help='keep the decoded images of a small dataset in '
        'memory, and in a folder, if one is named, for later runs (%(default)s)')
    add('--loading_threads', type=threads, default=8, metavar='N', help='images loaded at a time (%(default)s)')
    add('--mixed_precision', choices=('none', 'bfloat16', 'float16'), default='none', help='compute the net in 16 bits; '
        'weights, distances, loss and embeddings stay float32 (%(default)s)')
    add('--tf32', action='store_true', help='let GPUs since Ampere round factors of float32 products to 10 bits: faster, '
        'and other numbers; embeddings and validations stay float32')
    add('--recompute', action='store_true', help='keep only some of the activations and compute the others again for the '
        'gradients: less memory, more time, the same numbers but for rounding')
    add('--jit_compile', action='store_true', help='compile the training step with XLA: for GPUs')
    add('--distribute', choices=('none', 'mirrored', 'multi_worker'), default='none', help='the GPUs of this host, or the '
        'hosts that the environment variable TF_CONFIG names (%(default)s)')
    add('--devices', type=threads, metavar='N', help='with --distribute mirrored: how many GPUs (all of them)')

    add = parser.add_argument_group('more').add_argument
    add('--seed', type=non_negative_int, default=0, metavar='N', help='of the initialisation, the batches and their '
        'augmentation (%(default)s)')
    add('--deterministic', action='store_true', help="TensorFlow's op determinism: the same run twice gives the same "
        'bits, at some cost in speed')
    add('--skip_broken_images', action='store_true', help='look at every image first; list those that cannot be read '
        'in broken_images.csv and leave them out')
    add('--allow_outside_root', action='store_true', help='also read images that lie outside of the image root')
    return parser


def add_net_options(add):
    """Add the flags that a net may have beside its input through the `add_argument` of a parser or of a group.

    Without one of them the net's own default counts, or what published weights want (see `complete`).
    """
    add('--last_stride', type=int, choices=(1, 2), help='stride of the last stage of a ResNet (2)')
    add('--pooling', choices=('avg', 'gem', 'cls', 'map'), help='what becomes of the last feature map: its average, or '
        'the generalised mean with a learned exponent (avg); of a transformer: the mean of the patches, the class token, '
        'or a head that attends to the patches (cls)')
    add('--patch_stride', type=positive_int, metavar='N', help='from patch to patch of a transformer (the size of a '
        'patch)')
    add('--drop_path', type=share, metavar='P', help='stochastic depth: with this probability an image skips the last '
        'branches of a transformer, with less the earlier ones (0)')
    add('--class_token', choices=('yes', 'no'), help='whether a transformer has one (as the initial checkpoint, or yes '
        'but with --pooling map)')
    add('--registers', type=non_negative_int, metavar='N', help='tokens of a transformer that are not read (as the '
        'initial checkpoint, or 0)')
    add('--gelu', choices=('exact', 'tanh'), help="a transformer's activation: as it is, or approximated, as JAX has it "
        '(as the initial checkpoint wants it, or exact)')
    add('--pixels', choices=('imagenet', 'half'), help='what the pixels become, of nets that leave it open: mean 0 and '
        'variance 1 over ImageNet, or -1 to 1 (as the initial checkpoint wants it, or half for transformers, else '
        'imagenet)')


NET_OPTIONS = ('last_stride', 'pooling', 'patch_stride', 'drop_path', 'class_token', 'registers', 'gelu', 'pixels')


def complete(args, options):
    """Set the options of a net that were not given to what published weights want, {name: value}."""
    for name, value in options.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def check(args, parser):
    """Check what one argument alone cannot tell; ends through `parser.error`."""
    if not args.train_set or not args.image_root:
        parser.error('--train_set and --image_root are needed, unless --resume loads them')
    if args.batch_k < 2:
        parser.error('--batch_k must be 2 or more: without a second image an anchor has no positive')
    if args.batch_p < 2:
        parser.error('--batch_p must be 2 or more: without a second identity an anchor has no negative')
    _check_sets(args, parser)
    batch_size = args.batch_p * args.batch_k * args.frames_per_tracklet
    if batch_size > MOST_IMAGES:
        parser.error(f'--batch_p, --batch_k and --frames_per_tracklet make batches of {batch_size} images, and more than '
                     f'{MOST_IMAGES} are too many')
    if not args.xent_weight and (args.loss == 'none' or not args.metric_weight):
        parser.error('without a metric loss (--loss, --metric_weight) and without cross-entropy (--xent_weight) there '
                     'is nothing to train with')
    if args.optimizer != 'sgd' and (args.momentum is not None or args.nesterov):
        parser.error('--momentum and --nesterov have no effect without --optimizer sgd')
    if args.nesterov and args.momentum == 0:
        parser.error('--nesterov has no effect with --momentum 0')
    if args.optimizer == 'sgd' and args.decay_beta1 is not None:
        parser.error('--decay_beta1 has no effect with --optimizer sgd: it is of Adam')
    if args.optimizer == 'adamw' and not args.weight_decay:
        parser.error('--optimizer adamw has no effect without --weight_decay, which is all in which it differs from adam')
    if args.freeze_body_iterations >= args.train_iterations and (args.layer_decay or args.recompute):
        parser.error('--layer_decay and --recompute have no effect on a body that is frozen for the whole training '
                     '(--freeze_body_iterations)')
    _check_objectives(args, parser)
    if (args.lr_schedule == 'step') != bool(args.lr_steps):
        parser.error('--lr_schedule step and --lr_steps belong together: give both or neither')
    evaluation = [args.eval_query, args.eval_gallery, args.eval_excluder, args.eval_frequency]
    if any(evaluation) and not all(evaluation):
        parser.error('--eval_query, --eval_gallery, --eval_excluder and --eval_frequency belong together: give all or '
                     'none')
    if any(evaluation) and len(args.eval_query) != len(args.eval_gallery):
        parser.error(f'--eval_query names {len(args.eval_query)} csv file(s) and --eval_gallery '
                     f'{len(args.eval_gallery)}: give each query set its gallery')
    if any(evaluation) and len(args.eval_excluder) not in (1, len(args.eval_query)):
        parser.error(f'--eval_excluder names {len(args.eval_excluder)} for {len(args.eval_query)} validation set(s): '
                     f'give one for all, or one for each')
    if (args.eval_metric or args.eval_flip or args.eval_image_root) and not args.eval_frequency:
        parser.error('--eval_metric, --eval_flip and --eval_image_root have no effect without a validation, see '
                     '--eval_frequency')
    if args.eval_image_root and len(args.eval_image_root) not in (1, len(args.eval_query)):
        parser.error(f'--eval_image_root names {len(args.eval_image_root)} folders for {len(args.eval_query)} '
                     f'validation set(s): give one for all, or one for each')
    if any(evaluation) and not args.eval_image_root and isinstance(args.image_root, list):
        parser.error('--image_root names several folders: say with --eval_image_root where the images of --eval_query '
                     'and --eval_gallery are, one for all sets or one for each')
    if args.devices and args.distribute != 'mirrored':
        parser.error('--devices has no effect without --distribute mirrored')
    if args.jit_compile and args.distribute != 'none':
        parser.error('--jit_compile is for a single device, i.e. --distribute none')
    if args.skip_broken_images and args.distribute == 'multi_worker':
        parser.error('--skip_broken_images is for one host; make a csv file without them first, with make_dataset.py')
    if args.pad_crop and args.crop_augment:
        parser.error('--pad_crop and --crop_augment are two ways to crop at random: choose one of them')
    if args.pad_crop >= min(args.net_input_height, args.net_input_width):
        parser.error(f'--pad_crop {args.pad_crop} must be smaller than the net input ({args.net_input_height}x'
                     f'{args.net_input_width}): of some images nothing would be left')
    crop_fits = args.net_input_height <= args.pre_crop_height and args.net_input_width <= args.pre_crop_width
    if args.crop_augment and not crop_fits:
        parser.error(f'with --crop_augment the net input ({args.net_input_height}x{args.net_input_width}) must not be '
                     f'larger than the pre-crop size ({args.pre_crop_height}x{args.pre_crop_width})')


def _check_sets(args, parser):
    """Check the training sets; ends through `parser.error`."""
    paths, roots = as_list(args.train_set), as_list(args.image_root)
    names = [set_name(path) for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        parser.error(f'two files of --train_set are called {twice}, which is what tells their identities apart: rename '
                     f'one of them')
    if len(roots) not in (1, len(paths)):
        parser.error(f'--image_root names {len(roots)} folders for {len(paths)} training set(s): give one for all, or one '
                     f'for each')
    if args.batch_per_set and len(paths) < 2:
        parser.error('--batch_per_set has no effect with a single training set')
    if args.batch_per_set and args.batch_p % len(paths):
        parser.error(f'--batch_per_set: --batch_p {args.batch_p} cannot be divided into {len(paths)} equal parts')


def as_list(given):
    """The values of an argument that is a text or, where there are several, a list."""
    return given if isinstance(given, list) else [given]


def _check_objectives(args, parser):
    """The part of `check` about the classifier, the memory and the centres."""
    has_metric_loss = args.loss != 'none' and args.metric_weight
    if args.classifier != 'linear' and not args.xent_weight:
        parser.error(f'--classifier {args.classifier} has no effect without cross-entropy (--xent_weight)')
    if args.classifier == 'linear' and (args.classifier_margin is not None or args.classifier_scale != 64):
        parser.error('--classifier_scale and --classifier_margin have no effect on a linear classifier: name another '
                     '--classifier')
    largest = LARGEST_MARGINS.get(args.classifier)
    if args.classifier_margin is not None and args.classifier_margin > largest:
        parser.error(f'--classifier_margin {args.classifier_margin} is more than {largest}, the most that has a sense for '
                     f'{args.classifier}')
    if args.memory and not has_metric_loss:
        parser.error('--memory has no effect without a metric loss (--loss, --metric_weight)')
    filled = batches_in_memory(args)
    if args.memory_start is not None and not args.memory:
        parser.error('--memory_start has no effect without --memory')
    if args.memory_start is not None and args.memory_start < filled:
        parser.error(f'--memory_start {args.memory_start} is before the memory is full: {args.memory} embeddings are '
                     f'{filled} batches of {args.batch_p * args.batch_k} (--memory, --batch_p, --batch_k)')
    if args.center_learning_rate != 0.5 and not args.center_weight:
        parser.error('--center_learning_rate has no effect without the centre loss (--center_weight)')


def notices(args):
    """What the user should know of arguments that are right by themselves, a list of sentences."""
    decays = args.lr_schedule in ('exponential', 'cosine') or args.decay_beta1 is not None
    sentences = [sentence_of_small_crops(args)] if args.crop_augment else []
    if decays and args.decay_start_iteration >= args.train_iterations:
        falling = {'exponential': ['the learning rate will not fall'],
                   'cosine': ['--lr_schedule cosine has no effect']}.get(args.lr_schedule, [])
        falling += [] if args.decay_beta1 is None else ['--decay_beta1 has no effect']
        sentences.append(f'The decay starts at iteration {args.decay_start_iteration}, behind the end of the run at '
                         f'{args.train_iterations}: {" and ".join(falling)} (--decay_start_iteration).')
    share_of_start = (args.ema or 0) ** args.train_iterations
    if share_of_start > LARGEST_SHARE_OF_START:
        sentences.append(f'At the end of the run {share_of_start:.0%} of the averaged weights will be those that it starts '
                         f'with: --ema {args.ema} is for more than {args.train_iterations} iterations.')
    if args.memory and memory_start(args) >= args.train_iterations:
        sentences.append(f'The memory of {args.memory} embeddings is never used: the run ends at iteration '
                         f'{args.train_iterations} (--memory, --memory_start).')
    return [sentence for sentence in sentences if sentence]


def sentence_of_small_crops(args):
    """What to say when crops show the net little of an image and magnified, of a run's arguments; None otherwise."""
    height, width = args.net_input_height, args.net_input_width
    if args.pre_crop_height <= LARGEST_PRE_CROP * height and args.pre_crop_width <= LARGEST_PRE_CROP * width:
        return None
    return (f'Crops of {height}x{width} are a small part of images that are loaded at {args.pre_crop_height}x'
            f'{args.pre_crop_width}, and the net never sees a whole one; usual is 9/8, which is '
            f'{pre_crop(height)}x{pre_crop(width)} here (--pre_crop_height, --pre_crop_width).')


def batches_in_memory(args):
    """How many batches fill the memory, of a run's arguments."""
    return -(-args.memory // (args.batch_p * args.batch_k))


def memory_start(args):
    """The first iteration (0-based) whose loss has the memory, of a run's arguments: it is full then."""
    return batches_in_memory(args) if args.memory_start is None else args.memory_start


def net_options(args):
    """What is asked of the net beside its input: keyword arguments of its `body`, those that are given."""
    return {name: getattr(args, name) for name in NET_OPTIONS if getattr(args, name) is not None}


def load(root):
    """Read an experiment's args.json.

    Returns: (args, stored): the arguments as `train.py` would have parsed them, with defaults for what the file lacks,
        and the file's own content as a dict.

    Raises:
        InputError: no such file, no JSON object, or a value that the command line would refuse.
    """
    path = os.path.join(root, FILE)
    if not os.path.isdir(root):
        raise InputError(f'There is no experiment root {root}.')
    if not os.path.isfile(path):
        raise InputError(f'{root} has no {FILE}, so it is not an experiment root.')
    try:
        with open(path, encoding='utf-8') as file:
            stored = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not valid JSON ({error}).') from error
    if not isinstance(stored, dict):
        raise InputError(f'{path} does not hold a JSON object of arguments.')
    parser = make_parser()
    known = vars(parser.parse_args(['--experiment_root', root]))

    def refuse(message):
        raise InputError(f'{path}: {message}.')

    parser.error = refuse
    # What lacks a pre-crop size was written by a version that had this one, whatever the net's input.
    argv = ['--experiment_root', root, '--pre_crop_height=288', '--pre_crop_width=144']
    for name in known:
        if name in stored and name not in OF_ONE_START:
            argv += _as_flag(name, stored[name], is_switch=isinstance(known[name], bool), refuse=refuse)
    return parser.parse_args(argv), stored


def as_stored(args):
    """The arguments as args.json has them, a dict."""
    return {name: value[0] if name in SEVERAL and value and len(value) == 1 else value
            for name, value in vars(args).items()}


def stored_image_root(root, args):
    """The one image root that an experiment's args.json names.

    Args:
        root: the experiment root.
        args: what `load` gives of it.

    Raises:
        InputError: it names none, or several, or it is not there.
    """
    check_stored_image_roots(root, args)
    if isinstance(args.image_root, list):
        raise InputError(f'{os.path.join(root, FILE)} names several image roots, {" and ".join(args.image_root)}: give '
                         f'an --image_root.')
    return args.image_root


def check_stored_image_roots(root, args):
    """Raise InputError when an experiment's args.json names no image root, or one that is not there."""
    if not args.image_root:
        raise InputError(f'{os.path.join(root, FILE)} names no image root: give an --image_root.')
    for image_root in as_list(args.image_root):
        if not os.path.isdir(image_root):
            raise InputError(_not_there(root, 'the image root', image_root, 'give another --image_root'))


def check_stored_files(root, args):
    """Raise InputError when a csv file that an experiment's args.json names is not there; `args` as `load` gives it."""
    for name in ('train_set', 'eval_query', 'eval_gallery'):
        for path in as_list(getattr(args, name) or []):
            if not os.path.exists(path):
                raise InputError(_not_there(root, name, path, 'put it back'))


def _not_there(root, what, path, way_out):
    sentence = f'{os.path.join(root, FILE)} names {what} {path}, which is not there'
    if os.path.isabs(path):
        return f'{sentence}; {way_out}.'
    return f'{sentence}. That counts from the folder where training was started: run this in that folder, or {way_out}.'


def save(args):
    """Write the parameters of a run to its args.json; what is there stays, but for a run that became longer.

    Args:
        args: as parsed, with `experiment_root`.
    """
    path = os.path.join(args.experiment_root, FILE)
    kept = {}
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
            kept = json.load(file)
    write_json(path, {**as_stored(args), **kept, 'train_iterations': args.train_iterations})


def merge_with_stored(args, given):
    """The parameters of a run to be resumed.

    Args:
        args: as parsed from the command line.
        given: names of the arguments that the command line really sets.

    Returns: (args, notices): what args.json holds, or the command line where that lacks an argument; and what the user
        should know about it, a list of sentences.
    """
    merged, stored = load(args.experiment_root)
    notices, defaults_used = [], []
    for name, value in vars(args).items():
        if name in OF_ONE_START:
            setattr(merged, name, value)
        elif name not in stored and name in given and name in OF_THE_CHECKPOINTS and value != getattr(merged, name):
            raise InputError(f'The run to be resumed was started without --{name}, and its checkpoints lack what that '
                             f'needs. Leave the flag out, or start another run with it.')
        elif name not in stored and name in given:
            setattr(merged, name, value)
            notices.append(f'{FILE} lacks the argument {name}: using the given {value!r}.')
        elif name not in stored:
            defaults_used.append(name)
        elif name in given and name in OF_THE_MACHINE and value != getattr(merged, name):
            notices.append(f'{name} is {value!r} in this start, where the run has {getattr(merged, name)!r}.')
            setattr(merged, name, value)
        elif name in given and name == 'train_iterations' and value > merged.train_iterations:
            notices.append(_sentence_of_longer_run(merged, value))
            merged.train_iterations = value
        elif name in given and value != getattr(merged, name):
            notices.append(f'The argument {name} was given as {value!r}, but the run to be resumed has '
                           f'{getattr(merged, name)!r}: using that.')
    if defaults_used:
        notices.append(f'{FILE} lacks {", ".join(defaults_used)}: using the defaults.')
    unknown = sorted(set(stored) - set(vars(args)))
    if unknown:
        notices.append(f'{FILE} holds arguments that are not known here and not used: {", ".join(unknown)}.')
    return merged, notices


def _sentence_of_longer_run(args, iterations):
    """What to say when a run is to have more iterations than it was started with."""
    sentence = f'The run goes on to iteration {iterations}, instead of {args.train_iterations}.'
    decays = args.lr_schedule in ('exponential', 'cosine') and 0 <= args.decay_start_iteration < iterations
    if decays:
        sentence += (f' The decay of its learning rate, from iteration {args.decay_start_iteration} to the end, is '
                     f'stretched: from here on it is another one than if the run had been that long from the start.')
    return sentence


def _as_flag(name, value, is_switch, refuse):
    """An argument of args.json as the command line has it, a list of strings."""
    if isinstance(value, bool) != is_switch and value is not None:
        refuse(f'argument {name}: {json.dumps(value)} is not what it should be')
    if value is None or value is False:
        return []
    if value is True:
        return [f'--{name}']
    if name in SEVERAL and isinstance(value, list):
        # Behind `--name=` there is room for one only, and what stands alone must not pass for a flag.
        if not value or not all(isinstance(each, str) and each[:1] not in ('', '-') for each in value):
            refuse(f'argument {name}: {json.dumps(value)} is no list of names')
        return [f'--{name}', *value]
    if not isinstance(value, (str, int, float)):
        refuse(f'argument {name}: {json.dumps(value)} is neither a number nor a text')
    return [f'--{name}={value}']

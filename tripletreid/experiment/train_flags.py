"""Define the flags of train.py: names, types, defaults, help, and which flag needs which other.

args.json goes through the same parser as the command line, so that both mean the same and neither can name a net, a head
or a number that the other could not.
"""
from tripletreid import plugins
from tripletreid.argument_types import (
    LONGEST_SIDE,
    ArgumentParser,
    OneOrMore,
    color_jitter,
    dimensions,
    excluder,
    fraction,
    inner_fraction,
    iterations,
    margin,
    non_negative_float,
    non_negative_int,
    number_up_to,
    positive_float,
    positive_int,
    side,
    threads,
)
from tripletreid.experiment import net_flags
from tripletreid.metrics import METRICS

# Arguments of one start of a run; they are not stored for the next start.
LAUNCH_ARGS = ('experiment_root', 'resume', 'distribute', 'devices')
# Arguments of the machine: stored with the run, but a later start may be given others, for that start alone.
MACHINE_ARGS = ('image_root', 'eval_image_root', 'cache', 'loading_threads', 'keep_checkpoints', 'log_frequency',
                'summary_frequency', 'recompute')
# Arguments that decide which variables a checkpoint holds.
CHECKPOINT_ARGS = ('optimizer', 'ema', 'memory', 'sampler', 'classifier',
                   *(f'{name}_weight' for name in plugins.choices('objectives')))
# Arguments of one or several values; a single value is stored without a list around it.
LIST_ARGS = ('train_set', 'image_root', 'eval_query', 'eval_gallery', 'eval_excluder', 'eval_image_root')
LARGEST_MEMORY = 2 ** 20
CLASSIFIERS_WITH_MARGIN = '|'.join(name for name in plugins.choices('classifiers') if name != 'linear')
METRIC_LOSS = ('--loss', '--metric_weight')  # Flags that are on when a run has a metric loss.


def memory_size(text):
    """Parse the number of embeddings in a memory, for argparse."""
    return 0 if text == '0' else positive_int(text, LARGEST_MEMORY)


class _TrainParser(ArgumentParser):
    """The parser of train.py, with defaults that follow from other arguments."""

    def parse_args(self, args=None, namespace=None):
        """Parse as argparse does, and complete the pre-crop size."""
        args = super().parse_args(args, namespace)
        for name in ('pre_crop_height', 'pre_crop_width'):
            if getattr(args, name) is None:
                setattr(args, name, self.idle_value(args, name))
        return args

    def idle_value(self, args, name):
        """Return the value of a flag that is not given."""
        if name in ('pre_crop_height', 'pre_crop_width'):
            return pre_crop(getattr(args, name.replace('pre_crop', 'net_input')))
        return super().idle_value(args, name)


def pre_crop(pixels):
    """Return the height or width at which images are loaded for random crops of `pixels`: 9/8, as 288 to 256."""
    return min((9 * pixels + 4) // 8, LONGEST_SIDE)


def _add_required(add):
    add('--experiment_root', required=True, metavar='DIR', help='folder of the run: args.json, checkpoints, logs')
    add('--train_set', nargs='+', action=OneOrMore, metavar='CSV', help='csv file with one identity,relative/path.jpg per '
        'line; several files are joined, and equal identities in two files stay two identities')
    add('--image_root', nargs='+', action=OneOrMore, metavar='DIR', help='folder to which the paths in the csv file are '
        'relative; one for all csv files, or one for each')
    add('--resume', action='store_true', help='continue the run in the experiment root; all other arguments are loaded '
        'from its args.json')


def _add_net(add):
    add('--model_name', default='resnet_v1_50', choices=plugins.choices('nets'), help='network, a file of nets/ '
        '(default: %(default)s)')
    add('--initial_checkpoint', metavar='FILE', help='pre-trained weights of the body of the net, without which large nets '
        'learn slowly; an experiment root, or a file (see docs/nets_and_weights.md)')
    add('--initial_head', action='store_true', needs='--initial_checkpoint', help='also start with the head of the initial '
        'checkpoint; if that is an experiment root, its net, head, image size and pixels are the defaults')
    add('--net_input_height', type=side, default=256, metavar='H', help='height of the images that enter the net '
        '(default: %(default)s)')
    add('--net_input_width', type=side, default=128, metavar='W', help='width of the images that enter the net '
        '(default: %(default)s)')
    add('--resize', choices=('tf1', 'bilinear', 'bicubic'), default='tf1', help='resizing of images: as TensorFlow 1 '
        "did, or with Pillow's antialiased filters; embedding and search follow the run (default: %(default)s)")
    add('--jpeg', choices=('fast', 'accurate'), default='fast', help="JPEG decoder: TensorFlow's default, or the accurate "
        'one, with the pixels of Pillow; embedding and search follow the run (default: %(default)s)')
    add('--embedding_dim', type=dimensions, default=128, metavar='D', help='dimensions of the embedding '
        '(default: %(default)s)')
    add('--head_name', default='fc1024', choices=plugins.choices('heads'), help='layers between body and embedding, a file '
        'of heads/ (default: %(default)s)')
    net_flags.add_flags(add)


def _add_batches(add):
    add('--batch_p', type=positive_int, default=32, metavar='P', help='identities per batch (default: %(default)s)')
    add('--batch_k', type=positive_int, default=4, metavar='K', help='images per identity (default: %(default)s)')
    add('--batch_per_set', action='store_true', help='draw an equal part of the P identities from each training set, '
        'instead of from all sets together')
    add('--sampler', default='random', choices=plugins.choices('samplers'), help='identities of a batch: random ones, or '
        'groups of identities whose mean embeddings are close (default: %(default)s)')
    add('--frames_per_tracklet', type=positive_int, default=1, metavar='S', help='if the csv file names tracklets, the K '
        'images are tracklets, whose embedding is the mean over S frames (default: %(default)s)')


def _add_augmentation(add):
    add('--flip_augment', action='store_true', help='mirror every second image at random')
    add('--crop_augment', action='store_true', help='load images at the pre-crop size and crop them at random')
    add('--pre_crop_height', type=side, metavar='H', needs='--crop_augment', help='height of an image before the crop '
        '(default: 9/8 of the net input)')
    add('--pre_crop_width', type=side, metavar='W', needs='--crop_augment', help='width of an image before the crop '
        '(default: 9/8 of the net input)')
    add('--random_erasing', type=fraction, default=0.0, metavar='P', help='probability of replacing a random rectangle of '
        'an image by the mean colour (default: %(default)s)')
    add('--pad_crop', type=non_negative_int, default=0, metavar='N', help='pad an image with N black rows and columns per '
        'side, then crop it at random (default: %(default)s)')
    add('--rotate', type=number_up_to(180), default=0.0, metavar='DEGREES', help='largest rotation, in either direction '
        '(default: %(default)s)')
    add('--shear', type=number_up_to(60), default=0.0, metavar='DEGREES', help='largest shear of the rows, in either '
        'direction (default: %(default)s)')
    add('--scale', type=number_up_to(0.9), default=0.0, metavar='S', help='scale an image by a factor from 1-S to 1+S '
        '(default: %(default)s)')
    add('--color_jitter', type=color_jitter, metavar='B,C,S,H', help='change brightness, contrast and saturation by '
        'factors from 1-B to 1+B etc., and turn the hue by up to H of the colour circle, e.g. 0.2,0.15,0.1,0.05 '
        '(default: off)')
    add('--random_gray', type=fraction, default=0.0, metavar='P', help='probability of making an image grey '
        '(default: %(default)s)')
    add('--blur', type=number_up_to(20), default=0.0, metavar='SIGMA', help='largest standard deviation of a Gaussian '
        'blur, in pixels (default: %(default)s)')
    add('--auto_augment', type=fraction, default=0.0, metavar='P', help="probability of changing an image by AutoAugment's "
        'policy for ImageNet (default: %(default)s)')


def _add_loss(add):
    add('--loss', default='batch_hard', choices=plugins.choices('losses'), help='metric loss, a file of losses/ '
        '(default: %(default)s)')
    add('--margin', type=margin, default='soft', metavar='M', needs=METRIC_LOSS, help='margin of the metric loss: a number, '
        'soft or none (default: %(default)s)')
    add('--metric', default='euclidean', choices=METRICS, help='distance of embeddings: in the metric loss, the logs, and '
        'by default in validation and search (default: %(default)s)')
    add('--metric_weight', type=non_negative_float, default=1.0, metavar='W', needs='--loss', help='weight of the metric '
        'loss; 0 disables it (default: %(default)s)')
    add('--xent_weight', type=non_negative_float, default=0.0, metavar='W', help='weight of the identity-classification '
        '(cross-entropy) loss; 0 disables it (default: %(default)s)')
    add('--label_smoothing', type=fraction, default=0.1, metavar='S', needs='--xent_weight', help='label smoothing of the '
        'cross-entropy (default: %(default)s)')
    add('--classifier', default='linear', choices=plugins.choices('classifiers'), needs='--xent_weight', help='classifier '
        'of the cross-entropy; all but linear use cosines with a margin (default: %(default)s)')
    add('--classifier_scale', type=positive_float, default=64.0, metavar='S', help='factor of the cosines of the '
        'classifier (default: %(default)s)', needs=f'--classifier {CLASSIFIERS_WITH_MARGIN}')
    add('--classifier_margin', type=non_negative_float, metavar='M', help='margin of the classifier (default: 0.35 for '
        'cosface and circle, 0.5 for arcface)', needs=f'--classifier {CLASSIFIERS_WITH_MARGIN}')
    add('--memory', type=memory_size, default=0, metavar='N', needs=METRIC_LOSS, help='compare anchors with the last N '
        'embeddings of earlier batches, too; 0 disables it (default: %(default)s)')
    add('--memory_start', type=non_negative_int, metavar='N', needs='--memory', help='iteration from which the memory is '
        'used; without pre-trained weights a late start is better (default: as soon as it is full)')
    add('--center_weight', type=non_negative_float, default=0.0, metavar='W', help='weight of the centre loss, the squared '
        'distance of embeddings to the centres of their identities; 0 disables it (default: %(default)s)')
    add('--center_learning_rate', type=positive_float, default=0.5, metavar='R', needs='--center_weight', help='learning '
        'rate of the centres (default: %(default)s)')


def _add_optimisation(add):
    add('--train_iterations', type=positive_int, default=25000, metavar='N', help='iterations of the run '
        '(default: %(default)s)')
    add('--learning_rate', type=positive_float, default=3e-4, metavar='R', help='learning rate before any decay '
        '(default: %(default)s)')
    add('--lr_schedule', default='exponential', choices=('exponential', 'step', 'cosine', 'constant'),
        needs={'step': '--lr_steps'}, help='decay of the learning rate: exponentially to a thousandth or along a cosine to '
        '0 at the end, by a factor at some iterations, or no decay (default: %(default)s)')
    add('--decay_start_iteration', type=int, default=15000, metavar='N', help='iteration at which the decay starts; -1: '
        'never (default: %(default)s)', needs='--lr_schedule exponential|cosine or --decay_beta1')
    add('--lr_steps', type=iterations, metavar='N,N,…', needs='--lr_schedule step', help='iterations at which the step '
        'schedule lowers the learning rate')
    add('--lr_step_factor', type=positive_float, default=0.1, metavar='F', needs='--lr_schedule step', help='factor by '
        'which the step schedule lowers the learning rate (default: %(default)s)')
    add('--warmup_iterations', type=non_negative_int, default=0, metavar='N', help='iterations over which the learning '
        'rate rises to its full value (default: %(default)s)')
    add('--optimizer', default='adam', choices=('adam', 'adamw', 'sgd'), needs={'adamw': '--weight_decay'},
        help='optimizer; adamw is Adam with decoupled weight decay (default: %(default)s)')
    add('--momentum', type=fraction, metavar='M', needs='--optimizer sgd', help='momentum of sgd (default: 0.9)')
    add('--nesterov', action='store_true', needs='--optimizer sgd', help="use Nesterov's momentum")
    add('--decay_beta1', type=fraction, metavar='B', needs='--optimizer adam|adamw', help="Adam's beta1 once the decay has "
        'started; the paper uses 0.5 (default: 0.9, as before the decay)')
    add('--weight_decay', type=non_negative_float, default=0.0, metavar='W', help="weight decay: added to the gradient as "
        "PyTorch's Adam and SGD do; with adamw decoupled, and only for kernels, not for norms, biases, positions and tokens "
        '(default: %(default)s)')
    add('--gradient_clip', type=positive_float, metavar='NORM', help='gradient clipping: scale gradients of a larger norm '
        'to this norm (default: off)')
    add('--freeze_body_iterations', type=non_negative_int, default=0, metavar='N', help='train only the head for the first '
        "N iterations; the body's batch norm is frozen, too (default: %(default)s)")
    add('--layer_decay', type=inner_fraction, metavar='F', help='layer-wise learning-rate decay: factor from each stage or '
        'block of the body to the one below it (default: off)')
    add('--head_learning_rate_factor', type=positive_float, default=1.0, metavar='F', help='learning-rate multiplier of '
        'head and classifier (default: %(default)s)')
    add('--ema', type=inner_fraction, metavar='D', help='decay of an exponential moving average (EMA) of the weights, which '
        'validation and embedding then use, e.g. 0.9998 (default: off)')


def _add_validation(add):
    add('--eval_frequency', type=non_negative_int, default=0, metavar='N', help='iterations between validations; the best '
        'of the validated checkpoints is noted in checkpoint-best; 0: never (default: %(default)s)',
        needs=('--eval_query', '--eval_gallery', '--eval_excluder'))
    add('--eval_query', nargs='+', metavar='CSV', needs='--eval_frequency', help='query images; with several sets, the best '
        'checkpoint has the highest mean mAP')
    add('--eval_gallery', nargs='+', metavar='CSV', needs='--eval_frequency', help='gallery images, one file per query '
        'file; tracklets are pooled where both files of a set name them')
    add('--eval_image_root', nargs='+', metavar='DIR', needs='--eval_frequency', help='image root of the validation sets; '
        'one for all, or one for each (default: the only training image root)')
    add('--eval_excluder', nargs='+', type=excluder, metavar='NAME', needs='--eval_frequency', help='excluder, as for '
        'evaluate.py; one for all sets, or one for each')
    add('--eval_metric', choices=METRICS, needs='--eval_frequency', help='distance of validation (default: --metric)')
    add('--eval_flip', action='store_true', needs='--eval_frequency', help='embed the mean of each image and its mirror '
        'image')


def _add_checkpoints(add):
    add('--checkpoint_frequency', type=non_negative_int, default=1000, metavar='N', help='iterations between checkpoints; '
        '0: only the final one (default: %(default)s); each validation writes one, too')
    add('--keep_checkpoints', type=non_negative_int, default=0, metavar='N', help='number of newest checkpoints to keep, in '
        'addition to the best one and the one from which the run was resumed; 0: all (default: %(default)s)')
    add('--log_frequency', type=positive_int, default=1, metavar='N', help='iterations between lines of the log; '
        'TensorBoard has every iteration (default: %(default)s)')
    add('--summary_frequency', type=positive_int, default=1, metavar='N', help='iterations between histograms in '
        'TensorBoard (default: %(default)s)')
    add('--detailed_logs', action='store_true', help='keep embeddings, losses and file ids of every batch as .npy files')


def _add_speed(add):
    add('--cache', default='none', metavar='{none,memory,DIR}', help='keep the decoded images of a small dataset in memory; '
        'with DIR also in a folder, for later runs (default: %(default)s)')
    add('--loading_threads', type=threads, default=8, metavar='N', help='images loaded in parallel (default: %(default)s)')
    add('--mixed_precision', choices=('none', 'bfloat16', 'float16'), default='none', help='compute the net in 16 bits; '
        'weights, distances, loss and embeddings stay float32 (default: %(default)s)')
    add('--tf32', action='store_true', help='let NVIDIA GPUs since Ampere round factors of float32 products to 10 bits: '
        'faster, with other numbers; embedding and validation stay float32')
    add('--recompute', action='store_true', help='keep fewer activations and recompute the others for the gradients: less '
        'memory, more time, the same numbers up to rounding')
    add('--jit_compile', action='store_true', help='compile the training step with XLA, for GPUs')
    add('--distribute', choices=('none', 'mirrored', 'multi_worker'), default='none', help='train on all GPUs of this '
        'host, or on the hosts in the environment variable TF_CONFIG (default: %(default)s)')
    add('--devices', type=threads, metavar='N', needs='--distribute mirrored', help='number of GPUs (default: all)')


def _add_more(add):
    add('--seed', type=non_negative_int, default=0, metavar='N', help='seed of initialisation, batches and augmentation '
        '(default: %(default)s)')
    add('--deterministic', action='store_true', help='use deterministic operations only: the same run twice gives the same '
        'bits, at some cost in speed')
    add('--skip_broken_images', action='store_true', help='check every image first, list unreadable ones in '
        'broken_images.csv and skip them')
    add('--allow_outside_root', action='store_true', help='also read images outside the image root')


# The groups of --help, each a function that adds its flags through `add_argument`.
GROUPS = {'required': _add_required, 'net': _add_net, 'batches': _add_batches,
          'augmentation': _add_augmentation, 'loss': _add_loss, 'optimisation': _add_optimisation,
          'validation while training': _add_validation, 'checkpoints and logs': _add_checkpoints, 'speed': _add_speed,
          'more': _add_more}


def make_parser():
    """Return the parser of train.py's command line."""
    parser = _TrainParser(
        description='Train an embedding with the triplet loss.',
        usage='%(prog)s --experiment_root DIR --train_set CSV --image_root DIR [more flags]\n'
              '       %(prog)s --experiment_root DIR --resume',
        example='python train.py --experiment_root runs/first --train_set data/folder_train.csv \\\n'
                '    --image_root products --model_name mnist --net_input_height 32 --net_input_width 32 \\\n'
                '    --crop_augment --batch_p 16 --train_iterations 600 --decay_start_iteration 300\n'
                'python train.py --experiment_root runs/first --resume')
    for title, add_flags in GROUPS.items():
        add_flags(parser.add_argument_group(title).add_argument)
    return parser


NET_OPTIONS = tuple(net_flags.options_of_nets())
# The flags that define a model and its images.
MODEL_ARGS = ('model_name', 'head_name', 'embedding_dim', 'net_input_height', 'net_input_width', 'resize', 'jpeg',
              *NET_OPTIONS)


def net_options(args):
    """Return the given options of the net, the keyword arguments of its `body`."""
    return {name: getattr(args, name) for name in NET_OPTIONS if getattr(args, name) is not None}


def complete(args, options):
    """Set the options of a net that were not given to the values that published weights need, {name: value}."""
    for name, value in options.items():
        if getattr(args, name) is None:
            setattr(args, name, value)

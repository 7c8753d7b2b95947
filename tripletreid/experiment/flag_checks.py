"""Check the flags of train.py against each other: combinations that cannot be trained, and combinations to warn of."""
from tripletreid.dataset import set_name
from tripletreid.experiment.arguments import as_list
from tripletreid.experiment.train_flags import pre_crop

MOST_IMAGES = 65536  # Largest batch: the distances of all its pairs take 17 GB.
LARGEST_PRE_CROP = 1.5  # Largest ratio of pre-crop size to net input without a warning; the original's recipes use 1.125.
LARGEST_INITIAL_FRACTION = 0.1  # Largest fraction of the initial weights in the final average without a warning.


def check(args, parser):
    """Check combinations of arguments; end through `parser.error` if the run cannot be trained.

    Returns: list of warnings, each a sentence. Flags that are ignored are set to their defaults.
    """
    if not args.train_set or not args.image_root:
        parser.error('--train_set and --image_root are needed, unless --resume loads them')
    warnings = parser.check_needs(args, _stored_given(args, parser) if args.resume else None, only_warn=args.resume)
    _check_batches(args, parser)
    has_metric_loss = args.loss != 'none' and args.metric_weight
    if not args.xent_weight and not has_metric_loss:
        parser.error('there is nothing to train with: neither a metric loss (--loss, --metric_weight) nor cross-entropy '
                     '(--xent_weight)')
    if 'metric' in parser.given and not has_metric_loss:
        warnings.append(f'--metric {args.metric} does not influence the training without a metric loss, only the logs, '
                        f'validation and search.')
    if args.nesterov and args.momentum == 0:
        parser.error('--nesterov has no effect with --momentum 0')
    if args.freeze_body_iterations >= args.train_iterations and (args.layer_decay or args.recompute):
        parser.error('--layer_decay and --recompute have no effect on a body that is frozen for the whole training '
                     '(--freeze_body_iterations)')
    _check_memory(args, parser)
    _check_validation(args, parser)
    if args.jit_compile and args.distribute != 'none':
        parser.error('--jit_compile is for a single device, i.e. --distribute none')
    if args.skip_broken_images and args.distribute == 'multi_worker':
        parser.error('--skip_broken_images is for one host; make a csv file without broken images first, with '
                     'make_dataset.py check')
    _check_crops(args, parser)
    return warnings


def _stored_given(args, parser):
    """Return the arguments of a resumed run that differ from their defaults, as `check_needs` takes them."""
    always_stored = ('pre_crop_height', 'pre_crop_width')
    return {name: 0 for name, value in vars(args).items()
            if name not in always_stored and value != parser.idle_value(args, name)}


def _check_batches(args, parser):
    if args.batch_k < 2:
        parser.error('--batch_k must be 2 or more: without a second image an anchor has no positive')
    if args.batch_p < 2:
        parser.error('--batch_p must be 2 or more: without a second identity an anchor has no negative')
    paths, roots = as_list(args.train_set), as_list(args.image_root)
    names = [set_name(path) for path in paths]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate:
        parser.error(f'two files of --train_set are called {duplicate}, which makes their identities ambiguous: rename '
                     f'one of the files')
    if len(roots) not in (1, len(paths)):
        parser.error(f'--image_root names {len(roots)} folders for {len(paths)} training set(s): give one for all, or one '
                     f'for each')
    if args.batch_per_set and len(paths) < 2:
        parser.error('--batch_per_set has no effect with a single training set')
    if args.batch_per_set and args.batch_p % len(paths):
        parser.error(f'--batch_per_set: --batch_p {args.batch_p} cannot be divided into {len(paths)} equal parts')
    batch_size = args.batch_p * args.batch_k * args.frames_per_tracklet
    if batch_size > MOST_IMAGES:
        parser.error(f'--batch_p, --batch_k and --frames_per_tracklet make batches of {batch_size} images; the limit is '
                     f'{MOST_IMAGES}')


def _check_memory(args, parser):
    filled = batches_in_memory(args)
    if args.memory_start is not None and args.memory_start < filled:
        parser.error(f'--memory_start {args.memory_start} is before the memory is full: {args.memory} embeddings are '
                     f'{filled} batches of {args.batch_p * args.batch_k} (--memory, --batch_p, --batch_k)')


def _check_validation(args, parser):
    if not args.eval_frequency:
        return
    if len(args.eval_query) != len(args.eval_gallery):
        parser.error(f'--eval_query names {len(args.eval_query)} csv file(s) and --eval_gallery '
                     f'{len(args.eval_gallery)}: give each query set its gallery')
    if len(args.eval_excluder) not in (1, len(args.eval_query)):
        parser.error(f'--eval_excluder names {len(args.eval_excluder)} for {len(args.eval_query)} validation set(s): '
                     f'give one for all, or one for each')
    if args.eval_image_root and len(args.eval_image_root) not in (1, len(args.eval_query)):
        parser.error(f'--eval_image_root names {len(args.eval_image_root)} folders for {len(args.eval_query)} '
                     f'validation set(s): give one for all, or one for each')
    if not args.eval_image_root and isinstance(args.image_root, list):
        parser.error('--image_root names several folders: say with --eval_image_root where the images of --eval_query '
                     'and --eval_gallery are, one for all sets or one for each')


def _check_crops(args, parser):
    if args.pad_crop and args.crop_augment:
        parser.error('--pad_crop and --crop_augment are two ways to crop at random: choose one of them')
    if args.pad_crop >= min(args.net_input_height, args.net_input_width):
        parser.error(f'--pad_crop {args.pad_crop} must be smaller than the net input ({args.net_input_height}x'
                     f'{args.net_input_width}), or some crops would show nothing of the image')
    crop_fits = args.net_input_height <= args.pre_crop_height and args.net_input_width <= args.pre_crop_width
    if args.crop_augment and not crop_fits:
        parser.error(f'with --crop_augment the net input ({args.net_input_height}x{args.net_input_width}) must not be '
                     f'larger than the pre-crop size ({args.pre_crop_height}x{args.pre_crop_width})')


def notices(args):
    """Return warnings about arguments that are valid, a list of sentences."""
    sentences = [sentence_of_small_crops(args)] if args.crop_augment else []
    decays = args.lr_schedule in ('exponential', 'cosine') or args.decay_beta1 is not None
    if decays and args.decay_start_iteration >= args.train_iterations:
        consequences = {'exponential': ['the learning rate will not fall'],
                        'cosine': ['--lr_schedule cosine has no effect']}.get(args.lr_schedule, [])
        consequences += [] if args.decay_beta1 is None else ['--decay_beta1 has no effect']
        sentences.append(f'The decay starts at iteration {args.decay_start_iteration}, after the end of the run at '
                         f'{args.train_iterations}: {" and ".join(consequences)} (--decay_start_iteration).')
    initial_fraction = (args.ema or 0) ** args.train_iterations
    if initial_fraction > LARGEST_INITIAL_FRACTION:
        sentences.append(f'At the end of the run the initial weights will make up {initial_fraction:.0%} of the averaged '
                         f'weights: --ema {args.ema} is for more than {args.train_iterations} iterations.')
    if args.memory and memory_start(args) >= args.train_iterations:
        sentences.append(f'The memory of {args.memory} embeddings is never used: the run ends at iteration '
                         f'{args.train_iterations} (--memory, --memory_start).')
    return [sentence for sentence in sentences if sentence]


def sentence_of_small_crops(args):
    """Return a warning if random crops show the net a small, magnified part of an image, else None."""
    height, width = args.net_input_height, args.net_input_width
    if args.pre_crop_height <= LARGEST_PRE_CROP * height and args.pre_crop_width <= LARGEST_PRE_CROP * width:
        return None
    return (f'Crops of {height}x{width} are a small part of images that are loaded at {args.pre_crop_height}x'
            f'{args.pre_crop_width}, so the net never sees a whole image. A ratio of 9/8 is usual, which is '
            f'{pre_crop(height)}x{pre_crop(width)} here (--pre_crop_height, --pre_crop_width).')


def batches_in_memory(args):
    """Return the number of batches that fill the memory."""
    return -(-args.memory // (args.batch_p * args.batch_k))


def memory_start(args):
    """Return the first iteration (0-based) whose loss uses the memory, which is full by then."""
    return batches_in_memory(args) if args.memory_start is None else args.memory_start

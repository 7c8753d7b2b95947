"""What a training step changes, and what a checkpoint holds of it: network, optimizer, loss scale, step."""
import keras
import tensorflow as tf

from tripletreid import plugins
from tripletreid.distribute import agreement
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints
from tripletreid.modeling import model, pretrained
from tripletreid.training import optimizer
from tripletreid.training.centers import Centers
from tripletreid.training.hard_identities import HardIdentities
from tripletreid.training.memory import Memory
from tripletreid.training.weight_average import WeightAverage


class TrainState:
    """Everything that training changes, under the names that it has in a checkpoint.

    Attributes:
        network: as `model.build` returns it, with a classifier where there is cross-entropy to train with.
        names: {TensorFlow 1 name: variable} of the network.
        trainable, trainable_head: those that are trained, and those of them that are not the body's.
        optimizer: as `optimizer.build` returns it. loss_scale: `optimizer.LossScale`.
        average: `WeightAverage`, or None without `--ema`.
        memory: `Memory`, or None without `--memory`.
        centers: `Centers`, or None without `--center_weight`.
        hard_identities: `HardIdentities`, or None with random ones.
        global_step: int64 variable, how many iterations are finished.
    """

    def __init__(self, args, num_identities, strategy):
        """Builds all of it for the arguments of `train.py`, on the devices of a `tf.distribute.Strategy`."""
        keras.utils.set_random_seed(args.seed)
        model.set_precision(args.mixed_precision)
        with strategy.scope():
            self.network = model.build_for(args)
            if args.xent_weight:
                self.network = model.with_classifier(self.network, num_identities, args.classifier)
        self.names = model.named_variables(self.network)
        of_body = model.named_variables(self.network.body)
        self.trainable = {name: variable for name, variable in self.names.items() if variable.trainable}
        self.trainable_head = {name: variable for name, variable in self.trainable.items() if name not in of_body}
        if args.head_learning_rate_factor != 1 and not self.trainable_head:
            raise InputError(f'--head_learning_rate_factor has no effect: the head {args.head_name} has nothing to train.')
        late = [name for name in self.trainable if name in of_body] if args.freeze_body_iterations else []
        stages = getattr(plugins.load('nets', args.model_name), 'STAGES', None) if args.layer_decay else None
        self.rate_factors = optimizer.rate_factors(args, self.trainable, of_body, stages)
        with strategy.scope():
            self.optimizer = optimizer.build(args, self.trainable, late, self.rate_factors)
            self.loss_scale = optimizer.LossScale(args.mixed_precision)
            self.average = WeightAverage(self.names, args.ema) if args.ema else None
            self.memory = Memory(args.memory, args.embedding_dim) if args.memory else None
            self.centers = None
            if args.center_weight:
                self.centers = Centers(num_identities, args.embedding_dim, args.center_learning_rate, args.seed)
        self.hard_identities = HardIdentities(num_identities, args, strategy) if args.sampler == 'hard_identity' else None
        # TensorFlow keeps int32 variables on the host, where a step that XLA compiled for a GPU cannot read them.
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._stored = {**self.names, **self.optimizer.variables, **self.loss_scale.variables,
                        **{name: variable for part in (self.average, self.memory, self.centers, self.hard_identities)
                           if part for name, variable in part.variables.items()}, 'global_step': self.global_step}

    @property
    def step(self):
        """How many iterations are finished, an int."""
        return int(self.global_step.numpy())

    def update(self, gradients, learning_rate, beta1):
        """One step of the optimizer, see `Adam.apply`, and of the average."""
        self.optimizer.apply(gradients, learning_rate, beta1)
        if self.average:
            self.average.update()

    def values(self):
        """What a checkpoint holds, {name: tensor}; with several workers all have to call this.

        Of variables that differ between replicas it is the mean over all workers, hence the sorted order. Its integers
        are int32, as the original's.
        """
        values = {name: tf.convert_to_tensor(self._stored[name]) for name in sorted(self._stored)}
        return {name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value for name, value in values.items()}

    def restore(self, args, strategy, log):
        """Set the weights to what they are at the start. Returns whether a run is resumed that has trained before.

        Raises:
            InputError: a checkpoint that does not fit, or is damaged.
        """
        # 1. Those of the newest whole checkpoint of the run to be resumed, unless it ended before it had written any.
        if agreement.any_worker(strategy, args.resume and checkpoints.were_written(args.experiment_root)):
            restored = checkpoints.load_newest(args.experiment_root, self._stored, log)
            log.info('Resuming from %s.', restored)
            return True
        # 2. Pre-trained ones in the body, fresh ones in the head.
        if args.initial_checkpoint:
            beside = pretrained.load_body(self.network, args.initial_checkpoint)
            log.info('Initialised the body from %s%s.', args.initial_checkpoint,
                     f', which also holds {pretrained.listed(beside)}: left there' if beside else '')
        # 3. Fresh ones.
        elif hasattr(plugins.load('nets', args.model_name), 'WEIGHTS'):
            small = [name for name in plugins.choices('nets') if not hasattr(plugins.load('nets', name), 'WEIGHTS')]
            log.warning('%s starts from random weights, from which it needs many images and iterations. Its pre-trained '
                        'weights are %s (--initial_checkpoint); small nets that are meant to start without: '
                        '--model_name %s.', args.model_name,
                        plugins.load('nets', args.model_name).WEIGHTS, ' or '.join([', '.join(small[:-1]), small[-1]]))
        if self.average:
            self.average.begin()
        return False

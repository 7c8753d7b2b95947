"""Everything that training changes and a checkpoint stores: network, optimizer, objectives, sampler, step."""
import dataclasses

import keras
import tensorflow as tf

from tripletreid import plugins
from tripletreid.distribute import agreement
from tripletreid.experiment import checkpoints
from tripletreid.modeling import model, pretrained
from tripletreid.training import identity_rows
from tripletreid.training.loss_scale import LossScale
from tripletreid.training.memory import Memory
from tripletreid.training.optimizer import Optimizer, build_optimizer
from tripletreid.training.weight_average import WeightAverage


@dataclasses.dataclass(frozen=True)
class TrainState:
    """The parts of a training; each one with state has `variables`, {name in a checkpoint: variable}.

    network: as `model.build` returns it, with the endpoints that the objectives add.
    optimizer: as `build_optimizer` returns it.
    loss_scale: `LossScale`.
    average: `WeightAverage`, or None without `--ema`.
    memory: `Memory`, or None without `--memory`.
    objectives: {name: objective}, the choices of objectives/ that have a weight.
    sampler: the choice of samplers/.
    global_step: int64 variable, the number of finished iterations.
    identity_names: the names of the training identities, a list; an identity's place is its number.
    """
    network: keras.Model
    optimizer: Optimizer
    loss_scale: LossScale
    average: WeightAverage | None
    memory: Memory | None
    objectives: dict
    sampler: object
    global_step: tf.Variable
    identity_names: list

    @property
    def step(self):
        """The number of finished iterations, an int."""
        return int(self.global_step.numpy())

    @property
    def variables(self):
        """All that a checkpoint stores, {name: variable}."""
        parts = (self.optimizer, self.loss_scale, self.average, self.memory, *self.objectives.values(), self.sampler)
        stored = {name: variable for part in parts if part for name, variable in part.variables.items()}
        return {**model.named_variables(self.network), **stored, 'global_step': self.global_step}

    @property
    def objective_endpoints(self):
        """Names of the network's endpoints that the objectives read."""
        return [name for objective in self.objectives.values() for name in objective.reads]

    def trained(self, body_is_frozen):
        """Return the variables that a step trains, {TensorFlow 1 name: variable}."""
        variables = self.optimizer.trainable_variables
        body_names = model.named_variables(self.network.body) if body_is_frozen else ()
        return {name: variable for name, variable in variables.items() if name not in body_names}

    def statistics(self, body_is_frozen):
        """Return the variables that a step moves without training them: the moving statistics of batch norm, a list."""
        body_names = model.named_variables(self.network.body) if body_is_frozen else ()
        return [variable for name, variable in model.named_variables(self.network).items()
                if not variable.trainable and 'float' in str(variable.dtype) and name not in body_names]

    def apply_gradients(self, gradients, gradient_norm, schedule, embs, pids):
        """Update everything that a step changes; weights and objectives only if float16 did not overflow.

        Args:
            gradients: {TensorFlow 1 name: gradient}.
            gradient_norm: their norm before they were clipped, float32 [].
            schedule: `Schedule` of the step.
            embs, pids: embeddings [B, D] and numbers of the identities [B] of the whole batch.

        Returns: the scale of this step's loss, float32 [].
        """
        def update():
            self.optimizer.apply(gradients, schedule.learning_rate, schedule.beta1)
            if self.average:
                self.average.update()
            for objective in self.objectives.values():
                objective.update(embs, pids)

        loss_scale = self.loss_scale.apply(gradient_norm, update)
        if self.memory:
            self.memory.remember(embs, pids)
        self.sampler.update(embs, pids)
        return loss_scale

    def values(self):
        """Return the content of a checkpoint, {name: tensor}; its integers are int32, as the original's.

        All replicas agree after a step, so the values of the first one count.
        """
        values = {name: tf.convert_to_tensor(_first_replica(variable)) for name, variable in self.variables.items()}
        values = {name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value for name, value in values.items()}
        return {**values, identity_rows.NAMES: tf.constant(self.identity_names)}


def _first_replica(variable):
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return getattr(value, 'values', (value,))[0]


def create(args, identities, strategy):
    """Create the state of a training, initialised by the seed.

    Args:
        args: of `train.py`.
        identities: `sampling.Identities` of the training set.
        strategy: the `tf.distribute.Strategy` on whose devices it lives.

    Raises:
        InputError: a flag that has no effect with this head, or that an objective or the optimizer cannot take.
    """
    keras.utils.set_random_seed(args.seed)
    model.set_precision(args.mixed_precision)
    with strategy.scope():
        network = model.build_for(args)
        objectives = {name: plugins.load('objectives', name).Objective(args, len(identities.names))
                      for name in chosen_objectives(args)}
        network = model.with_endpoints(network, [each.endpoints for each in objectives.values()])
        names = model.named_variables(network)
        trainable = {name: variable for name, variable in names.items() if variable.trainable}
        optimizer = build_optimizer(args, trainable, list(model.named_variables(network.body)))
        loss_scale = LossScale(args.mixed_precision)
        average = WeightAverage(names, args.ema) if args.ema else None
        memory = Memory(args.memory, args.embedding_dim) if args.memory else None
    sampler = plugins.load('samplers', args.sampler).Sampler(args, identities, strategy)
    # TensorFlow keeps int32 variables on the host, where a step that XLA compiled for a GPU cannot read them.
    global_step = tf.Variable(0, dtype=tf.int64, trainable=False)
    return TrainState(network, optimizer, loss_scale, average, memory, objectives, sampler, global_step,
                      [str(name) for name in identities.names])


def chosen_objectives(args):
    """Return the names of the objectives that have a weight, in the order of their flags."""
    flags = list(vars(args))
    names = [name for name in plugins.choices('objectives') if getattr(args, f'{name}_weight', 0)]
    return sorted(names, key=lambda name: flags.index(f'{name}_weight'))


def restore(state, args, strategy, log):
    """Set the weights that the training starts with. Returns whether it resumes a run that has trained before.

    Raises:
        InputError: a checkpoint that does not fit, or is damaged.
    """
    if state.average:
        state.average.begin()
    # 1. The weights of the newest complete checkpoint, if a run is resumed that has written one.
    if agreement.any_worker(strategy, args.resume and checkpoints.were_written(args.experiment_root)):
        restored = checkpoints.load_newest(args.experiment_root, lambda path: identity_rows.load(state, path, log), log)
        log.info('Resuming from %s.', restored)
        return True
    # 2. Pre-trained weights in the body, and with --initial_head in the head.
    if args.initial_checkpoint:
        load = pretrained.load_body_and_head if args.initial_head else pretrained.load_body
        ignored = load(state.network, args.initial_checkpoint)
        log.info('Initialised %s from %s%s.', 'body and head' if args.initial_head else 'the body', args.initial_checkpoint,
                 f', ignoring its {pretrained.listed(ignored)}' if ignored else '')
    # 3. Fresh weights.
    elif hasattr(plugins.load('nets', args.model_name), 'WEIGHTS'):
        small = [name for name in plugins.choices('nets') if not hasattr(plugins.load('nets', name), 'WEIGHTS')]
        log.warning('%s starts from random weights, from which it needs many images and iterations. Its pre-trained '
                    'weights are %s (--initial_checkpoint); small nets that are meant to start without: '
                    '--model_name %s.', args.model_name,
                    plugins.load('nets', args.model_name).WEIGHTS, ' or '.join([', '.join(small[:-1]), small[-1]]))
    if state.average:
        state.average.begin()
    return False

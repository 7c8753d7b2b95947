"""Facts of a training run that embedding files and search indexes record, because embeddings or distances depend on them."""
from tripletreid.experiment import train_flags

FLAGS_IN_NET = ('last_stride', 'pooling')  # Flags of a net that are recorded without their names.


def making(trained, view):
    """Return the facts of a run that embeddings depend on, in addition to its checkpoint and the flags of embed.py.

    Args:
        trained: arguments of the training.
        view: `inference_flags.View`.

    Returns: a JSON-serialisable dict, as `differences.differences` compares it.
    """
    options = [f'{name}={value}' for name, value in train_flags.net_options(trained).items()
               if name not in (*FLAGS_IN_NET, 'drop_path')]
    return {'net': [trained.model_name, trained.head_name, *(getattr(trained, name) for name in FLAGS_IN_NET), *options],
            'sizes': [*view.load, *view.net], **view.pixels._asdict()}


def run_metric(trained):
    """Return the distance of a run: the metric of its validation, or of its training where that is not set."""
    return trained.eval_metric or trained.metric

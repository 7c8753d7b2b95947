"""An embedding file of a dataset, or of a part of it: images are embedded and written as they come.

Here or by a worker of a Dask cluster, which has all that it needs in a `Job`. TensorFlow is imported when there is work.
"""
import argparse
import dataclasses
import os
import threading

from tripletreid import quiet, signals
from tripletreid.dataset_parts import Part
from tripletreid.embeddings.writer import EmbeddingWriter, FileContent
from tripletreid.image_root import check_files
from tripletreid.modeling.inference_flags import View


@dataclasses.dataclass(frozen=True)
class Job:
    """The common settings of the embedding files of a dataset.

    args: of embed.py.
    experiment_root, checkpoint, image_root: where the model and the images are.
    embedding_dim, view: of the model.
    variant_names: of the test-time augmentation, see `augmentation.variant_names`.
    parameters, traces: the parameters and the provenance of the files, see `FileContent`.
    """
    args: argparse.Namespace
    experiment_root: str
    checkpoint: str
    image_root: str
    embedding_dim: int
    view: View
    variant_names: list
    parameters: dict
    traces: dict

    def content(self, part):
        """Return the `FileContent` of the file of a `Dataset`, or of a `dataset.Part`."""
        part = part.load() if isinstance(part, Part) else part
        pooled = bool(self.args.pool_tracklets)
        return FileContent(part.first_frames() if pooled else part, self.embedding_dim, self.parameters,
                           self.variant_names, self.traces, pooled)

    def network(self):
        """Return the model with its weights; call it in the scope of a strategy."""
        from tripletreid.modeling import exported_model, inference, model
        if self.args.exported:
            settings = {name: getattr(self.args, name) for name in exported_model.SETTINGS}
            return exported_model.ExportedModel(self.args.exported, settings)
        model.set_precision(self.args.mixed_precision)
        checkpoint = self.args.checkpoint or os.path.basename(self.checkpoint)
        return inference.from_experiment(self.experiment_root, checkpoint, self.view.net, self.args.weights)[0]


def write(job, path, part, network, strategy=None, progress=lambda rows: None):
    """Write an embedding file; after an interruption --resume continues after its last row.

    Args:
        job: the `Job`.
        path: of the `.h5` file.
        part: the `Dataset` of its images.
        network: as the job gives it.
        strategy: the `tf.distribute.Strategy` in whose scope the network was built; None: there is one device.
        progress: function that is called with the number of rows that have become done.

    Returns: how many rows the file has.
    """
    from tripletreid.modeling import inference
    args = job.args
    with EmbeddingWriter(path, job.content(part), args.resume) as writer:
        if args.resume and not args.quiet and (writer.rows_done or not args.shards):
            print(f'Resuming after {writer.rows_done} existing rows.')
        progress(writer.rows_done)
        with signals.undone(lambda: _report_kept_rows(writer)):
            rows = inference.embed_rows(
                network, part, job.image_root, job.view, args.aggregator, bool(args.pool_tracklets), writer.rows_done,
                batch_size=args.batch_size, loading_threads=args.loading_threads, strategy=strategy)
            for embs in rows:
                writer.append(embs[0], embs[1:])
                progress(embs.shape[1])
        return len(writer)


def _report_kept_rows(writer):
    """Report the kept rows of an embedding that a signal ends; not by `print`, in which the signal may have arrived."""
    if writer.rows_done:
        os.write(2, f'\nInterrupted. {writer.rows_done} of {len(writer)} rows are kept: continue with --resume.\n'.encode())


# --- On a worker of a cluster -----------------------------------------------------------------------------------------

_one_at_a_time = threading.Lock()  # A worker with several threads has one model and one device.
_last = None  # The last job with its network: a worker gets all tasks of a job in a row.


def write_by_worker(job, task):
    """Call `write` for a task (path, `Dataset` or `dataset.Part`). The model is loaded once for all tasks of a job."""
    global _last
    with _one_at_a_time:
        with quiet.tensorflow_import():
            import tensorflow as tf  # noqa: F401
        if _last is None or _last[0] != job:
            _last = job, job.network()
        path, part = task
        if isinstance(part, Part):
            part = part.load()
            check_files(part, job.image_root, job.args.allow_outside_root)
        return write(job, path, part, _last[1])

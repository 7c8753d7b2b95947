"""TensorBoard's event files after a kill between a validation and its event, and after the clock was set back."""
import logging

import numpy as np

from _runs import curves
from tripletreid.experiment import best_checkpoint, event_files, train_flags
from tripletreid.training.reporter import Reporter


def test_a_noted_validation_without_an_event_is_written_by_the_next_start(tmp_path):
    args = train_flags.make_parser().parse_args(['--experiment_root', str(tmp_path)])
    scores = {'mAP': 0.25, 'top1': 0.5, 'embed_flags': ''}
    best_checkpoint.note(str(tmp_path), 4, {**scores, 'sets': {'a': scores, 'b': scores}})
    for _ in range(2):  # The second start finds the event.
        Reporter(args, logging.getLogger('events'), 4, np.array(['a']), np.zeros(1, np.int32)).close()
    found = curves(tmp_path)
    assert found == {tag: [(4, np.float32(value).tobytes())] for name in ('', '/a', '/b')
                     for tag, value in ((f'validation_mAP{name}', 0.25), (f'validation_top1{name}', 0.5))}
    assert event_files.read_scalars(str(tmp_path))['validation_mAP/b'] == {4: 0.25}


def test_curves_are_complete_after_the_clock_was_set_back(tmp_path, monkeypatch):
    for first_step, seconds in ((0, 2e9), (3, 1e9), (5, 1e9)):
        monkeypatch.setattr(event_files.time, 'time', lambda seconds=seconds: seconds)
        assert event_files.forget_events_after(str(tmp_path), first_step) == set()
        board = event_files.TensorBoard(str(tmp_path), first_step)
        for step in range(first_step, first_step + 4):
            board.write(step + 1, {'loss': float(first_step)}, {})
        board.close()
    expected = {1: 0.0, 2: 0.0, 3: 0.0, 4: 3.0, 5: 3.0, 6: 5.0, 7: 5.0, 8: 5.0, 9: 5.0}
    assert event_files.read_scalars(str(tmp_path))['loss'] == expected
    shown = [(step, np.frombuffer(value, np.float32).item()) for step, value in curves(tmp_path)['loss']]
    assert shown == [*expected.items()]

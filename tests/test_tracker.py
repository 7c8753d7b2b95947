"""The example tracker: a drawn sequence through a model of one operation, and scores derived by hand."""
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image, ImageDraw

from conftest import ROOT

SCRIPT = ROOT / 'examples' / 'tracker' / 'track.py'
COLOURS = {1: (220, 40, 40), 2: (40, 60, 220), 3: (40, 180, 60)}
FRAMES = 24


def place(person, frame):
    """Left edge of a person: the first two walk towards each other and cross, the third stands and is hidden for a while."""
    return {1: 10 + 8 * frame, 2: 202 - 8 * frame, 3: 100}[person]


@pytest.fixture(scope='module')
def sequence(tmp_path_factory):
    """Write frames, detections and true tracks of three persons in MOTChallenge's layout."""
    folder = tmp_path_factory.mktemp('sequence')
    for name in ('img1', 'det', 'gt'):
        (folder / name).mkdir()
    detections, true = [], []
    for frame in range(1, FRAMES + 1):
        image = Image.new('RGB', (240, 160), (128, 128, 128))
        for person, colour in COLOURS.items():
            if person == 3 and 8 <= frame < 16:
                continue
            left, top = place(person, frame), {1: 60, 2: 85, 3: 5}[person]  # Person 2 hides a part of person 1.
            ImageDraw.Draw(image).rectangle([left, top, left + 19, top + 39], colour)
            true.append(f'{frame},{person},{left},{top},20,40,1,1,1')
            detections.append(f'{frame},-1,{left + 1},{top},20,40,0.9')
        image.save(folder / 'img1' / f'{frame:06}.jpg', quality=95)
    (folder / 'det' / 'det.txt').write_text('\n'.join(reversed(detections)))
    (folder / 'gt' / 'gt.txt').write_text('\n'.join(true))
    return folder


def write_model(path, shape, axes, inputs=1, metric=None):
    """Write an ONNX file whose embedding is the mean colour of an image."""
    given = [helper.make_tensor_value_info(f'images{number or ""}', TensorProto.FLOAT, shape) for number in range(inputs)]
    result = helper.make_tensor_value_info('embeddings', TensorProto.FLOAT, ['batch', 3])
    node = helper.make_node('ReduceMean', ['images'], ['embeddings'], axes=axes, keepdims=0)
    model = helper.make_model(helper.make_graph([node], 'colour', given, [result]),
                              opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
    if metric:
        helper.set_model_props(model, {'model_card': json.dumps({'metric': metric})})
    onnx.save(model, path)


def track(sequence, model, out, *more):
    return subprocess.run([sys.executable, SCRIPT, sequence, '--model', model, '--out', out, *more], capture_output=True,
                          text=True, timeout=120)


@pytest.mark.parametrize('shape, axes, distance', [
    (['batch', 32, 16, 3], [1, 2], '0.2'), (['batch', 3, 32, 16], [2, 3], '0.6'), ([2, 32, 16, 3], [1, 2], '0.2')])
def test_persons_that_cross_or_are_hidden_keep_their_tracks(tmp_path, sequence, shape, axes, distance):
    write_model(tmp_path / 'model.onnx', shape, axes)
    done = track(sequence, tmp_path / 'model.onnx', tmp_path / 'out.txt', '--max_distance', distance, '--score',
                 sequence / 'gt' / 'gt.txt')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'identity switches: 0 | IDF1: 100.00% | association accuracy: 100.00%'
    rows = np.loadtxt(tmp_path / 'out.txt', delimiter=',')
    assert rows.shape == (3 * FRAMES - 8, 10) and set(rows[:, 1]) == {1, 2, 3}
    assert len({(frame, number) for frame, number in rows[:, :2]}) == len(rows), 'two boxes of a frame are one track'


def test_a_hidden_person_gets_a_new_track_after_max_age(tmp_path, sequence):
    write_model(tmp_path / 'model.onnx', ['batch', 32, 16, 3], [1, 2], metric='euclidean')
    done = track(sequence, tmp_path / 'model.onnx', tmp_path / 'out.txt', '--max_distance', '0.1', '--max_age', '5',
                 '--score', sequence / 'gt' / 'gt.txt')
    # Person 3 has 16 boxes, of which 7 come before the gap and 9 after it. 64 boxes in all, on both sides.
    expected = f'identity switches: 1 | IDF1: {(48 + 9) / 64:.2%} | association accuracy: ' \
               f'{(48 + 7 * 7 / 16 + 9 * 9 / 16) / 64:.2%}'
    assert done.stdout.splitlines()[-1] == expected
    assert 'its model card has the metric euclidean: take --max_distance from' in done.stderr


def test_bad_input_is_one_sentence(tmp_path, sequence):
    model, out = tmp_path / 'model.onnx', tmp_path / 'out.txt'
    write_model(model, ['batch', 32, 16, 3], [1, 2])
    (tmp_path / 'outside.txt').write_text('1,-1,500,500,20,40,1\n1,-1,-9,60,20,40,1\n')
    done = track(sequence, model, out, '--detections', tmp_path / 'outside.txt')
    assert done.returncode == 0 and '1 boxes lie outside' in done.stderr and len(out.read_text().splitlines()) == 1
    (tmp_path / 'text.txt').write_text('frame,id,left\n')
    (tmp_path / 'low.txt').write_text('1,-1,50,50,20,40,0.1\n')
    write_model(tmp_path / 'two.onnx', ['batch', 32, 16, 3], [1, 2], inputs=2)
    write_model(tmp_path / 'any.onnx', ['batch', 'height', 'width', 3], [1, 2])
    for arguments, part in (((model, '--detections', tmp_path / 'text.txt'), 'line 1'),
                            ((model, '--detections', tmp_path / 'low.txt'), '--min_confidence'),
                            ((model, '--detections', tmp_path / 'none.txt'), 'none.txt'),
                            ((tmp_path / 'text.txt',), 'onnxruntime does not load'),
                            ((tmp_path / 'none.onnx',), 'onnxruntime does not load'),
                            ((tmp_path / 'two.onnx',), '2 inputs'), ((tmp_path / 'any.onnx',), '--any_size')):
        done = track(sequence, arguments[0], out, *arguments[1:])
        assert done.returncode == 1 and part in done.stderr and 'Traceback' not in done.stderr, done.stderr

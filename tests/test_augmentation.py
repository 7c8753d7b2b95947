"""Test augmentations against Pillow, SciPy or a plain loop, eagerly and inside tf.data."""
import ast
import colorsys
import inspect
import json
import math
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from _runs import Run, ended_in_one_sentence
from conftest import assert_one_sentence, run_script
from tripletreid.experiment import arguments, flag_checks, train_flags
from tripletreid.input_pipeline import augmentation, auto_augment

SEED = (3, 4)
DRAWS = types.SimpleNamespace(seed=lambda stream: SEED)  # The draws of an augmentation that is tested alone.


def args_of(*flags):
    return train_flags.make_parser().parse_args([
        '--experiment_root', 'none', '--net_input_height', '24', '--net_input_width', '16', *flags])


@pytest.fixture(scope='module')
def photo():
    """Smooth colours with some noise and a bright corner, whole numbers, uint8 [24, 16, 3]."""
    random = np.random.default_rng(0)
    coarse = random.uniform(20, 200, (6, 4, 3))
    fine = ndimage.zoom(coarse, (4, 4, 1), order=1) + random.normal(0, 6, (24, 16, 3))
    fine[:5, :5] += 80
    return np.clip(fine, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def drawing():
    """Black strokes on a white ground, uint8 [24, 16, 3]."""
    pixels = np.full((24, 16, 3), 255, np.uint8)
    pixels[4:20, 7:9] = pixels[10:12, 3:13] = 0
    return pixels


def drawn(count, low=-1.0):
    return tf.random.stateless_uniform([count], SEED, low).numpy().astype(float)


# --- Positions --------------------------------------------------------------------------------------------------------

def sampled(image, y, x):
    """The bilinear value of an image at a place, the nearest one of the border where that is outside."""
    height, width = image.shape[:2]

    def pixel(row, column):
        return image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]

    top, left = math.floor(y), math.floor(x)
    dy, dx = y - top, x - left
    return ((1 - dy) * ((1 - dx) * pixel(top, left) + dx * pixel(top, left + 1))
            + dy * ((1 - dx) * pixel(top + 1, left) + dx * pixel(top + 1, left + 1)))


@pytest.mark.parametrize('rotate, shear, scale', [(90, 0, 0), (0, 40, 0), (0, 0, 0.5), (30, 20, 0.2)])
def test_transform_is_one_resampling_about_the_centre(photo, rotate, shear, scale):
    turned, slanted, sized = drawn(3) * (rotate, shear, scale)
    angle = math.radians(turned)
    # From the image to the result: scaled, sheared along its rows, turned.
    forward = (np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
               @ np.array([[1, -math.tan(math.radians(slanted))], [0, 1]]) * (1 + sized))
    backward = np.linalg.inv(forward)
    expected = np.empty(photo.shape)
    for y in range(24):
        for x in range(16):
            source_x, source_y = backward @ (x - 7.5, y - 11.5) + (7.5, 11.5)
            expected[y, x] = sampled(photo.astype(float), source_y, source_x)
    args = types.SimpleNamespace(rotate=rotate, shear=shear, scale=scale)
    found = augmentation.transform(tf.constant(photo, tf.float32), DRAWS, args)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_padding_is_black_and_every_crop_of_it_is_as_likely(photo):
    padded = np.pad(photo, [(3, 3), (3, 3), (0, 0)]).astype(np.float32)
    crops = {padded[top:top + 24, left:left + 16].tobytes(): (top, left) for top in range(7) for left in range(7)}
    args = args_of('--pad_crop', '3')
    augment = tf.function(lambda slot: augmentation.augment(tf.constant(photo, tf.float32), 1, 2, slot, args))
    found = [crops[augment(tf.constant(slot)).numpy().tobytes()] for slot in range(250)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 49
    assert ((counts - 250 / 49) ** 2 / (250 / 49)).sum() < 93  # Chi-square of 48 degrees: beyond in one of 10,000 seeds.


# --- Colours ----------------------------------------------------------------------------------------------------------

def jittered(image, factors, turn):
    """Pixel by pixel: brightness, contrast, saturation, and the hue by the standard library."""
    def grey(pixel):
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    bright = np.clip(image * factors[0], 0, 255)
    mean = np.mean([grey(pixel) for row in bright for pixel in row])
    contrasted = np.clip(mean + factors[1] * (bright - mean), 0, 255)
    out = np.empty(image.shape)
    for index in np.ndindex(image.shape[:2]):
        own = grey(contrasted[index])
        pixel = np.clip(own + factors[2] * (contrasted[index] - own), 0, 255)
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
        out[index] = 255 * np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    return out


@pytest.mark.parametrize('strengths', [(0.4, 0, 0, 0), (0, 0.6, 0, 0), (0, 0, 1.5, 0), (0, 0, 0, 0.5),
                                       (0.2, 0.3, 0.4, 0.1)])
def test_colour_jitter(photo, drawing, strengths):
    at = (drawn(4) + 1) / 2
    factors = [max(0, 1 - each) + (1 + each - max(0, 1 - each)) * where for each, where in zip(strengths[:3], at)]
    for image in (photo.astype(float), drawing.astype(float)):
        args = types.SimpleNamespace(color_jitter=','.join(map(str, strengths)))
        found = augmentation.jitter(tf.constant(image, tf.float32), DRAWS, args)
        expected = jittered(image, factors, strengths[3] * (2 * at[3] - 1))
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_grey_has_the_luma_of_the_image(photo):
    found = augmentation.augment(tf.constant(photo, tf.float32), 0, 0, 0, args_of('--random_gray', '1')).numpy()
    np.testing.assert_allclose(found, np.repeat(photo @ [[0.299], [0.587], [0.114]], 3, axis=2), atol=1e-3)
    # Pillow rounds.
    np.testing.assert_allclose(found[:, :, 0], Image.fromarray(photo).convert('L'), atol=0.51)


@pytest.mark.parametrize('largest', (0.5, 3.0, 20.0))
def test_blur_is_scipys(photo, largest):
    deviation = float(tf.random.stateless_uniform([], SEED, 0.0, largest))
    expected = photo.astype(float)
    for axis in (0, 1):
        expected = ndimage.gaussian_filter1d(expected, deviation, axis, mode='nearest', radius=math.ceil(3 * largest))
    found = augmentation.blur(tf.constant(photo, tf.float32), DRAWS, types.SimpleNamespace(blur=largest))
    np.testing.assert_allclose(found, expected, atol=0.01)


# --- AutoAugment ------------------------------------------------------------------------------------------------------

def pillows(name, magnitude, sign, image):
    """Return the image that Pillow makes by an operation of AutoAugment."""
    enhanced = {'color': ImageEnhance.Color, 'contrast': ImageEnhance.Contrast, 'sharpness': ImageEnhance.Sharpness}
    grey, shift = (128, 128, 128), sign * magnitude * 0.03
    operations = {
        'rotate': lambda: image.rotate(sign * magnitude * 3, Image.BILINEAR, fillcolor=grey),
        'shear_x': lambda: image.transform(image.size, Image.AFFINE, (1, shift, 0, 0, 1, 0), Image.BILINEAR,
                                           fillcolor=grey),
        'posterize': lambda: ImageOps.posterize(image, int(magnitude * 0.4) + 4),
        'solarize': lambda: ImageOps.solarize(image, int(magnitude * 25.6)),
        'invert': lambda: ImageOps.invert(image),
        'equalize': lambda: ImageOps.equalize(image),
        'auto_contrast': lambda: ImageOps.autocontrast(image)}
    return operations[name]() if name in operations else enhanced[name](image).enhance(0.1 + 0.18 * magnitude)


@pytest.mark.parametrize('name', auto_augment.OPERATIONS)
def test_operation_of_auto_augment_is_pillows(photo, drawing, name):
    operation = tf.function(auto_augment.OPERATIONS[name])
    narrow = (photo // 4 + 90).astype(np.uint8)
    even = np.full((24, 16, 3), 77, np.uint8)
    for pixels in (photo, drawing, narrow, even):
        for magnitude in range(10):
            sign = 1.0 if magnitude % 2 else -1.0
            expected = np.asarray(pillows(name, magnitude, sign, Image.fromarray(pixels)), float)
            found = operation(tf.constant(pixels, tf.float32), tf.constant(float(magnitude)), tf.constant(sign)).numpy()
            assert np.array_equal(found, found.round()) and found.min() >= 0 and found.max() <= 255
            if name in ('rotate', 'shear_x'):
                # Pillow does not blend the image's border with the outside.
                inside = np.asarray(pillows(name, magnitude, sign, Image.new('RGB', (16, 24), 'white'))) == 255
                inside = ndimage.binary_erosion(inside[:, :, 0], iterations=2)
                assert inside.sum() > 90
                np.testing.assert_allclose(found[inside], expected[inside], atol=1)
                outside = ndimage.binary_erosion(~np.isin(expected, expected[inside]).any(axis=2), iterations=2)
                assert (found[outside] == 128).all()
            else:
                np.testing.assert_array_equal(found, expected, err_msg=f'{name} {magnitude}')


def test_policy_is_followed(photo):
    """Each result is one of the images that Pillow makes by the policy, and each of these images occurs."""
    positions = ('rotate', 'shear_x')
    made = {}
    for number, pair in enumerate(auto_augment.POLICY):
        for first in (True, False):
            for second in (True, False):
                done = [each for each, is_done in zip(pair, (first, second)) if is_done]
                impossible = any(is_done and not each[1] or not is_done and each[1] == 1
                                 for each, is_done in zip(pair, (first, second)))
                if not impossible and not any(name in positions for name, _, _ in done):
                    image = Image.fromarray(photo)
                    for name, _, magnitude in done:
                        image = pillows(name, magnitude, 1, image)
                    made.setdefault(np.asarray(image).tobytes(), set()).add(number)
    augment = tf.function(lambda seed: auto_augment.auto_augment(tf.constant(photo, tf.float32) + 0.3, seed))
    found = [made.get(augment(tf.constant([number, 1])).numpy().astype(np.uint8).tobytes()) for number in range(150)]
    unmoved = [each for each in found if each]
    # Seven of the 25 sub-policies move pixels, with probabilities of 4.2 together: 0.832 of 150 are not, +- 4 deviations.
    assert 106 < len(unmoved) < 144
    assert set().union(*unmoved) == set(range(25))


# --- Together ---------------------------------------------------------------------------------------------------------

EVERYTHING = ['--flip_augment', '--pad_crop', '3', '--rotate', '10', '--shear', '5', '--scale', '0.1', '--color_jitter',
              '0.2,0.2,0.2,0.1', '--random_gray', '0.5', '--blur', '1', '--auto_augment', '0.5', '--random_erasing', '0.5']


def test_all_together_are_a_function_of_seed_step_and_slot(photo, drawing):
    args = args_of(*EVERYTHING)
    images = tf.constant(np.stack([photo, drawing]), tf.float32)
    in_pipeline = np.stack(list(tf.data.Dataset.range(24).map(tf.autograph.experimental.do_not_convert(
        lambda slot: augmentation.augment(images[slot % 2], 5, 6, slot, args)))))
    assert in_pipeline.shape == (24, 24, 16, 3) and in_pipeline.min() >= -1e-3 and in_pipeline.max() < 255.001
    assert len({each.tobytes() for each in in_pipeline}) > 20  # Solarised, a drawing is all black.
    np.testing.assert_allclose(augmentation.augment(images[1], 5, 6, 7, args), in_pipeline[7], atol=1e-3)
    assert not np.array_equal(augmentation.augment(images[1], 5, 7, 7, args), in_pipeline[7])


def test_the_random_numbers_of_one_do_not_depend_on_the_others(photo):
    """The first flips and crops do not change, and no flag changes the random numbers of another one."""
    image = tf.constant(photo, tf.float32)
    plain = args_of('--flip_augment', '--pad_crop', '3')
    grey = args_of('--flip_augment', '--pad_crop', '3', '--random_gray', '1')
    for slot in range(6):
        moved = augmentation.augment(image, 1, 2, slot, plain)
        np.testing.assert_allclose(augmentation.augment(image, 1, 2, slot, grey),
                                   tf.tile(augmentation.gray(moved), [1, 1, 3]), atol=1e-3)
    assert np.array_equal(augmentation.augment(image, 1, 2, 0, args_of()), image)


def test_picture_of_what_a_run_sees(photo, drawing, tmp_path):
    import argparse

    from tripletreid.visualization import augmentation_plot
    for name, pixels in (('photo', photo), ('drawing', drawing)):
        Image.fromarray(pixels).save(tmp_path / f'{name}.png')
    (tmp_path / 'two.csv').write_text('a,photo.png\nb,drawing.png\n')
    flags = ['--experiment_root', str(tmp_path / 'run'), '--train_set', str(tmp_path / 'two.csv'), '--image_root',
             str(tmp_path), '--net_input_height', '24', '--net_input_width', '16', '--pad_crop', '2', '--flip_augment']
    args = train_flags.make_parser().parse_args(flags)
    drawn = augmentation_plot.drawn_images([str(tmp_path / f'{name}.png') for name in ('photo', 'drawing')], args, 8, 0)
    assert drawn.shape == (2, 9, 24, 16, 3)
    for variants, pixels in zip(drawn, (photo, drawing)):
        assert np.array_equal(variants[0], pixels)
        padded = np.pad(pixels, [(2, 2), (2, 2), (0, 0)])
        crops = [padded[top:top + 24, left:left + 16] for top in range(5) for left in range(5)]
        seen = {crop[:, ::way].tobytes() for crop in crops for way in (1, -1)}
        assert {each.tobytes() for each in variants[1:]} <= seen and len({each.tobytes() for each in variants}) > 4

    (tmp_path / 'run').mkdir()
    arguments.save(argparse.Namespace(**vars(args)))
    run = Run('visualize.py', 'augmentation', tmp_path / 'run')
    assert run.wait() == 0 and '2 images, each 8 times with --flip_augment --pad_crop 2: ' in run.output, run.output
    assert Image.open(tmp_path / 'run' / 'augmentation.png').width > 1000
    stored = json.loads((tmp_path / 'run' / 'args.json').read_text())
    stored['train_set'] = [stored['train_set'], str(tmp_path / 'other.csv')]
    (tmp_path / 'run' / 'args.json').write_text(json.dumps(stored))
    (tmp_path / 'other.csv').write_text('a,photo.png\n')
    run = Run('visualize.py', 'augmentation', tmp_path / 'run', '--image_root', tmp_path, tmp_path)
    assert run.wait() == 0 and '3 images' in run.output, run.output
    three = Run('visualize.py', 'augmentation', tmp_path / 'run', '--image_root', tmp_path, tmp_path, tmp_path)
    ended_in_one_sentence(three, '3 folders for 2 training set(s)')
    (tmp_path / 'drawing.png').write_bytes(b'no picture')
    ended_in_one_sentence(Run('visualize.py', 'augmentation', tmp_path / 'run'), 'drawing.png')
    ended_in_one_sentence(Run('visualize.py', 'augmentation', tmp_path / 'nowhere'), 'nowhere')


@pytest.mark.parametrize('flags, parts', [
    (['--rotate', '181'], ['--rotate', '181', '180']), (['--shear', '-1'], ['--shear', '-1', '60']),
    (['--scale', '1'], ['--scale', '0.9']), (['--scale', 'nan'], ['--scale', 'nan']),
    (['--random_gray', '1.5'], ['--random_gray', '1.5']), (['--blur', '21'], ['--blur', '20']),
    (['--auto_augment', '-0.1'], ['--auto_augment', '-0.1']), (['--pad_crop', '-1'], ['--pad_crop', '-1']),
    (['--color_jitter', '0.1,0.1'], ['--color_jitter', 'four numbers']),
    (['--color_jitter', '0,0,0,0.6'], ['--color_jitter', '0.5']),
    (['--color_jitter', '0,0,0,0'], ['--color_jitter', 'changes nothing']),
    (['--pad_crop', '10', '--crop_augment'], ['--pad_crop', '--crop_augment']),
    (['--pad_crop', '128'], ['--pad_crop 128', '256x128'])])
def test_flags_out_of_range(flags, parts, tmp_path):
    parser = train_flags.make_parser()
    errors = []

    def refuse(message):
        errors.append(message)
        raise SystemExit(2)

    parser.error = refuse
    with pytest.raises(SystemExit):
        flag_checks.check(parser.parse_args(['--experiment_root', 'never', '--train_set', 'a.csv', '--image_root', '.',
                                           *flags]), parser)
    assert all(part in errors[0] for part in parts), errors


def test_an_error_on_the_command_line_is_one_sentence():
    process = run_script('train.py', '--experiment_root', 'never', '--train_set', 'a.csv', '--image_root', '.',
                         '--pad_crop', 10, '--crop_augment')
    assert_one_sentence(process, '--pad_crop', status=2)


@pytest.mark.parametrize('change', augmentation.AUGMENTATIONS, ids=lambda change: change.__name__)
def test_an_augmentation_that_is_off_changes_nothing(change, photo):
    image = tf.constant(photo, tf.float32)
    assert change(image, augmentation.Draws(tf.constant(SEED)), args_of()) is image


def test_every_augmentation_draws_from_streams_of_its_own():
    function_of_stream = {}
    for function in ast.parse(inspect.getsource(augmentation)).body:
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ('draws.seed', 'draws.sometimes'):
                stream = ast.literal_eval(call.args[0])
                assert function_of_stream.setdefault(stream, function.name) == function.name, stream
    assert len(function_of_stream) >= 8

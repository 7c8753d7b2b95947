"""Flags that need other flags: refused ones, ones with a warning only, and stored ones."""
import importlib
import inspect
import json
import re
import shlex
import typing

import pytest

from conftest import ROOT
from tripletreid import plugins
from tripletreid.argument_types import ArgumentParser
from tripletreid.experiment import arguments, flag_checks, net_flags, resumption, train_flags

NEEDED = ['--experiment_root', 'never', '--train_set', 'a.csv', '--image_root', '.']


def checked(*flags):
    """Return (arguments, warnings) of a command line of train.py, or the message with which it ends."""
    parser = train_flags.make_parser()
    messages = []

    def refuse(message):
        messages.append(message)
        raise SystemExit(2)

    parser.error = refuse
    try:
        args = parser.parse_args([*NEEDED, *flags])
        return args, flag_checks.check(args, parser)
    except SystemExit:
        return messages[0]


WITHOUT_METRIC_LOSS = '--loss none --xent_weight 1 '
IDLE = [('--label_smoothing 0.1', '--xent_weight'), ('--label_smoothing 0', '--xent_weight'),
        ('--classifier linear', '--xent_weight'), ('--lr_step_factor 0.1', '--lr_schedule step'),
        ('--pre_crop_height 288', '--crop_augment'), ('--pre_crop_width 144', '--crop_augment'),
        ('--lr_schedule constant --decay_start_iteration 15000', '--lr_schedule exponential|cosine or --decay_beta1, but '
         '--lr_schedule is constant'),
        ('--lr_schedule step --lr_steps 9 --decay_start_iteration 5', '--lr_schedule exponential|cosine or --decay_beta1'),
        (WITHOUT_METRIC_LOSS + '--margin soft', '--loss, but --loss is none'),
        (WITHOUT_METRIC_LOSS + '--metric_weight 1', '--loss'), ('--xent_weight 1 --metric_weight 0 --margin 1',
                                                                '--metric_weight, but --metric_weight is 0.0'),
        ('--center_learning_rate 0.5', '--center_weight'), ('--center_learning_rate 0.4', '--center_weight'),
        ('--xent_weight 1 --classifier_scale 64', '--classifier arcface|circle|cosface, but --classifier is linear'),
        ('--memory_start 9', '--memory'), ('--momentum 0.9', '--optimizer sgd, but --optimizer is adam'),
        ('--devices 2', '--distribute mirrored'), ('--eval_query a.csv', '--eval_frequency'),
        ('--eval_frequency 5 --eval_query a.csv', '--eval_gallery'), ('--eval_frequency 0 --eval_flip', '--eval_frequency'),
        ('--optimizer adamw', '--weight_decay'), ('--lr_schedule step', '--lr_steps')]


@pytest.mark.parametrize('flags, need', IDLE)
def test_a_flag_without_effect_is_an_error_whatever_its_value(flags, need):
    message = checked(*flags.split())
    assert isinstance(message, str) and re.search(rf'^--\w+( \w+)? needs {re.escape(need)}', message), message


@pytest.mark.parametrize('flags', [
    '--center_weight 0', '--xent_weight 1 --label_smoothing 0.1 --classifier arcface --classifier_scale 64',
    '--crop_augment --pre_crop_height 300 --pre_crop_width 150', '--lr_schedule cosine --decay_start_iteration 0',
    '--lr_schedule constant --decay_beta1 0.5 --decay_start_iteration 9', '--eval_frequency 0', '--memory 0',
    '--optimizer sgd --momentum 0 --weight_decay 0',
    '--loss none --xent_weight 1 --margin soft --metric_weight 1 --loss lifted'])
def test_flags_with_effect_pass_without_a_word(flags):
    _, warnings = checked(*flags.split())
    assert warnings == []


@pytest.mark.parametrize('recipe, appended, ignored', [
    ('--decay_start_iteration 9 --margin 0.3', '--lr_schedule constant', ['decay_start_iteration']),
    ('--xent_weight 1 --label_smoothing 0.2 --classifier arcface --classifier_margin 0.3', '--xent_weight 0',
     ['label_smoothing', 'classifier', 'classifier_margin']),
    ('--margin 0.3 --memory 256 --memory_start 9 --xent_weight 1', '--loss none', ['margin', 'memory', 'memory_start']),
    ('--lr_schedule step --lr_steps 8,9 --lr_step_factor 0.5', '--lr_schedule cosine', ['lr_steps', 'lr_step_factor']),
    ('--decay_beta1 0.5', '--optimizer sgd', ['decay_beta1']),
    ('--eval_query a.csv --eval_gallery b.csv --eval_excluder diagonal --eval_frequency 9 --eval_flip', '--eval_frequency 0',
     ['eval_query', 'eval_gallery', 'eval_excluder', 'eval_flip'])])
def test_a_flag_of_a_recipe_made_idle_by_an_appended_one_is_ignored_with_a_warning(recipe, appended, ignored):
    args, warnings = checked(*recipe.split(), *appended.split())
    assert sorted(re.match(r'--(\w+).* is ignored because it needs ', each)[1] for each in warnings) == sorted(ignored)
    parser = train_flags.make_parser()
    assert {name: getattr(args, name) for name in ignored} == {name: parser.get_default(name) for name in ignored}


@pytest.mark.parametrize('script', ['market1501_train.sh', 'duke_mtmc_train.sh', 'digits_train.sh',
                                    *sorted(f'recipes/{path.name}' for path in (ROOT / 'recipes').glob('[!_]*.sh'))])
def test_every_recipe_passes_without_a_warning(script):
    text = (ROOT / script).read_text().replace('\\\n', ' ')
    command = next(line for line in text.splitlines() if '/train.py' in line and '--experiment_root' in line)
    flags = [word for word in shlex.split(command.split('/train.py"')[1]) if word != '$@']
    args, warnings = checked(*flags)
    assert warnings == [] and args.batch_k > 1


def test_a_metric_without_a_metric_loss_is_for_logs_validation_and_search():
    _, (warning,) = checked('--loss', 'none', '--xent_weight', '1', '--metric', 'cosine')
    assert '--metric cosine does not influence the training' in warning
    assert checked('--loss', 'none', '--xent_weight', '1')[1] == []


def test_a_resumed_run_is_only_warned(tmp_path):
    """A run of an earlier version may have started with idle flags, and its command line is repeated with --resume."""
    (tmp_path / 'args.json').write_text(json.dumps({
        'train_set': 'a.csv', 'image_root': '.', 'lr_step_factor': 0.5, 'pre_crop_height': 288, 'margin': 'soft'}))
    parser = train_flags.make_parser()
    given = parser.parse_args(['--experiment_root', str(tmp_path), '--resume', '--center_learning_rate', '0.5'])
    args, _ = resumption.merge_with_stored(given, parser.given)
    warnings = flag_checks.check(args, parser)
    assert len(warnings) == 1 and '--lr_step_factor is ignored because it needs --lr_schedule step' in warnings[0]
    assert arguments.load(str(tmp_path))[0].lr_step_factor == 0.5


@pytest.mark.parametrize('flags, part', [
    (['--experiment_root', ''], '--experiment_root has an empty value'),
    (['--train_set', 'a.csv', ''], '--train_set has an empty'),
    (['--image_root', '/data/\udcff'], 'is not UTF-8')])
def test_empty_and_undecodable_values_are_refused(flags, part, capsys):
    with pytest.raises(SystemExit):
        train_flags.make_parser().parse_args([*NEEDED, *flags])
    assert part in capsys.readouterr().err


def test_an_empty_checkpoint_is_not_the_newest_one(capsys):
    with pytest.raises(SystemExit):
        parser = importlib.import_module('embed').make_parser()
        parser.parse_args(['--experiment_root', 'a', '--dataset', 'b', '--checkpoint', ''])
    assert '--checkpoint has an empty value, as from a variable that is not set' in capsys.readouterr().err


def parsers_of(parser):
    """Yield a parser and the parsers of its sub-commands."""
    yield parser
    if parser._subparsers is not None:
        for action in parser._subparsers._group_actions:
            yield from action.choices.values()


@pytest.mark.parametrize('command', sorted(path.stem for path in ROOT.glob('*.py')
                                           if 'def make_parser' in path.read_text() or path.stem == 'train'))
def test_needs_name_flags_and_values_that_exist(command):
    make_parser = getattr(importlib.import_module(command), 'make_parser', train_flags.make_parser)
    for parser in filter(lambda each: isinstance(each, ArgumentParser), parsers_of(make_parser())):
        actions = {flag: action for action in parser._actions for flag in action.option_strings}
        for name, by_value in parser._needs.items():
            for need in [need for needs in by_value.values() for need in needs]:
                assert need in actions[f'--{name}'].help.rpartition('needs')[2], name
                for text in need.split(' or '):
                    flag, _, values = text.partition(' ')
                    assert flag in actions, f'--{name} needs {text}'
                    assert set(values.split('|')) - {''} <= set(map(str, actions[flag].choices or values.split('|')))


def test_options_of_nets_are_read_off_their_signatures():
    """The annotated keywords of `body`, as `inspect` reads them, are the flags."""
    for net in plugins.choices('nets'):
        parameters = inspect.signature(plugins.load('nets', net).body, eval_str=True).parameters.values()
        options = {each.name: each.annotation for each in parameters if each.annotation is not inspect.Parameter.empty}
        assert options == net_flags.options_of_net(net), net
        for name, annotation in options.items():
            action = next(each for each in train_flags.make_parser()._actions if each.dest == name)
            kind, text = typing.get_args(annotation)
            assert text in action.help
            assert kind == action.type or set(typing.get_args(kind)) <= set(action.choices)
    assert set(train_flags.NET_OPTIONS) == set(net_flags.options_of_nets())

"""The curves of training runs as a picture."""
import math

import numpy as np

from tripletreid.visualization.figures import new_figure

PANELS_FIRST = ('loss', 'batch_top1', 'batch_prec_at_', 'active_count', 'learning_rate')
LINES = ('-', '--', '-.', ':')


def picture_of_curves(runs, distributions, smoothing):
    """Draw a panel for each scalar, with all runs in it, and one for each distribution of losses.

    Args:
        runs: {name: result of `event_files.read_scalars`}.
        distributions: {name: result of `detailed_logs.read_loss_quantiles`} for the runs with detailed logs.
        smoothing: mean over so many iterations; None: a hundredth of the run.

    Returns: figure, how many scalars there are.
    """
    from matplotlib.lines import Line2D
    tags = sorted({tag for scalars in runs.values() for tag in scalars})
    tags.sort(key=lambda tag: next((i for i, start in enumerate(PANELS_FIRST) if tag.startswith(start)), 9))

    rows = math.ceil((len(tags) + len(distributions)) / 2)
    figure = new_figure(12, 3 * rows + 0.25 * len(runs))
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    styles = [{'color': f'C{i % 10}', 'linestyle': LINES[i % len(LINES)]} for i in range(len(runs))]
    for panel, tag in zip(panels, tags):
        for scalars, style in zip(runs.values(), styles):
            draw_scalar(panel, scalars.get(tag, {}), style, smoothing)
        panel.set(title=tag, xlabel='iteration')
        panel.grid(alpha=0.3)
        if tag == 'learning_rate':
            panel.set_yscale('log')
            panel.yaxis.set_major_formatter('{x:.0e}')
            panel.yaxis.set_minor_formatter('')
    for panel, (root, (steps, quantiles)) in zip(panels[len(tags):], distributions.items()):
        draw_quantiles(panel, steps, quantiles)
        panel.set(title=f'losses within the batches of {root}', xlabel='iteration')
    for panel in panels[len(tags) + len(distributions):]:
        panel.remove()
    figure.legend([Line2D([], [], **style) for style in styles], runs, loc='outside upper center', frameon=False)
    return figure, len(tags)


def draw_scalar(panel, values, style, smoothing):
    """Draw one run's scalar {step: value}: a moving mean, and the values themselves, pale."""
    steps = np.array(sorted(values))
    y = np.array([values[step] for step in steps])
    window = min(smoothing or max(1, len(y) // 100), len(y))
    if window > 1:
        panel.plot(steps, y, color=style['color'], alpha=0.2, linewidth=0.5)
        y = np.convolve(y, np.full(window, 1 / window), 'valid')
        steps = steps[(window - 1) // 2:][:len(y)]
    panel.plot(steps, y, **style, marker=_marker(steps))


def _marker(steps):
    return 'o' if len(steps) == 1 else None  # A line through one point is not to be seen.


def draw_quantiles(panel, steps, quantiles):
    """Bands between the quantiles [T, 7] of a distribution over time, around its median."""
    for i, (name, color) in enumerate({'all': '#d9e6f2', '5 to 95 %': '#a9c8e2', '25 to 75 %': '#6ba3cd'}.items()):
        panel.fill_between(steps, quantiles[:, i], quantiles[:, -1 - i], color=color, linewidth=0, label=name)
    panel.plot(steps, quantiles[:, 3], color='#1f3f66', label='median', marker=_marker(steps))
    panel.grid(alpha=0.3)
    panel.legend(loc='upper right', fontsize='small')

"""Plot the mAP of models against their time per image."""
from tripletreid.visualization.figures import new_figure, save_picture

COLUMNS = 3
WIDE = 20  # Ratio of times above which the axis is logarithmic.


def save(rows, path):
    """Write a picture with one panel per dataset and one labelled point per model.

    Args:
        rows: dicts with 'dataset', 'model', 'mAP' and 'interval' (fractions; None: unknown), and 'milliseconds'.
        path: picture to write.
    """
    datasets = list(dict.fromkeys(row['dataset'] for row in rows))
    columns = min(COLUMNS, len(datasets))
    lines = -(-len(datasets) // columns)
    figure = new_figure(5 * columns, 4 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, dataset in zip(panels, datasets):
        for row in (row for row in rows if row['dataset'] == dataset):
            low, high = row['interval'] or (row['mAP'], row['mAP'])
            errors = [[max(0, 100 * (row['mAP'] - low))], [max(0, 100 * (high - row['mAP']))]]
            panel.errorbar(row['milliseconds'], 100 * row['mAP'], errors, fmt='o', capsize=3)
            panel.annotate(row['model'], (row['milliseconds'], 100 * row['mAP']), (5, 4), textcoords='offset points',
                           fontsize='small')
        panel.set(title=dataset, xlabel='milliseconds per image', ylabel='mAP in %')
        times = [row['milliseconds'] for row in rows]
        if max(times) > WIDE * min(times):
            panel.set_xscale('log')
            panel.xaxis.set_major_formatter('{x:g}')
            panel.xaxis.set_minor_formatter('')
        panel.margins(x=0.3, y=0.15)
        panel.grid(alpha=0.3, which='both')
    for panel in panels[len(datasets):]:
        panel.remove()
    save_picture(figure, path)

"""Parts of a dataset's csv file: successive rows that a worker reads without the others."""
import csv
import typing

import numpy as np

from tripletreid.dataset import Dataset, blocks_of, open_csv
from tripletreid.errors import InputError


class Part(typing.NamedTuple):
    """Successive rows of a csv file, which are read without the rows before and after them.

    path: path of the csv file.
    offset: byte offset of the first row.
    rows: number of rows.
    """
    path: str
    offset: int
    rows: int

    def load(self):
        """Load the `Dataset` of these rows. Raises InputError as `load_dataset`."""
        with open_csv(self.path, self.offset) as file:
            blocks = list(blocks_of(csv.reader(file, skipinitialspace=True, strict=True), self.path, self.rows))
        columns = (np.array([value for block in blocks for value in block[column]], object)
                   for column in range(len(blocks[0])))
        return Dataset(str(self.path), *columns)


def bounds(rows, count):
    """Return the first row of each of `count` parts of nearly equal length, then the number of rows: ints [count + 1].

    With millions of rows each part begins at a multiple of a power of two, so that few offsets need to be kept.
    """
    unit = 1 << max(0, (rows - 1 >> 20).bit_length())
    return [rows * number // count // unit * unit for number in range(count)] + [rows]


def parts(path, count):
    """Divide the rows of a csv file by `bounds`, without keeping them; return a list of `Part`.

    Raises:
        InputError: no such file, or fewer rows than parts.
    """
    offsets, unit, rows, quotes, position = [0], 1, 0, 0, 0
    with open_csv(path) as text:
        for line in text.buffer:
            position += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0:  # Inside of quotes a line may end before its row does.
                rows += 1
                if rows % unit == 0:
                    offsets.append(position)
                    if len(offsets) > 1 << 21:
                        offsets, unit = offsets[::2], 2 * unit
    if rows < count:
        raise InputError(f'{path} has {rows} rows, too few for {count} parts.')
    ends = bounds(rows, count)
    return [Part(str(path), offsets[start // unit], stop - start) for start, stop in zip(ends, ends[1:])]

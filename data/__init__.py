"""One dataset a file; its name is the one that `make_dataset.py` takes. Such a file has

splits(root, **options)   {'train' | 'query' | 'test' | another: rows of (pid, path relative to root[, tracklet])};
                          the key ends the name of the csv file
EXCLUDER                  the excluder to evaluate it with
excluder(**options)       only where that depends on options: the excluder with those of `splits`
TOTALS                    {subset: {'identities' | 'images' | 'tracklets': number}}, what is known of the whole dataset;
                          it has every subset that there may be, since csv files of an earlier run must not stay
add_arguments(parser)     only where `splits` has options: their flags. With --convert FOLDER the images of the rows are
                          converted into that folder (`_convert.py`)

Its docstring says what has to lie in the root, in the first line and in short: `--help` shows it. `_files.py` helps.
"""

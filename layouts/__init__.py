"""The layouts of known datasets, one per file; the file's name is the name that `make_dataset.py` takes.

Such a file defines

splits(root, **options)   {'train' | 'query' | 'test' | another: rows of (pid, path relative to root[, tracklet])};
                          the key ends the name of the csv file
EXCLUDER                  the excluder to evaluate it with
excluder(root, **options) only where the excluder depends on the options of `splits`
TOTALS                    {subset: {'identities' | 'images' | 'tracklets': number}}, the known numbers of the complete
                          dataset; every possible subset is a key, since csv files of an earlier run must not stay
add_arguments(parser)     only where `splits` has options: their flags. With --convert FOLDER the images of the rows are
                          converted into that folder (`_convert.py`)

Its docstring describes the expected content of the root, in short in the first line, which `--help` shows. Helpers are in
`_files.py`.
"""

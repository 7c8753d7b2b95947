"""Code bases that publish weights: one file per code base, see README.md."""

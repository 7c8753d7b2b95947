"""Scores of a ranking: one file per score or family of scores; all of them are printed, stored and compared."""

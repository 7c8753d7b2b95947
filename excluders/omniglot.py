"""Omniglot: `0394_01.png` is character 0394, counted over all alphabets, by drawer 01 of its alphabet."""
from excluders import _same_camera

EXAMPLES = ('0001_01.png', '0002_02.png')


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?P<pid>\d{4})_(?P<cid>\d{2})\.'

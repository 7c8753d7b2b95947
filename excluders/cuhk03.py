"""CUHK03, new protocol: `1_001_2_06.png` shows person 1 of camera pair 1 in the second camera of that pair."""
from excluders import _same_camera

EXAMPLES = ('1_001_1_01.png', '1_002_2_01.png')


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?P<pid>\d+_\d+)_(?P<cid>\d+)_'

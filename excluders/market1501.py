"""Market-1501: `0002_c1s1_000451_03.jpg` shows person 0002 in camera 1; as in the original, a person may be any word."""
from excluders import _same_camera

EXAMPLES = ('0001_c1s1_000001_01.jpg', '0002_c2s1_000001_01.jpg')


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?P<pid>\S+)_c(?P<cid>\d+)s\d+_'

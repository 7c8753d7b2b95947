"""DukeMTMC-reID: `0005_c2_f0046985.jpg` shows person 0005 in camera 2; as in the original, a person may be any word."""
from excluders import _same_camera

EXAMPLES = ('0001_c1_f0000001.jpg', '0002_c2_f0000001.jpg')


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?P<pid>\S+)_c(?P<cid>\d+)_'

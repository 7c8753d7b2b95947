"""MSMT17: `0000_001_01_0303morning_0008_0_ex.jpg` shows person 0000 in camera 01."""
from excluders import _same_camera

EXAMPLES = ('0001_000_01_0303morning_0001_0.jpg', '0002_000_02_0303morning_0001_0.jpg')


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?P<pid>\d+)_\d+_(?P<cid>\d+)_'

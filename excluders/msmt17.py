"""MSMT17: `0000_001_01_0303morning_0008_0_ex.jpg` shows person 0000 in camera 01."""
from excluders import _same_camera


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?P<pid>\d+)_\d+_(?P<cid>\d+)_'

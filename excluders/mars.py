"""MARS: `0065C1T0002F016.jpg` shows person 0065 in camera 1; the junk is person `00-1`."""
from excluders import _same_camera


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?:00)?(?P<pid>-1|\d{4})C(?P<cid>\d)T\d+F'

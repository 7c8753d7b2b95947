"""MARS: `0065C1T0002F016.jpg` shows person 0065 in camera 1; the junk is identity `00-1`."""
from excluders import _same_camera

EXAMPLES = ('0001C1T0001F001.jpg', '0002C2T0001F001.jpg')


class Excluder(_same_camera.SameCameraExcluder):
    pattern = r'^(?:00)?(?P<pid>-1|\d{4})C(?P<cid>\d)T\d+F'

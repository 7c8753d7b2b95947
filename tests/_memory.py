"""How much memory a script takes."""
import subprocess
import sys

# A small process in between: a child begins with the peak of the process that it was forked from, here a large one.
PEAK_OF_CHILD = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(*command):
    """Peak resident memory of a Python script with its arguments, in MiB."""
    command = [sys.executable, '-c', PEAK_OF_CHILD, sys.executable, *map(str, command)]
    return int(subprocess.run(command, check=True, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              timeout=500).stdout) / 1024

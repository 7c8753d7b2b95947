"""The processes that train together: the workers in TF_CONFIG, as TensorFlow documents it, or the tasks of a SLURM step.

It does not import TensorFlow, because the commands use it first.
"""
import dataclasses
import json
import os

from tripletreid.errors import InputError

EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


@dataclasses.dataclass(frozen=True)
class Task:
    """This process among those that train together.

    worker: its number, from 0.
    workers: how many there are.
    """
    worker: int = 0
    workers: int = 1

    @property
    def is_chief(self):
        """Return True in the process that writes files and logs: the first one."""
        return self.worker == 0


def task(distribute):
    """Return the `Task` of this process. Raises InputError if `distribute` is 'multi_worker' and TF_CONFIG is invalid."""
    if distribute != 'multi_worker':
        return Task()
    if is_slurm_task():
        return Task(int(os.environ['SLURM_PROCID']), int(os.environ['SLURM_STEP_NUM_TASKS']))
    text = os.environ.get('TF_CONFIG', '')
    try:
        config = json.loads(text)
        workers, kind, index = config['cluster']['worker'], config['task']['type'], config['task']['index']
        addresses_fit = workers and all(isinstance(address, str) and ':' in address for address in workers)
        understood = addresses_fit and kind == 'worker' and set(config['cluster']) == {'worker'}
        if understood and isinstance(index, int) and 0 <= index < len(workers):
            return Task(index, len(workers))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InputError(f'--distribute multi_worker needs srun of SLURM, or the environment variable TF_CONFIG, on each host '
                     f'with its own index, such as {EXAMPLE}; it is {text or "not set"}.')


def is_slurm_task():
    """Return whether `srun` has started this process and there is no TF_CONFIG."""
    numbers = [os.environ.get(name, '') for name in ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS')]
    return 'TF_CONFIG' not in os.environ and all(number.isdecimal() for number in numbers)

"""`restore` in several processes: they share the pictures, and one that dies takes nothing with it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from pictures import at_level, checkpoint, read, same_pixels, scene, write

COUNT = 40
SIZE = (240, 320)  # large enough for the signal to come before the last picture
USUAL = ('in', '-o', 'out', '--model', 'net.pth', '--level', '0')


def start(rank: int, folder: Path) -> subprocess.Popen:
    command = [sys.executable, '-m', 'cp_basicsr.tools.restore', *USUAL]
    settings = os.environ | {'OMP_NUM_THREADS': '1', 'RANK': str(rank), 'WORLD_SIZE': '2'}
    return subprocess.Popen(command, env=settings, cwd=folder, stderr=subprocess.PIPE, text=True)


def test_a_process_that_is_killed_loses_nothing_it_has_written(tmp_path: Path) -> None:
    net = checkpoint(tmp_path / 'net.pth')
    for index in range(COUNT):
        write(tmp_path / f'in/{index:02}.png', scene(*SIZE))
    other, killed = start(0, tmp_path), start(1, tmp_path)
    odd = [tmp_path / f'out/{index:02}.png' for index in range(1, COUNT, 2)]
    while killed.poll() is None and sum(path.exists() for path in odd) < 3:
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    message = other.communicate()[1]
    assert other.returncode == 0 and f'Rank 0 of 2: {COUNT // 2} of {COUNT // 2} restored' in message, message
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('*.png')}
    assert COUNT // 2 + 3 <= len(done) < COUNT
    again = start(1, tmp_path)
    message = again.communicate()[1]
    left = COUNT - len(done)
    assert f'Rank 1 of 2: {left} of {COUNT // 2} restored' in message, message
    expected = at_level(net, scene(*SIZE), 0)
    for index in range(COUNT):
        path = tmp_path / f'out/{index:02}.png'
        assert done.get(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
        same_pixels(read(path), expected)
    assert len(list((tmp_path / 'out').iterdir())) == COUNT, 'nothing half written is left'

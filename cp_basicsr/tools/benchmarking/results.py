"""What was measured, the figures that follow from it, and the table.

- *MACs ratio*: dense MACs / MACs. What theory promises.
- *time ratio*: seconds of the fastest float32 rival in the same run / seconds. What the clock says.
- *efficiency*: time ratio / MACs ratio = time ratio x share of the dense MACs. 1 means that every MAC that was saved
  saved its time, counted from the fastest rival; more than 1 that the dense level is faster than that rival, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Result:
    """One contender on one network and input.

    Attributes:
        network: title of the network.
        size: height and width of the input, pixels.
        name: of the contender.
        precision: 'fp32' or 'bf16'.
        ours: whether it is our network.
        macs, dense_macs: true MACs of one run, and of the dense network.
        rounds: seconds in each round.
        error: largest difference from PyTorch's float32 output as a share of the largest output.
    """

    network: str
    size: tuple[int, int]
    name: str
    precision: str
    ours: bool
    macs: int
    dense_macs: int
    rounds: tuple[float, ...]
    error: float

    @property
    def seconds(self) -> float:
        """Median of the rounds."""
        return median(self.rounds)

    @property
    def macs_ratio(self) -> float:
        return self.dense_macs / self.macs


def best_rival(results: Sequence[Result], precision: str) -> Result | None:
    """The fastest rival of a precision; None if none ran."""
    rivals = [result for result in results if not result.ours and result.precision == precision]
    return min(rivals, key=lambda result: result.seconds, default=None)


def time_ratio(result: Result, rival: Result | None) -> float | None:
    """How many times faster than a rival; None without one."""
    return None if rival is None else rival.seconds / result.seconds


def efficiency(result: Result, rival: Result | None) -> float | None:
    """Speed-up for each MAC saved: time ratio / MACs ratio; None without a rival."""
    ratio = time_ratio(result, rival)
    return None if ratio is None else ratio / result.macs_ratio


HEAD = ('', 'precision', 'ms', 'GMAC', 'MACs %', 'MACs ratio', 'time ratio', 'vs bf16', 'efficiency', 'error')


def as_markdown(results: Sequence[Result]) -> str:
    """The table of one network and input, one contender a line, in the order given.

    'time ratio' is against the best float32 rival, which is in bold; 'vs bf16' against the best bf16 rival.
    """
    rival, low_rival = best_rival(results, 'fp32'), best_rival(results, 'bf16')
    lines = [list(HEAD), ['---', '---', *['---:'] * (len(HEAD) - 2)]]
    for result in results:
        lines.append(
            [
                f'**{result.name}**' if result is rival else result.name,
                result.precision,
                f'{1e3 * result.seconds:.{2 if result.seconds < 0.1 else 0}f}',
                f'{result.macs / 1e9:.2f}',
                f'{100 * result.macs / result.dense_macs:.1f}',
                f'{result.macs_ratio:.2f}',
                _times(time_ratio(result, rival)),
                _times(time_ratio(result, low_rival)),
                '' if rival is None or not result.ours else f'{efficiency(result, rival):.2f}',
                f'{result.error:.0e}',
            ]
        )
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _times(ratio: float | None) -> str:
    return '' if ratio is None else f'{ratio:.2f}x'


def as_record(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """A result and its figures among those of the same network and input, for JSON."""
    rival = best_rival(results, 'fp32')
    return asdict(result) | {
        'seconds': result.seconds,
        'macs_ratio': result.macs_ratio,
        'best_fp32_rival': rival and rival.name,
        'time_ratio': time_ratio(result, rival),
        'time_ratio_bf16': time_ratio(result, best_rival(results, 'bf16')),
        'efficiency': efficiency(result, rival),
    }

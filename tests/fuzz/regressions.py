"""Seeds of damaged files that once made trouble: (seed, number of the mutation), and what happened."""

from typing import Final

REGRESSIONS: Final[tuple[tuple[int, int, str], ...]] = ()

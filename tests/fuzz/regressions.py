"""Seeds of damaged files that once made trouble: (seed, number of the mutation), and what happened."""

from typing import Final

REGRESSIONS: Final[tuple[tuple[int, int, str], ...]] = (
    (20260101, 70, "OpenVINO computed a range of 16 million axes while it read the file, for a minute"),
    (20260101, 129, "an attribute of an unknown type was taken for a number"),
    (20260101, 174, "an .xml that is no UTF-8 raised a UnicodeDecodeError"),
    (20260102, 3806, "names in a record that are no UTF-8"),
    (20260102, 2283, "a mask of a level of which nothing else is known raised a KeyError"),
)

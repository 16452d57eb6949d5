"""Rectangles of the critical strip."""

import dataclasses
import math
from typing import Self

# Where neither half of a cut lies on a zero of interest: 1/2 itself would be the critical line.
_CUT = 0.5371


@dataclasses.dataclass(frozen=True)
class Box:
    """sigma and t of s = sigma + i t."""

    sigma_low: float
    sigma_high: float
    t_low: float
    t_high: float

    @classmethod
    def of(cls, numbers: tuple[float, float, float, float], *, closed: bool = False) -> Self:
        """A box from the command line.

        Args:
          numbers: sigma from and to, t from and to.
          closed: Whether the sides of the strip, sigma = 0 and 1, may belong to it.

        Raises:
          ValueError: If it is empty, reversed, not above the real axis, across the pole at 1, or
            leaves the critical strip.
        """
        box = cls(*numbers)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"expected finite numbers, got {box}")
        if not (box.sigma_low < box.sigma_high and box.t_low < box.t_high):
            raise ValueError(f"expected a box from low to high and not empty, got {box}")
        if box.sigma_low <= 1 <= box.sigma_high and box.t_low <= 0 <= box.t_high:
            raise ValueError(f"expected a box without the pole at 1, got {box}")
        low, high = ("[0", "1]") if closed else ("(0", "1)")
        inside = box.sigma_low >= 0 and box.sigma_high <= 1
        if not inside or (not closed and (box.sigma_low == 0 or box.sigma_high == 1)):
            raise ValueError(f"expected sigma within {low}, {high}, got {box}")
        return box

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.sigma_high - self.sigma_low) * (self.t_high - self.t_low)

    def contains(self, sigma: float, t: float) -> bool:
        """Whether a point lies inside."""
        return self.sigma_low < sigma < self.sigma_high and self.t_low < t < self.t_high

    def halves(self) -> tuple[Self, Self]:
        """Two parts, cut across the longer side."""
        if self.t_high - self.t_low >= self.sigma_high - self.sigma_low:
            cut = self.t_low + _CUT * (self.t_high - self.t_low)
            return dataclasses.replace(self, t_high=cut), dataclasses.replace(self, t_low=cut)
        cut = self.sigma_low + _CUT * (self.sigma_high - self.sigma_low)
        return dataclasses.replace(self, sigma_high=cut), dataclasses.replace(self, sigma_low=cut)

    def corners(self) -> list[complex]:
        """Counter-clockwise."""
        left, right = self.sigma_low, self.sigma_high
        low, high = self.t_low, self.t_high
        return [complex(left, low), complex(right, low), complex(right, high), complex(left, high)]

    def __str__(self) -> str:
        sides = (self.sigma_low, self.sigma_high), (self.t_low, self.t_high)
        return " x ".join(f"[{low:.12g}, {high:.12g}]" for low, high in sides)

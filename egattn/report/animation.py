"""Figures that move, as GIF."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

_DPI = 110


class Animation(NamedTuple):
    """How a figure changes from frame to frame."""

    draw: Callable[[int], Any]
    """Changes the figure to the frame with this index."""
    frames: int
    """How many there are; after the last one it starts again."""
    rate: float = 15
    """Frames per second."""

    def write(self, figure: Figure, path: Path) -> None:
        """Writes a GIF.

        One palette for all frames, without dithering: what stands still then costs nothing, and the
        file is a fifth of what matplotlib's own writer makes.
        """
        figure.set_dpi(_DPI)
        canvas = FigureCanvasAgg(figure)
        images = [self._image(canvas, index) for index in range(self.frames)]
        palette = images[self.frames // 2].quantize(255)
        frames = [x.quantize(palette=palette, dither=Image.Dither.NONE) for x in images]
        time = round(1000 / self.rate)
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=time, loop=0)

    def _image(self, canvas: FigureCanvasAgg, index: int) -> Image.Image:
        self.draw(index)
        canvas.draw()
        # The layout of the first frame is that of all.
        canvas.figure.set_layout_engine("none")
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

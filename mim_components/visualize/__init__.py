"""Pictures for people who read scans: reconstructions, where volumes were cut, segmentations, confusion.

Every function goes from arrays to a matplotlib `Figure` or to PNG files. Nothing here touches pyplot, so a picture can
be drawn in any thread and leaves no global state behind.
"""

from mim_components.visualize.boxes import boxes_figure
from mim_components.visualize.reconstruction import LevelPicture, reconstruction_figure, save_reconstruction_pictures
from mim_components.visualize.sheet import save_figure

__all__ = ["LevelPicture", "boxes_figure", "reconstruction_figure", "save_figure", "save_reconstruction_pictures"]

"""The landscape over training time."""

from .track import Track
from .tracker import LandscapeTracker

__all__ = ["LandscapeTracker", "Track"]

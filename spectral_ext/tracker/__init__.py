"""The landscape over training time."""

from spectral_ext.tracker.track import Track
from spectral_ext.tracker.tracker import LandscapeTracker

__all__ = ["LandscapeTracker", "Track"]

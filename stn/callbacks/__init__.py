"""Callbacks: progress, logs, the dashboard, pictures, growing images and averaged weights."""

from stn.callbacks.dashboard import Dashboard
from stn.callbacks.history import History
from stn.callbacks.network_summary import NetworkSummary
from stn.callbacks.progress import progress_bar
from stn.callbacks.progressive_resizing import ProgressiveResizing
from stn.callbacks.theta_monitor import ThetaMonitor
from stn.callbacks.warp_gallery import WarpGallery
from stn.callbacks.weight_average import WeightAverage

__all__ = [
    "Dashboard",
    "History",
    "NetworkSummary",
    "ProgressiveResizing",
    "ThetaMonitor",
    "WarpGallery",
    "WeightAverage",
    "progress_bar",
]

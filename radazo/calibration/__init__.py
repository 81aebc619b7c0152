"""Calibration: suggest a first smoothing distance and learning rate."""

from radazo.calibration.calibrate import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]

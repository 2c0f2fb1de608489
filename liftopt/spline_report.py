"""Reports on a fitted spline (stub)."""


class SplineReport:
    """Reports."""

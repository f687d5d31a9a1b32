"""Lightning attention for TPUs."""


def unsupported(q, k, v, slope, state, segment_ids) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    return "not written yet"

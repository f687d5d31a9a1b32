"""Sum, residual, norm and router of a decode step in NumPy, float64, one row after the other."""

import numpy as np


def forward(x_RD, parts_PRD, norm, mixed, router):
    """out (R, D); with a router also the experts' ids (R, A), the best first, and their weights (R, A)."""
    rows = []
    for r, x in enumerate(np.asarray(x_RD, np.float64)):
        y = np.asarray(parts_PRD, np.float64)[:, r].sum(axis=0)
        if mixed is not None:
            o = np.asarray(mixed.o_RW[r], np.float64)
            y = y / np.sqrt((o**2).mean() + mixed.eps)
        h = norm.alpha * x + norm.beta * y
        rows.append(np.asarray(norm.weight_LD, np.float64)[int(norm.layer[0])] * h / np.sqrt((h**2).mean() + norm.eps))
    out = np.stack(rows)
    return (out,) if router is None else (out, *route(out, router))


def route(out_RD, router):
    """(ids (R, A), weights (R, A)) of rows as they are: what a router says of a rounded row follows from that row."""
    logits = np.asarray(out_RD, np.float64) @ np.asarray(router.matrix_LED, np.float64)[int(router.layer[0])].T
    ids = np.argsort(-logits, axis=1, kind="stable")[:, : router.choices]
    over = np.exp(np.take_along_axis(logits, ids, axis=1) - logits.max(axis=1, keepdims=True))
    return ids, over / over.sum(axis=1, keepdims=True)

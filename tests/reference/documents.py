"""Which document of a call each token belongs to, and where in its document it stands.

A row is a run of documents packed end to end, with padding anywhere. Segment ids are only compared: a token whose id
differs from the last real token's starts a document. The first document of a call has number 0 and goes on with
whatever a cache holds; padding has number PADDING.
"""

import numpy as np

PADDING = -1


def document_numbers(segments_BS):
    numbers_BS = np.full(segments_BS.shape, PADDING)
    for b, row in enumerate(segments_BS):
        last_id, number = None, 0
        for s, segment in enumerate(row):
            if segment < 0:
                continue
            if last_id is not None and segment != last_id:
                number += 1
            last_id = segment
            numbers_BS[b, s] = number
    return numbers_BS


def positions_in_documents(documents_BS, start_B):
    """Positions (B, S), and each row's next position (B,); `start_B` is where document 0 of each row goes on."""
    positions_BS, next_B = np.zeros_like(documents_BS), np.array(start_B)
    for b, row in enumerate(documents_BS):
        current = 0
        for s, document in enumerate(row):
            if document == PADDING:
                continue
            if document != current:
                current, next_B[b] = document, 0
            positions_BS[b, s] = next_B[b]
            next_B[b] += 1
    return positions_BS, next_B


def as_past(documents_BT):
    """Numbers that the next call gives to the tokens of this one: 0 for the last document, PADDING for the rest."""
    last_B1 = documents_BT.max(axis=1, keepdims=True, initial=0)
    return np.where(documents_BT == last_B1, 0, PADDING)

"""The whole text model in NumPy float64, written from the published equations, importing nothing of ours.

Every function also takes complex arrays, so that a complex step through it gives exact derivatives.
Letters: B batch, S tokens of a call, T tokens seen so far, D model width, N query heads, K key/value heads,
H head width, F expert width, E experts, A experts per token, V vocabulary, L layers, R tokens B*S in a row.
"""

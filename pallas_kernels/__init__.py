"""Operations on one device, each with a slow, obvious form and fast ones for TPU and GPU.

Every folder is one operation: `api.py` (the public function), `reference.py` (NumPy float64, the oracle), `xla.py`
(runs everywhere), `tpu.py`, `gpu.py`. `dispatch.py` chooses between them. Nothing here knows of a mesh or a model.
"""

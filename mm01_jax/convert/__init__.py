"""PyTorch weights to ours and back: the commands of `mm01-convert`, and what reads either kind of directory."""

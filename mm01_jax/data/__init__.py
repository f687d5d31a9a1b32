"""Text into batches: `dataset.open_dataset` finds and checks it, `pipeline.batches` serves it (docs/data.md)."""

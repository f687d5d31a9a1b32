"""Images into tiles: `opening` refuses what is no sound image, `processor` makes the pixels that the tower sees."""

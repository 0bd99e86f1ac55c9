"""Images in and out, with Pillow and NumPy alone: files, colours, masks, crops, pasting, encoding."""

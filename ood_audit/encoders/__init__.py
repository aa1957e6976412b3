"""CLIP image and text towers: any open_clip model, or the bundled starter."""

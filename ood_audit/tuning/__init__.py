"""Prompts learned from labelled images: context vectors (CoOp), by cross-entropy or by the paper's EBM loss."""

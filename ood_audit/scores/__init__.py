"""The scores: one a file. Each turns cosines into a raw value, and every `ood_score` is higher for more OOD."""

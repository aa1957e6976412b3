"""What is learned from labelled images: context vectors of prompts, or a residual on the class features."""

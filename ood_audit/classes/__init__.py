"""Classes: the vocabulary, labelled images, prototypes, background names and tuned prompts."""

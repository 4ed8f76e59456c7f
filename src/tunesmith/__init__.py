"""tunesmith: from rows of data to a fine-tuned language model in production, from one recipe."""

__version__ = "0.1.0"

"""The recipe: one typed YAML file. Light on purpose: nothing here imports an ML library."""

"""Conversations of several turns in which a model acts on simulated programs.

apis/         the programs
calls         carries out call strings without evaluating them
world         one simulation of an item
checking      the verdict on an item
long_context  what one of the categories adds to the programs' answers
"""

"""Conversations of several turns in which a model acts on simulated programs.

apis/         the programs
calls         carries out call strings without evaluating them
world         one simulation of an item
checking      the verdict on an item
replies       from what a model wrote to call strings
scoring       replies, then checking
dialogue      one item, asked
functions     how the programs' functions are described to a model
long_context  what one of the categories adds to the programs' answers
"""

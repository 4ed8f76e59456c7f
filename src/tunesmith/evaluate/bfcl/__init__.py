"""The Berkeley Function-Calling Leaderboard: its data, its prompts, its verdicts, without its package.

    categories   names (both of a renamed one), groups, item counts, official aggregation
    dataset      items and ground truth from a directory or the Hub
    prompts      what a model is asked, per protocol
    decoding     from what it wrote to calls; nothing is ever evaluated
    checking     the verdict: `valid`, `error_type`, in the official checker's words
    scoring      one answer: decoding, then the category's rule
    responses    a file of answers that exist already; `folder`, a directory of them with the summary numbers
    task         all of it as an evaluation task of a run
    multi_turn/  conversations of several turns that act on simulated programs

Source of every rule: ShishirPatil/gorilla at 6ea5797, folder `berkeley-function-call-leaderboard` (Apache-2.0).
"""

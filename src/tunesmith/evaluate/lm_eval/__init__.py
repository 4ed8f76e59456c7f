"""lm-evaluation-harness as a process of its own: base and tuned on the same items, its files kept, its numbers ours.

`measure.py` is the door. `catalogue.py` knows what the harness calls its tasks, `work_order.py` writes what it is to
do, `process.py` runs it, `inside/work.py` is what runs there, `results.py` reads what it left, `comparison.py` turns
that into scores.
"""

"""The eight simulated programs that multi-turn items act on, with the observable behaviour of the official ones.

Names of classes, methods, parameters and public attributes are part of that behaviour: models call methods by name, an
unexpected argument is answered with Python's own message, and the checker compares public attributes. So are oddities
(a moved directory whose children remember their old parent); each is told where it is made.

Source: `bfcl_eval/eval_checker/multi_turn_eval/func_source_code/`, gorilla at 6ea5797. Only the behaviour comes from
there: it is compared, method by method, in `benchmarks/bfcl_multi_turn_vs_official.py`.
"""

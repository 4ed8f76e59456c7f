"""An OpenAI-compatible server over a local checkpoint, for machines without vLLM.

`python -m tunesmith.serve.embedded --model DIR` starts it. One thread owns the model and works on all requests at once
(`batch`), the event loop talks HTTP (`app`), and everything between them is plain data (`sequence`).
"""

"""What every test rests on."""

import signal

# Shells start background jobs with SIGINT ignored, and children inherit that: a test that sends it would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

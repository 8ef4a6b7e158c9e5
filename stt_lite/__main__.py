# Made by "make extract".
"""`python -m stt_lite`: the same commands as `stt-lite`."""

from stt_lite.cli import main

main()

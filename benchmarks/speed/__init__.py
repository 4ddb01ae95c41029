"""What a call costs through us and through others, side by side in one run.

    make bench        # or: python -m benchmarks.speed [--scale 0.1] [--only calls ...]

Ratios count, not microseconds: every round runs each contestant once, so that whatever
the machine is doing meanwhile hits all of them. Peers are the real packages.
"""

"""What collaborative training costs, figure by figure, beside the limit each is held against.

Run `python -m benchmarks` from the folder that holds this one; `docs/performance.md` says how figures are measured.
"""

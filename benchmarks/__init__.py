"""Speed, memory and quality, ours beside others in one run: `python -m benchmarks NAME`.

Each script does the same work with each competitor in turn, checks first that they agree, prints medians,
spread and ratios, and appends rows to `benchmarks/rows/NAME.csv`. `python -m benchmarks table` makes the
tables of `docs/benchmarks.md` from these rows.
"""

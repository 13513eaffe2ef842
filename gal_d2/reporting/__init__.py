"""One page about a run: what its folder holds, read, added up and drawn (tools/report.py)."""

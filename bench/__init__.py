"Benchmarks and experiments, each run as `python -m bench.NAME [--help]`"

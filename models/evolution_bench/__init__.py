"""The computing side of `stimloop bench evolve`: ground-truth neurons, noise, foreign optimisers, and one run.

`rig.bench.evolve` plans the runs and sums them up; `rig.cli` joins the two. docs/bench_evolve.md says what is measured.
"""

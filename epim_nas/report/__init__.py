"""Reports: the Pareto front, tables, figures, the TensorBoard dashboard and ``report.html``.

Nothing is imported here: :mod:`epim_nas.solver.pareto`, ``tables`` and ``layers`` need neither
torch nor a plotting library, and the rest loads its own when it is used.
"""

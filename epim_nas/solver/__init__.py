"""The exact solver: metrics, the problem as data, knapsacks, fronts, feasibility, lower bounds.

Nothing here needs PyTorch or Optuna.
"""

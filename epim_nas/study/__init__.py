"""The search: strategies, the exact solver, the Optuna study, the durable trial store."""

"""Optuna: strategies and samplers, the durable trial store, history."""

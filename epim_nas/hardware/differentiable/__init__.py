"""The cost equations with gradients: relaxed sizes and bits, expected costs of choices."""

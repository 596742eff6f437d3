"""Lower bounds of costs per choice: buffers, cycles, hops."""

"""The datapath of epitome layers: index tables, memory images, and what runs by them."""

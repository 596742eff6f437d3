"""``finetune``: the full training of one design, its folder and its job."""

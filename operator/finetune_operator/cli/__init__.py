"""The command ``finetune``: the pure half of the operator on a person's own machine."""

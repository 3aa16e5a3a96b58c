"""From a model source to the tokenizer and the model that is trained."""

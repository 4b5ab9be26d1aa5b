"""Token ids to text and back: tokenizer, sampling, generation."""

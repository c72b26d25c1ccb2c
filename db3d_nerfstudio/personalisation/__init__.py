"""DreamBooth as a product of its own: a personalised model, its uses, its prompts."""

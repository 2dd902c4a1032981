"""The words between the model and the environment: prompts, answers, and the conversation as tokens. No torch here."""

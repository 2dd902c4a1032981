"""The multi-turn driving environment: in this process, behind HTTP, or as a Gymnasium environment. No torch here."""

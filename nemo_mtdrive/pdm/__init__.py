"""The PDM agent: NAVSIM v1's PDM score, fast, and the paper's feedback (Section 3.1)."""
